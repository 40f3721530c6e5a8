"""Teachers: frozen, shown what their own image processor would show them, and read as the grid that they see."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SamVisionConfig,
    SamVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from hawaii.tests.tiny import fill
from hawaii.tests.tiny_training import save_image_processor
from hawaii.training.teachers import Teacher, TeacherConfig, load_teacher, load_teachers


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}


def make_vit():
    return fill(ViTModel(ViTConfig(**SIZES), add_pooling_layer=False))


def make_convnext():
    return fill(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2)))


def make_registers():
    return fill(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3)))


def make_siglip():
    return fill(SiglipVisionModel(SiglipVisionConfig(**SIZES)))


def make_swin():
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    return fill(SwinModel(config))


def make_sam():
    config = SamVisionConfig(**SIZES, output_channels=8, window_size=2, mlp_dim=32, global_attn_indexes=[0])
    return fill(SamVisionModel(config))


def make_teacher(model, image_size=16, **kwargs):
    return Teacher("expert", model, image_size, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], **kwargs)


def random_images(num_images=2, side=16):
    return torch.randint(256, (num_images, 3, side, side), dtype=torch.uint8)


def save(model, folder, image_size=16, **kwargs):
    model.save_pretrained(folder)
    save_image_processor(folder, image_size, **kwargs)
    return str(folder)


@pytest.mark.parametrize(
    ("make", "layer", "shape"),
    [
        (make_vit, None, (4, 4, 16)),
        (make_vit, -2, (4, 4, 16)),
        (make_registers, None, (4, 4, 16)),
        (make_siglip, None, (4, 4, 16)),
        (make_convnext, None, (4, 4, 12)),
        (make_convnext, -2, (8, 8, 8)),
        (make_swin, -1, (4, 4, 16)),
        (make_sam, None, (4, 4, 8)),
    ],
    ids=["vit", "vit_layer", "registers", "siglip", "convnext", "convnext_layer", "swin", "sam"],
)
def test_features_are_a_grid(make, layer, shape):
    teacher = make_teacher(make(), layer=layer)
    assert teacher.grid == shape
    assert teacher(random_images(3)).shape == (3, *shape)


def test_class_token_and_registers_are_no_cells():
    model = make_registers()
    teacher = make_teacher(model)
    images = random_images()
    with torch.no_grad():
        tokens = model(teacher.preprocess(images)).last_hidden_state  # class token, 3 registers, 16 patches
    assert torch.equal(teacher(images), tokens[:, 4:].view(2, 4, 4, 16))


def test_a_vision_transformers_cell_is_its_patch():
    model = make_vit()
    teacher = make_teacher(model)
    images = random_images()
    with torch.no_grad():
        tokens = model(teacher.preprocess(images)).last_hidden_state
    grid = teacher(images)
    for row in range(4):
        for column in range(4):
            assert torch.equal(grid[:, row, column], tokens[:, 1 + 4 * row + column])


def test_a_layer_is_that_of_the_models_hidden_states():
    model = make_vit()
    teacher = make_teacher(model, layer=-2)
    images = random_images()
    with torch.no_grad():
        tokens = model(teacher.preprocess(images), output_hidden_states=True).hidden_states[1]
    assert torch.equal(teacher(images), tokens[:, 1:].view(2, 4, 4, 16))


@pytest.mark.parametrize("make", [make_convnext, make_sam])
def test_maps_are_channels_first(make):
    model = make()
    teacher = make_teacher(model)
    images = random_images()
    with torch.no_grad():
        features = model(teacher.preprocess(images)).last_hidden_state
    assert torch.equal(teacher(images)[0, 1, 2], features[0, :, 1, 2])


@pytest.mark.parametrize(("make", "layer"), [(make_vit, None), (make_convnext, None), (make_swin, -1)])
def test_what_changes_at_a_place_changes_most_there(make, layer):
    teacher = make_teacher(make(), layer=layer)
    images = random_images(1)
    side = teacher.grid[0]
    cell = 16 // side
    for row, column in [(0, 1), (side - 1, 0), (side - 2, side - 1)]:
        changed = images.clone()
        changed[..., row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] ^= 255
        difference = (teacher(changed) - teacher(images)).square().sum(dim=-1)
        assert divmod(difference.argmax().item(), side) == (row, column)


def test_a_teacher_is_frozen():
    teacher = make_teacher(make_vit().train())
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not isinstance(teacher, torch.nn.Module)


def test_features_carry_no_gradient_and_keep_nothing_for_one():
    teacher, enabled = make_teacher(make_vit()), []
    teacher.model.register_forward_hook(lambda *args: enabled.append(torch.is_grad_enabled()))
    assert not teacher(random_images()).requires_grad
    assert enabled == [False]


@pytest.mark.parametrize("image_size", [16, 24])
def test_preprocessing_is_its_own_processors_for_an_image_of_its_size(tmp_path, image_size):
    folder = save(make_vit(), tmp_path, image_size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    teacher = load_teacher(TeacherConfig(folder, image_size=image_size))
    images = random_images(3, image_size)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    own = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(teacher.preprocess(images), own, rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [11, 32, 45])
def test_resizing_differs_from_its_own_processors_by_the_rounding_to_bytes(tmp_path, side):
    # The processor rounds to bytes after each of its two passes, the teacher does not. Far from black and white, where
    # the processor's first pass would be cut off too.
    folder = save(make_vit(), tmp_path, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    images = random_images(2, side) // 3 + 85
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    own = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    difference = (load_teacher(TeacherConfig(folder)).preprocess(images) - own).abs() * 255
    assert difference.max() < 1.5
    assert difference.mean() < 0.5


def test_resized_values_stay_those_of_an_image():
    stripes = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    stripes[..., ::2] = 255
    teacher = Teacher("expert", make_vit(), 16, [0.0] * 3, [1.0] * 3)
    pixels = teacher.preprocess(stripes)
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_the_processors_normalisation_and_the_configurations_size_are_the_defaults(tmp_path):
    folder = save(make_vit(), tmp_path, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    teacher = load_teacher(TeacherConfig(folder))
    np.testing.assert_allclose(teacher.mean.flatten() / 255, [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(teacher.std.flatten() / 255, [0.4, 0.5, 0.6], rtol=1e-6)
    assert teacher.image_size == 16


@pytest.mark.parametrize("do_normalize", [False, True])
def test_pixels_are_normalised_where_the_own_processor_does(tmp_path, do_normalize):
    folder = save(make_vit(), tmp_path, do_normalize=do_normalize)
    images = random_images()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    own = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    assert (own.min() >= 0) == (not do_normalize)
    torch.testing.assert_close(load_teacher(TeacherConfig(folder)).preprocess(images), own, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rescale_factor": 1 / 127.5}, r"x multiplies pixels by 0.00784314, where .* from zero to one"),
        ({"do_rescale": False}, "x multiplies pixels by 1, where"),
        ({"do_flip_channel_order": True}, "x turns the channels round, where teachers are shown red, green and blue"),
    ],
)
def test_a_processor_that_does_something_else_needs_the_recipes_normalisation(tmp_path, options, problem):
    folder = save(make_vit(), tmp_path / "x", **options)
    with pytest.raises(ValueError, match=f"The image processor of teacher .*{problem}.*: give it image_mean and"):
        load_teacher(TeacherConfig(folder, image_mean=[0.0] * 3))
    assert load_teacher(TeacherConfig(folder, image_mean=[0.0] * 3, image_std=[1.0] * 3)).grid == (4, 4, 16)


def test_where_the_configuration_knows_no_size_the_image_processor_does(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    teacher = load_teacher(TeacherConfig(save(fill(ResNetModel(config)), tmp_path, image_size=32)))
    assert teacher.image_size == 32
    assert teacher.grid == (4, 4, 16)


def test_what_the_recipe_says_comes_first(tmp_path):
    folder = save(make_vit(), tmp_path)
    fields = {"checkpoint": folder, "name": "eye", "image_size": 32, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    teacher = load_teacher(TeacherConfig.parse({**fields, "layer": -2, "dtype": "bfloat16"}))
    assert (teacher.name, teacher.image_size, teacher.layer) == ("eye", 32, -2)
    assert teacher.grid == (8, 8, 16)  # position embeddings are interpolated
    assert teacher(random_images(1, 32)).dtype == torch.bfloat16
    torch.testing.assert_close(
        teacher.preprocess(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)).max().item(), 1.0
    )


def test_a_teacher_is_called_as_its_folder():
    assert TeacherConfig.parse("experts/vit/").name == TeacherConfig("experts/vit").name == "vit"
    assert TeacherConfig.parse({"checkpoint": "google/vit-base"}).name == "vit-base"


def test_weights_arrive(tmp_path):
    model = make_convnext()
    teacher = load_teacher(TeacherConfig(save(model, tmp_path)))
    images = random_images()
    features = model(teacher.preprocess(images)).last_hidden_state.permute(0, 2, 3, 1)
    torch.testing.assert_close(teacher(images), features, rtol=0, atol=0)


def test_of_a_clip_the_image_half_teaches(tmp_path):
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 8,
    }
    clip = fill(CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text)))
    teacher = load_teacher(TeacherConfig(save(clip, tmp_path), layer=-2))
    images = random_images()
    states = clip.vision_model(teacher.preprocess(images), output_hidden_states=True).hidden_states
    assert torch.equal(teacher(images), states[-2][:, 1:].view(2, 4, 4, 16))


def test_missing_weights_are_an_error(tmp_path):
    # A folder of one layer that says it has two.
    model = make_vit()
    del model.layers[1]
    folder = save(model, tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its ViTModel .*it would teach noise. Save it"):
        load_teacher(TeacherConfig(folder))


def test_a_pooler_that_was_not_saved_is_none_of_the_features(tmp_path):
    assert load_teacher(TeacherConfig(save(make_vit(), tmp_path))).grid == (4, 4, 16)


@pytest.mark.parametrize(
    ("make", "image_size", "layer", "problem"),
    [
        (make_swin, 16, None, "gives 16 tokens, which is neither 8 x 8"),
        (make_sam, 16, -1, "gives 4 x 4 x 16, where channels x side x side would be a map"),
        (make_siglip, 18, None, "gives 16 tokens for an image of 18 pixels, and its patch size is 4"),
    ],
    ids=["swin", "sam_layer", "not_a_multiple"],
)
def test_an_unknown_grid_is_an_error_that_names_teacher_and_way_out(make, image_size, layer, problem):
    with pytest.raises(
        ValueError, match=f"The grid of teacher expert .* is unknown: it {problem}.*Give it an image_size"
    ):
        make_teacher(make(), image_size, layer=layer)


def test_a_layer_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="Teacher expert has no layer 3: its layers go from -3 to 2"):
        make_teacher(make_vit(), layer=3)


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
        ({"checkpoint": "x", "name": ""}, "The name of teacher x is ''; .* Give it one"),
        ("experts/student", "name of teacher experts/student is 'student'; .* not use already .student, coarse."),
        ({"checkpoint": "x", "name": "coarse"}, "The name of teacher x is 'coarse'"),
        ({"checkpoint": "x", "image_size": "16"}, "The image_size of teacher x is '16'; it must be a whole number"),
        ({"checkpoint": "x", "layer": 1.5}, "The layer of teacher x is 1.5; it must be a whole number"),
        ({"checkpoint": "x", "image_mean": [0.5]}, r"The image_mean of teacher x is \[0.5\]; it must be a list of 3"),
        ({"checkpoint": "x", "image_std": 0.5}, "The image_std of teacher x is 0.5; it must be a list of 3 numbers"),
        ({"checkpoint": "x", "dtype": "half"}, "dtype of teacher x is 'half'; it must be one of float32, bfloat16"),
    ],
)
def test_a_teacher_that_no_recipe_can_mean_is_an_error(value, problem):
    with pytest.raises(ValueError, match=problem):
        TeacherConfig.parse(value)


def test_two_teachers_of_one_name_are_an_error():
    configs = [TeacherConfig.parse("timm/model"), TeacherConfig.parse("facebook/model")]
    with pytest.raises(ValueError, match="Two teachers are called model; give each a name of its own"):
        load_teachers(configs)


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"There is no teacher .*nowhere: name a folder or a hub id"):
        load_teacher(TeacherConfig(str(tmp_path / "nowhere")))
