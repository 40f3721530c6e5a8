"""docs/concepts.md: its picture is current, and its numbers are the package's."""

import importlib.util
from xml.etree import ElementTree

from hawaii.configuration.configuration_hawaii import HawaiiVisionConfig
from hawaii.tests.documents import ROOT, read
from hawaii.training.objectives.hawaii import HawaiiOptions


DOCUMENT = read("docs/concepts.md")


def test_the_picture_is_what_its_program_draws():
    spec = importlib.util.spec_from_file_location("method_picture", ROOT / "docs" / "website" / "method_picture.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.draw() == read("docs/method.svg"), "run python docs/website/method_picture.py"
    picture = ElementTree.fromstring(program.draw())
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"fine-grained loss", "coarse-grained loss", "balance loss", "text loss", *program.TEACHERS} <= set(texts)


def test_its_numbers_are_the_defaults():
    options, vision = HawaiiOptions(), HawaiiVisionConfig()
    assert rf"$\lambda_1 = {options.lambda_1}$ and $\lambda_2 = {options.lambda_2}$" in DOCUMENT
    num_adapters = vision.num_teacher_adapters + vision.num_general_adapters
    assert f"({vision.num_patches} tokens of width {vision.hidden_size} for CLIP ViT-L/14-336)" in DOCUMENT
    assert f"together have {num_adapters * vision.lora_rank} columns" in DOCUMENT
    assert f"({num_adapters} adapters of rank\n{vision.lora_rank})" in DOCUMENT
