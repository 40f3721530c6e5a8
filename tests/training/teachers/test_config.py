"""Valid options of a teacher are parsed, invalid ones are errors."""

import pytest

from hawaii.files.user_error import UserError
from hawaii.training.teachers.config import TeacherConfig


def test_the_default_name_is_the_last_part_of_the_checkpoint():
    assert TeacherConfig.parse("experts/vit/").name == TeacherConfig("experts/vit").name == "vit"
    assert TeacherConfig.parse({"checkpoint": "google/vit-base"}).name == "vit-base"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            {"checkpoint": "x", "image_sise": 3},
            "has no field 'image_sise'.*Its fields are checkpoint, name, image_size",
        ),
        ({"name": "x"}, "needs a checkpoint"),
        (None, "A teacher is None; it must be a checkpoint or a mapping of checkpoint, name, image_size"),
        (3, "A teacher is 3; it must be a checkpoint or a mapping"),
        ({"checkpoint": 3}, "The checkpoint of a teacher is 3; it must be the folder or hub id of a model"),
        ({"checkpoint": ""}, "The checkpoint of a teacher is ''"),
        ({3: 4, "a": 5}, "A teacher has no field 3"),
        ({"checkpoint": "x", "name": 2024}, "The name of teacher x is 2024; it must be text"),
        ({"checkpoint": "x", "name": ""}, "The name of teacher x is ''; .* Set its name"),
        (
            "experts/student",
            "name of teacher experts/student is 'student'; .* none of the names that the log uses .student, coarse.",
        ),
        ({"checkpoint": "x", "name": "coarse"}, "The name of teacher x is 'coarse'"),
        ({"checkpoint": "x", "image_size": "16"}, "The image_size of teacher x is '16'; it must be a whole number"),
        ({"checkpoint": "x", "image_size": 0}, "The image_size of teacher x is 0; it must be 1 or more"),
        ({"checkpoint": "x", "layer": 1.5}, "The layer of teacher x is 1.5; it must be a whole number"),
        ({"checkpoint": "x", "image_mean": [0.5]}, r"The image_mean of teacher x is \[0.5\]; it must be a list of 3"),
        ({"checkpoint": "x", "image_std": 0.5}, "The image_std of teacher x is 0.5; it must be a list of 3 numbers"),
        ({"checkpoint": "x", "image_mean": [0.5, 0.5, True]}, "image_mean of teacher x is .*; it must be a list of 3"),
        (
            {"checkpoint": "x", "image_std": [0.5, 0.5, float("nan")]},
            "The image_std of .*nan.; it must be a list of 3",
        ),
        (
            {"checkpoint": "x", "image_std": [0.5, 0.0, 0.5]},
            r"image_std of teacher x is \[.*\]; each must be more than 0",
        ),
        ({"checkpoint": "x", "resample": "nearest"}, "The resample of teacher x is 'nearest'; .* bicubic, bilinear"),
        ({"checkpoint": "x", "dtype": "half"}, "dtype of teacher x is 'half'; it must be one of float32, bfloat16"),
    ],
)
def test_an_invalid_option_is_an_error_that_names_it(value, problem):
    with pytest.raises(UserError, match=problem):
        TeacherConfig.parse(value)
