"""Tests of the commands in docs/space.md."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from huggingface_hub.cli.hf import main as hf
from PIL import Image

from hawaii.__main__ import build_parser
from hawaii.hub_cards.space.hawaii_space.pictures import LARGEST_AREA, LARGEST_FILE
from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.tiny.answers import make_parrot
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_image


DOCUMENT = read("docs/space.md")
LOCAL, UPLOAD, APP, SCREENSHOT = blocks(DOCUMENT, "bash")


def test_the_commands_of_the_demo_are_understood():
    installing, *commands = map(shlex.split, LOCAL.splitlines())
    assert installing == ["pip", "install", "hawaii-vlm[space]"]
    for program, *words in commands:
        assert (program, build_parser().parse_args(words).handler) == ("hawaii", "figures.demo:demo")


def test_the_hubs_commands_and_their_options_exist(monkeypatch, capsys):
    for program, *words in map(shlex.split, UPLOAD.splitlines()):
        assert program == "hf"
        command = words[: 2 if words[0] == "repos" else 1]
        monkeypatch.setattr(sys, "argv", [program, *command, "--help"])
        with pytest.raises(SystemExit):
            hf()
        described = capsys.readouterr().out
        options = [word for word in words if word.startswith("--")]
        assert options and all(option in described for option in options)
    assert (ROOT / words[2] / "README.md").is_file()


def test_the_app_is_there_and_reads_the_variable():
    variable, python, app = APP.split()
    assert python == "python"
    assert f'"{variable.partition("=")[0]}"' in (ROOT / app).read_text(encoding="utf-8")


def test_the_document_states_the_limits_of_a_picture():
    assert f"{LARGEST_FILE >> 20} MB and {LARGEST_AREA // 10**6} million pixels" in DOCUMENT


@pytest.mark.browser
@pytest.mark.slow
def test_the_screenshot_is_made_by_its_command(tmp_path):
    run = tmp_path / "runs/easy_vqa"
    make_parrot("red").save_pretrained(run / "hub")
    make_processor().save_pretrained(run / "hub")
    (run / "hub/training.json").write_text(json.dumps({"name": "easy_vqa", "stages": {}}))
    (run / "data/images/test").mkdir(parents=True)
    make_image(0).save(run / "data/images/test/3.png")
    making, (_, script, *arguments) = map(shlex.split, SCREENSHOT.splitlines())
    assert making == ["make", ".venv-space/installed"]
    (tmp_path / "docs").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / script), *arguments]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    with Image.open(tmp_path / "docs/space.png") as made, Image.open(ROOT / "docs/space.png") as shown:
        assert made.size[0] == shown.size[0]
