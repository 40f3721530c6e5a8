"""docs/quick_start.md: its commands run, here or in the tests of the documents that have them too."""

import re
import shlex

from PIL import Image

from hawaii.__main__ import main
from hawaii.example_data.easy_vqa.experts import EXPERTS
from hawaii.tests.documents import blocks, read


DOCUMENT = read("docs/quick_start.md")
COMMANDS = [line for block in blocks(DOCUMENT, "bash") for line in block.splitlines()]


def test_its_commands_run_elsewhere():
    """tests/test_readme.py, tests/docs/test_training.py and tests/docs/test_figures.py run them in this order."""
    others = ("README.md", "docs/training.md", "docs/figures.md")
    tested = {line for document in others for block in blocks(read(document), "bash") for line in block.splitlines()}
    assert [line for line in COMMANDS if line not in tested] == [line for line in COMMANDS if "hawaii chat" in line]
    named = [" ".join(line.split()[1:2]) for line in COMMANDS]
    assert named == [".venv", "data", "train", "chat", "evaluate", "plot", "figures"]


def test_the_question_is_answered(hub_folder, tmp_path, monkeypatch, capsys):
    (command,) = [shlex.split(line) for line in COMMANDS if "hawaii chat" in line]
    folder, image = command[2], command[command.index("--image") + 1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / image).parent.mkdir(parents=True)
    Image.new("RGB", (20, 30), "red").save(tmp_path / image)
    (tmp_path / folder).symlink_to(hub_folder)
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_it_names_the_teachers():
    (sentence,) = re.findall(r"^- `experts`: the teachers, (.*);$", DOCUMENT, flags=re.MULTILINE)
    assert [name.lower() for name in re.findall(r"\ba (\w+)", sentence)] == [expert.name for expert in EXPERTS]
