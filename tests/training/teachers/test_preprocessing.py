"""Preprocessing on the device equals the official image processor's for square images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import fill, make_processor
from hawaii.tests.tiny.teachers import MAKE, OFFICIAL, load_expert, pictures, random_images, save_expert
from hawaii.tests.tiny.teachers import make_processor as make_image_processor
from hawaii.tests.tiny.training import make_dataset, make_record, save_data, save_image_processor
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher
from hawaii.training.teachers.teacher import Teacher, resize_images


FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def make_vit():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )
    return fill(ViTModel(config, add_pooling_layer=False))


def save(folder, image_size=16, **kwargs):
    make_vit().save_pretrained(folder)
    save_image_processor(folder, image_size, **kwargs)
    return str(folder)


def resize_with_pillow(images, size, resample):
    resized = [picture.resize((size, size), FILTERS[resample]) for picture in pictures(images)]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in resized]).float()


def official_pixels(folder, images):
    return AutoImageProcessor.from_pretrained(folder)(pictures(images), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize(("side", "size"), [(11, 16), (32, 16), (45, 16), (16, 32), (128, 42), (112, 84), (56, 128)])
def test_images_are_resized_like_pillow(side, size, resample):
    images = random_images(2, side)
    difference = (resize_images(images, size, resample) - resize_with_pillow(images, size, resample)).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("resample", FILTERS)
def test_resized_values_are_integers_from_0_to_255(resample):
    stripes = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    stripes[..., ::3] = 255
    levels = resize_images(stripes, 13, resample)
    assert levels.min() >= 0 and levels.max() <= 255
    assert torch.equal(levels, levels.round())


@pytest.mark.parametrize("resample", FILTERS)
def test_an_image_of_the_right_size_is_unchanged(resample):
    images = random_images()
    assert torch.equal(resize_images(images, 24, resample), images.float())


@pytest.mark.parametrize("image_size", [16, 24])
def test_preprocessing_equals_the_official_processors_at_its_size(tmp_path, image_size):
    folder = save(tmp_path, image_size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    teacher = load_teacher(TeacherConfig(folder, image_size=image_size))
    images = random_images(3, image_size)
    torch.testing.assert_close(teacher.preprocess(images), official_pixels(folder, images), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "pix2struct"])
def test_resized_input_differs_by_at_most_two_levels(tmp_path, name):
    save_expert(name, tmp_path)
    teacher = load_expert(name, tmp_path)
    assert teacher.resample == ("bicubic" if name in ("clip", "radio") else "bilinear")
    for side, allowed in [(24, 0), (61, 2), (17, 2)]:
        images = random_images(3, side)
        official = make_image_processor(name)(pictures(images), return_tensors="pt")["pixel_values"]
        levels = ((teacher.preprocess(images) - official) * teacher.std).abs()
        assert levels.max() < allowed + 1e-3, side
        # DINOv3's processor does not round to integers.
        assert (levels > 0.5).float().mean() < 0.02 or name == "dinov3"


@pytest.mark.parametrize("number", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_the_filter_comes_from_the_processor(tmp_path, number):
    teacher = load_teacher(TeacherConfig(save(tmp_path, resample=number)))
    assert FILTERS[teacher.resample] == number


def test_an_unsupported_filter_must_be_replaced_in_the_recipe(tmp_path):
    folder = save(tmp_path, resample=Image.Resampling.LANCZOS)
    with pytest.raises(UserError, match="resizes with 1, which .*: set resample to one of bilinear, bicubic"):
        load_teacher(TeacherConfig(folder))
    assert load_teacher(TeacherConfig(folder, resample="bilinear")).resample == "bilinear"


def test_normalisation_comes_from_the_processor_and_size_from_the_configuration(tmp_path):
    folder = save(tmp_path, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    teacher = load_teacher(TeacherConfig(folder))
    np.testing.assert_allclose(teacher.mean.flatten() / 255, [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(teacher.std.flatten() / 255, [0.4, 0.5, 0.6], rtol=1e-6)
    assert teacher.image_size == 16


@pytest.mark.parametrize("do_normalize", [False, True])
def test_pixels_are_only_normalised_if_the_processor_does(tmp_path, do_normalize):
    folder = save(tmp_path, do_normalize=do_normalize)
    images = random_images(2, 16)
    official = official_pixels(folder, images)
    assert (official.min() >= 0) == (not do_normalize)
    torch.testing.assert_close(load_teacher(TeacherConfig(folder)).preprocess(images), official, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rescale_factor": 1 / 127.5}, r"x multiplies pixels by 0.00784314, but .* from zero to one"),
        ({"do_rescale": False}, "x multiplies pixels by 1, but"),
        ({"do_flip_channel_order": True}, "x reverses the channels, but teachers receive red, green and blue"),
    ],
)
def test_an_unsupported_processor_must_be_replaced_by_the_recipes_normalisation(tmp_path, options, problem):
    folder = save(tmp_path / "x", **options)
    with pytest.raises(UserError, match=f"The image processor of teacher .*{problem}.*: set image_mean and"):
        load_teacher(TeacherConfig(folder, image_mean=[0.0] * 3))
    assert load_teacher(TeacherConfig(folder, image_mean=[0.0] * 3, image_std=[1.0] * 3)).grid == (4, 4, 16)


def test_without_a_processor_the_recipe_must_define_everything(tmp_path):
    make_vit().save_pretrained(tmp_path)
    normalization = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with pytest.raises(
        UserError, match="The image processor of .* could not be read .set image_size, image_mean, image_std and res"
    ):
        load_teacher(TeacherConfig(str(tmp_path), **normalization))
    assert load_teacher(TeacherConfig(str(tmp_path), **normalization, resample="bicubic")).grid == (4, 4, 16)


@pytest.mark.parametrize("kind", ["DINOv3ViTImageProcessor", "DINOv3ViTImageProcessorFast"])
def test_a_processor_that_needs_torchvision_is_read_without_it(tmp_path, kind):
    normalization = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    folder = save(tmp_path)
    fields = {"image_processor_type": kind, "size": {"height": 16, "width": 16}, **normalization}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    teacher = load_teacher(TeacherConfig(folder))
    assert teacher.resample == "bilinear"
    np.testing.assert_allclose(teacher.mean.flatten() / 255, normalization["image_mean"], rtol=1e-6)
    np.testing.assert_allclose(teacher.std.flatten() / 255, normalization["image_std"], rtol=1e-6)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**fields, "image_mean": None}))
    with pytest.raises(
        UserError, match="normalises images but defines no mean or deviation: set image_mean and image_std"
    ):
        load_teacher(TeacherConfig(folder))


@pytest.mark.parametrize(("is_cropped", "size"), [(True, 32), (False, 64)])
def test_the_crop_size_only_counts_if_the_processor_crops(tmp_path, is_cropped, size):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    fill(ResNetModel(config)).save_pretrained(tmp_path)
    size_before_crop, crop = ({"height": side, "width": side} for side in (64, 32))
    CLIPImageProcessor(size=size_before_crop, crop_size=crop, do_center_crop=is_cropped).save_pretrained(tmp_path)
    assert official_pixels(tmp_path, random_images(1, 64)).shape[-1] == size
    assert load_teacher(TeacherConfig(str(tmp_path))).image_size == size


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_preprocessing_is_in_float32_whatever_the_models_precision(tmp_path, dtype):
    # Half precision represents integers from 0 to 255 exactly, but not the values between them.
    folder = save(tmp_path)
    images = random_images(2, 40)
    half = load_teacher(TeacherConfig(folder, dtype=dtype)).preprocess(images)
    assert half.dtype == getattr(torch, dtype)
    assert torch.equal(half, load_teacher(TeacherConfig(folder)).preprocess(images).to(half.dtype))


def test_each_image_is_decoded_once_for_student_and_teachers(tmp_path, monkeypatch):
    processor = make_processor()
    dataset = make_dataset(save_data(tmp_path, [make_record(0), make_record(1, image=False)]), processor)
    opened, decoded = [], []
    open_image, get_decoder = Image.open, Image._getdecoder
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args) or open_image(*args))
    monkeypatch.setattr(Image, "_getdecoder", lambda *args: decoded.append(args[1]) or get_decoder(*args))
    assert {"pixel_values", "teacher_images"} <= set(dataset[0])
    assert (len(opened), decoded.count("zip")) == (1, 1)  # the compressed data of a PNG
    assert "teacher_images" not in dataset[1]
    assert (len(opened), decoded.count("zip")) == (1, 1)


@pytest.mark.parametrize("name", MAKE)
def test_preprocessing_leaves_the_shared_images_unchanged(tmp_path, name):
    save_expert(name, tmp_path)
    teacher = load_expert(name, tmp_path)
    assert isinstance(teacher, Teacher)
    images = random_images(2, 40)
    before = images.clone()
    assert len(teacher.preprocess(images)) == 2
    assert torch.equal(images, before)  # the next teacher reads them, too
