"""Tests of the commands in docs/chat.md."""

import io
import re
import shlex
import shutil
import subprocess
import sys

from PIL import Image

from hawaii.__main__ import main
from hawaii.evaluation.terminal import HELP
from hawaii.tests.documents import blocks, read


DOCUMENT = read("docs/chat.md")


def test_the_commands_give_an_answer_per_question(hub_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(hub_folder, tmp_path / "runs/easy_vqa/hub")
    Image.new("RGB", (20, 10), "red").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks(DOCUMENT, "bash")
    num_answers = []
    for line in commands.splitlines():
        *before, command = line.split(" | ")
        typed = subprocess.run(["bash", "-c", *before], capture_output=True, check=True).stdout if before else b""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        program, *words = shlex.split(command)
        assert (program, main(words)) == ("hawaii", 0)
        num_answers.append(len(capsys.readouterr().out.splitlines()))
    assert num_answers == [0, 1, 2]  # the first conversation ends with its empty input


def test_the_table_has_every_command():
    listed = re.findall(r"^\| `(/\w+)", DOCUMENT, flags=re.MULTILINE)
    assert listed == re.findall(r"^/\w+", HELP, flags=re.MULTILINE)
