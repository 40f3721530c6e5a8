"""A published processor and its image processor give the same inputs in both versions of transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoImageProcessor, AutoTokenizer

from hawaii import HawaiiProcessor
from hawaii.tests.processing.use_processor import describe
from hawaii.tests.tiny.models import make_processor


ROOT = Path(__file__).parents[2]
TRANSFORMERS_4 = Path(os.environ.get("HAWAII_TRANSFORMERS4_PYTHON", ROOT / ".venv-transformers4" / "bin" / "python"))
PYTHONS = {"4.": TRANSFORMERS_4, "5.": sys.executable}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "processor"
    processor = make_processor()
    processor.tokenizer.init_kwargs |= {"is_local": True, "local_files_only": True}
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=PYTHONS)
def published(request, folder, tmp_path_factory):
    """The findings of `use_processor.py`, in a process with a separate home and module path."""
    output = tmp_path_factory.mktemp("output")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(output / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [PYTHONS[request.param], Path(__file__).with_name("use_processor.py"), folder, output / "again"]
    finished = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-4000:]
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["version"].startswith(request.param)
    return report


@pytest.fixture(scope="module")
def expected(folder):
    parts = (HawaiiProcessor.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder))
    return json.loads(json.dumps(describe(*parts, AutoTokenizer.from_pretrained(folder))))


def test_every_auto_class_finds_the_code_of_the_folder(published):
    assert published["classes"] == ["HawaiiProcessor", "HawaiiImageProcessor", "HawaiiImageProcessor"]


def test_the_inputs_are_those_of_the_package_before_and_after_saving_again(published, expected):
    assert published["reports"] == [expected, expected]


def test_the_image_processor_alone_gives_the_pixels_of_the_processor(expected):
    assert expected["image processor"] == expected["images"]


def test_the_answers_are_masked_and_the_images_have_their_type(expected):
    assert expected["masked"] == "a red circle </s> a red circle </s>"
    ids, types, masks = (expected["inputs"][name] for name in ("input_ids", "mm_token_type_ids", "assistant_masks"))
    image_token_id = make_processor().image_token_id
    assert types == [[int(token == image_token_id) for token in row] for row in ids]
    assert [sum(row) for row in types] == [32, 16] and [sum(row) for row in masks] == [12, 4]


def test_the_tokenizer_alone_pads_as_the_processor(expected):
    assert expected["padding"] == ["left", "left"]


def test_the_tokenizer_does_not_say_where_it_was_loaded_from(folder):
    values = json.loads((folder / "tokenizer_config.json").read_text())
    assert not values.keys() & {"is_local", "local_files_only"}
