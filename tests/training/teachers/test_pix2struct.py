"""Pix2Struct's input equals its official processor's, and its grid follows the rows and columns of the patches."""

import pytest
import torch

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.teachers import (
    MAKE,
    load_expert,
    make_processor,
    official_features,
    pictures,
    random_images,
    save_expert,
)
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher
from hawaii.training.teachers.pix2struct import Pix2StructTeacher, flatten_patches


def make_teacher(image_size=24, **kwargs):
    return Pix2StructTeacher(TeacherConfig("expert", image_size=image_size, **kwargs), MAKE["pix2struct"]().encoder)


def test_a_patch_contains_its_pixels_row_by_row():
    pixels = torch.arange(16.0).view(1, 1, 4, 4)
    assert flatten_patches(pixels, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_the_channels_of_a_pixel_are_adjacent():
    pixels = torch.arange(8.0).view(1, 2, 2, 2)
    assert flatten_patches(pixels, 2).tolist() == [[[0, 4, 1, 5, 2, 6, 3, 7]]]


@pytest.mark.parametrize("side", [24, 17, 60])
def test_patches_equal_the_official_processors_without_padding(side):
    images = random_images(2, side)
    official = make_processor("pix2struct")(pictures(images), return_tensors="pt")
    patches = make_teacher().preprocess(images)
    torch.testing.assert_close(patches, official["flattened_patches"][:, :36], rtol=0, atol=1e-5)
    assert official["attention_mask"].tolist() == [[1.0] * 36 + [0.0] * 4] * 2


@pytest.mark.parametrize("side", [24, 17, 60])
def test_features_equal_the_official_models_at_their_rows_and_columns(side):
    teacher = make_teacher()
    complete = MAKE["pix2struct"]()
    complete.encoder.load_state_dict(teacher.model.state_dict())
    images = random_images(2, side)
    torch.testing.assert_close(teacher(images), official_features("pix2struct", complete, images), rtol=0, atol=2e-5)


def test_an_image_of_one_color_is_normalised_to_zero():
    images = torch.full((1, 3, 24, 24), 77, dtype=torch.uint8)
    patches = make_teacher().preprocess(images)
    assert (patches[..., 2:] == 0).all()
    official = make_processor("pix2struct")(pictures(images), return_tensors="pt")["flattened_patches"]
    assert torch.equal(patches, official[:, :36])


def test_each_image_is_normalised_separately():
    images = random_images(2)
    dark = torch.cat([images[:1] // 4, images[1:]])
    together = make_teacher().preprocess(dark)
    assert torch.equal(together[:1], make_teacher().preprocess(dark[:1]))
    assert torch.equal(together[1:], make_teacher().preprocess(images)[1:])


def test_the_grid_does_not_depend_on_the_order_of_patches():
    torch.manual_seed(0)
    teacher = make_teacher()
    images = random_images(2)
    features = teacher(images)
    shuffle = torch.randperm(36)
    patches = teacher.preprocess(images)[:, shuffle]
    teacher.order = shuffle.argsort()
    torch.testing.assert_close(teacher.features(patches), features)


def test_layer_selects_from_the_hidden_states():
    teacher = make_teacher(layer=1)
    images = random_images(2)
    patches = teacher.preprocess(images)
    with torch.no_grad():
        state = teacher.model(flattened_patches=patches, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(teacher(images), state.view(2, 6, 6, 16))
    with pytest.raises(UserError, match="Teacher expert has no layer 4: its layers are numbered from -4 to 3"):
        make_teacher(layer=4)


def test_the_grid_depends_on_the_image_size():
    assert make_teacher(28).grid == (7, 7, 16)
    with pytest.raises(
        UserError, match="is unknown: its patches of 4 pixels do not cover 30 pixels. Set its image_size"
    ):
        make_teacher(30)


def test_the_default_size_has_the_official_number_of_patches(tmp_path):
    save_expert("pix2struct", tmp_path)
    teacher = load_teacher(TeacherConfig(str(tmp_path)))
    assert teacher.image_size == 45 * 4
    assert teacher.grid == (45, 45, 16)


@pytest.mark.parametrize("field", ["image_mean", "image_std"])
def test_a_normalisation_in_the_recipe_is_an_error(tmp_path, field):
    save_expert("pix2struct", tmp_path)
    with pytest.raises(UserError, match="is a Pix2Struct, .*: remove image_mean and image_std"):
        load_expert("pix2struct", tmp_path, **{field: [0.5] * 3})


def test_rows_and_columns_are_exact_in_half_precision():
    teacher = Pix2StructTeacher(TeacherConfig("expert", image_size=180), MAKE["pix2struct"]().encoder.bfloat16())
    assert teacher.preprocess(random_images(1))[0, -1, :2].tolist() == [45, 45]
