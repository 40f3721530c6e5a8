"""A student starts to read tiles, stops, or continues with those of the model that it starts from."""

import pytest
import torch

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_model, make_processor
from hawaii.tests.tiny.students import data_args
from hawaii.training.recipes.arguments import ModelArguments
from hawaii.training.students.processor import adapt_processor
from hawaii.training.students.student import set_tiles
from hawaii.training.students.trainable import part_of, set_trainable


PINPOINTS = [[16, 32], [32, 16]]


def newline_names(model):
    return [name for name, _ in model.named_parameters() if "newline" in name]


def test_only_a_student_with_tiles_has_a_newline():
    student = make_model()
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    assert newline_names(student) == []
    set_tiles(student, PINPOINTS)
    assert newline_names(student) == ["model.image_newline"] and student.config.image_grid_pinpoints == PINPOINTS
    newline = student.model.image_newline.detach().clone()
    set_tiles(student, [[32, 32]])
    assert torch.equal(student.model.image_newline, newline)  # other grids continue with what was learned
    set_tiles(student, None)
    assert newline_names(student) == [] and student.config.image_grid_pinpoints is None
    assert all(torch.equal(before[name], parameter) for name, parameter in student.named_parameters())


def test_a_new_newline_has_the_scale_of_llava_next_and_the_type_of_the_projector():
    torch.manual_seed(0)
    student = make_model(text={"hidden_size": 1024, "intermediate_size": 16}).bfloat16()
    set_tiles(student, PINPOINTS)
    newline = student.model.image_newline.detach()
    assert newline.dtype == torch.bfloat16
    assert newline.float().std() == pytest.approx(1024**-0.5, rel=0.1)


def test_the_newline_learns_with_the_projector():
    student = make_model()
    set_tiles(student, PINPOINTS)
    assert part_of("model.image_newline") == "projector"
    set_trainable(student, ["projector"])
    assert student.model.image_newline.requires_grad
    set_trainable(student, ["language_model"])
    assert not student.model.image_newline.requires_grad


@pytest.mark.parametrize(
    ("option", "expected"), [(None, [[32, 32]]), ([], None), (PINPOINTS, PINPOINTS), ([(16, 32)], [[16, 32]])]
)
def test_a_stage_keeps_drops_or_replaces_the_tiles_it_starts_with(option, expected):
    processor = make_processor()
    processor.image_processor.image_grid_pinpoints = [[32, 32]]
    arguments = data_args(image_grid_pinpoints=option, chat_template="vicuna_v1")
    adapted = adapt_processor(processor, ModelArguments(vision_config={}, text_config={}, tokenizer="none"), arguments)
    assert adapted.image_grid_pinpoints == expected


def test_tiles_that_are_no_multiples_of_the_square_are_refused():
    arguments = data_args(image_grid_pinpoints=[[20, 40]], chat_template="vicuna_v1")
    model_args = ModelArguments(vision_config={}, text_config={}, tokenizer="none")
    with pytest.raises(UserError, match=r"image_grid_pinpoints is \[\[20, 40\]\]; .* multiples of 16"):
        adapt_processor(make_processor(image_size=16), model_args, arguments)
