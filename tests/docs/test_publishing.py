"""docs/publishing.md: its commands publish, and its code pins a version and pushes one."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from hawaii.__main__ import main
from hawaii.files.atomic import write_json
from hawaii.files.manifest import write_manifest
from hawaii.hub_cards.card import write_card
from hawaii.hub_cards.released_code import hash_code
from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.folders import PUBLISHED, uploaded
from hawaii.tests.tiny.models import FACTS


DOCUMENT = read("docs/publishing.md")
PUBLISH, CHECK, RELEASE = blocks(DOCUMENT, "bash")
PIN, PUSH = blocks(DOCUMENT, "python")
README_PIN = blocks(read("README.md"), "python")[1]
README_PUBLISH = next(block for block in blocks(read("README.md"), "bash") if "hawaii publish" in block)


@pytest.fixture
def place(hub_folder, tmp_path, monkeypatch):
    """The working directory, in which the run of the document is."""
    folder = shutil.copytree(hub_folder, tmp_path / "runs" / "easy_vqa" / "hub")
    write_json(folder / "training.json", FACTS)
    write_card(folder)
    write_manifest(folder, {}, left_out=["README.md"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block):
    return [line.split()[1:] for line in block.splitlines() if line.startswith("hawaii publish")]


def test_its_commands_publish_and_its_code_loads_and_pushes_the_version(place, hub):
    dry, upload, tag = commands(PUBLISH)
    assert main(dry) == 0 and hub.requests == []
    assert main(upload) == 0
    repository = hub.repositories["USER/NAME"]
    assert repository.private and uploaded(hub, "USER/NAME") == PUBLISHED
    commits = list(repository.commits)
    assert main(tag) == 0
    assert repository.commits == commits and repository.tags == {"v1.0": commits[-1].sha}

    hub.push("USER/NAME", {"modeling_hawaii.py": b"raise SystemExit('the main branch')"})
    pins = (PIN + README_PIN).replace("COMMIT", commits[-1].sha)
    code = "import sys\nsys.modules['hawaii'] = None\n" + pins + PUSH
    options = {"env": {**os.environ, **hub.environment, "HF_HOME": str(place / "home")}, "cwd": place, "timeout": 600}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert finished.returncode == 0, finished.stderr[-3000:]
    messages = [commit.message for commit in repository.commits[len(commits) :]]
    assert messages == ["by hand", "Upload HawaiiForConditionalGeneration", "Upload HawaiiProcessor"]
    assert uploaded(hub, "USER/NAME") == PUBLISHED - {"manifest.json"}


def test_the_commands_of_the_readme_publish_and_tag(place, hub):
    assert [main(command) for command in commands(README_PUBLISH)] == [0, 0]
    assert list(hub.repositories["USER/NAME"].tags) == ["v1.0"]


def test_its_command_shows_the_hashes_of_the_table(place):
    printed = subprocess.run(CHECK, shell=True, capture_output=True, text=True, check=True).stdout
    hashes = {line.split()[1].rpartition("/")[2]: line.split()[0] for line in printed.splitlines()}
    sources = {path.name: path.read_text() for path in (place / "runs/easy_vqa/hub").glob("*_hawaii.py")}
    assert hashes == hash_code(sources)


def test_the_target_of_a_release_exists():
    rule = rf"^{RELEASE.split()[1]}:.*\n\t.*-m hawaii.hub_cards.released_code$"
    assert re.search(rule, (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
