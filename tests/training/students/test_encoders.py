"""A HAWAII encoder is a starting point that keeps its weights, and a teacher."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hawaii import HawaiiProcessor, HawaiiVisionModel
from hawaii.tests.tiny.encoders import save_encoder_folder, write_encoder_recipe
from hawaii.tests.tiny.models import VISION
from hawaii.tests.tiny.students import data_args
from hawaii.tests.tiny.training import TEXT, save_tokenizer, write_recipe
from hawaii.training.counting.recipes import describe_recipe
from hawaii.training.recipes.arguments import ModelArguments
from hawaii.training.recipes.objectives import OBJECTIVES
from hawaii.training.students.encoders import warn_of_other_teachers
from hawaii.training.students.student import build_student
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher
from hawaii.training.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published encoder with adapters for two teachers and random values."""
    folder = tmp_path_factory.mktemp("encoders") / "hub"
    save_encoder_folder(folder)
    return folder


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """The same encoder without adapters, as after training with RADIO."""
    folder = tmp_path_factory.mktemp("encoders") / "plain"
    save_encoder_folder(folder, num_teacher_adapters=0, num_general_adapters=0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def build(
    folder, tokenizer, objective="hawaii", num_teachers=2, vision_config=None, text_config=TEXT, dtype="float32"
):
    args = ModelArguments(
        vision_tower=str(folder),
        vision_config=vision_config,
        text_config=text_config,
        tokenizer=tokenizer,
        dtype=dtype,
    )
    return build_student(args, data_args(), num_teachers, objective)


def weights_of(folder, prefix=""):
    weights = load_file(folder / "model.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []


@pytest.mark.parametrize("objective", ["hawaii", "llava", "radio"])
def test_a_complete_student_has_its_weights_adapters_and_routers_with_every_objective(folder, tokenizer, objective):
    student, _ = build(folder, tokenizer, objective, num_teachers=0 if objective == "llava" else 2)
    assert_equal(dict(student.model.vision_tower.state_dict()), weights_of(folder))
    vision = student.config.vision_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters) == (2, 3)
    for name, parameter in student.named_parameters():
        assert not parameter.is_meta and parameter.isfinite().all(), name


def test_its_image_processor_is_used(folder, tokenizer):
    _, processor = build(folder, tokenizer)
    assert tuple(processor.image_processor.image_mean) == (0.1, 0.2, 0.3)
    assert tuple(processor.image_processor.image_std) == (0.4, 0.5, 0.6)
    assert processor.image_processor.size == {"height": 16, "width": 16} and processor.patch_size == 4


def test_it_gets_the_precision_of_the_recipe(folder, tokenizer):
    student, _ = build(folder, tokenizer, dtype="bfloat16")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


def test_it_can_be_trained_without_a_language_model(folder):
    student, processor = build(folder, tokenizer=None, text_config=None)
    assert_equal(dict(student.state_dict()), weights_of(folder))
    assert tuple(processor.image_processor.image_mean) == (0.1, 0.2, 0.3)


def test_an_encoder_without_adapters_gets_new_ones_that_add_nothing(plain_folder, tokenizer):
    student, _ = build(plain_folder, tokenizer, vision_config={"num_general_adapters": 1, "lora_rank": 2})
    tower = student.model.vision_tower
    assert tower.layers[0].feed_forward.adapters.down.shape == (3, 2, 32)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = HawaiiVisionModel.from_pretrained(plain_folder)(images).last_hidden_state
        assert torch.equal(tower(images).last_hidden_state, expected)
    assert not build(plain_folder, tokenizer, "radio", vision_config={"num_general_adapters": 1})[
        0
    ].config.vision_config.num_general_adapters


def test_fields_that_equal_the_encoders_are_accepted(folder, tokenizer):
    student, _ = build(folder, tokenizer, vision_config={**VISION, "num_general_adapters": 3})
    assert student.config.vision_config.lora_rank == VISION["lora_rank"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"lora_rank": 8},
            "lora_rank is 8 in the recipe's vision_config and 4 in the encoder .*hub that it starts from",
        ),
        ({"hidden_size": 64}, "hidden_size is 64 in the recipe's vision_config and 32 in"),
        ({"num_general_adapters": 1}, "num_general_adapters is 1 in the recipe's vision_config and 3 in"),
        ({"num_teacher_adapters": 0}, "num_teacher_adapters is 0 in the recipe's vision_config and 2 in"),
        ({"router_hidden_size": None}, "router_hidden_size is None in the recipe's vision_config and 8 in"),
    ],
)
def test_fields_that_differ_from_the_encoders_are_an_error(folder, tokenizer, fields, problem):
    with pytest.raises(ValueError, match=problem):
        build(folder, tokenizer, vision_config=fields)


def test_a_damaged_encoder_is_an_error(folder, tokenizer, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    lost = weights.pop("layers.1.feed_forward.fc1.bias")
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"copy lacks: layers\.1\.feed_forward\.fc1\.bias\. It is damaged"):
        build(copy, tokenizer)
    save_file({**weights, "layers.1.feed_forward.fc1.bias": lost[1:]}, copy / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"copy has tensors of unexpected shapes: layers\.1\.feed_forward\.fc1\.bias \[63\]"
    ):
        build(copy, tokenizer)


@pytest.fixture
def recipe(folder, tmp_path, teacher_folders):
    """A recipe of a complete model that starts from the encoder."""
    return str(write_recipe(tmp_path, teacher_folders, vision_tower=str(folder), vision_config=None, max_steps=1))


def test_a_run_of_a_complete_model_starts_from_it(recipe, folder, tmp_path):
    train(recipe, ["learning_rate=0"])
    hub = tmp_path / "run" / "hub"
    assert_equal(weights_of(hub, "model.vision_tower."), weights_of(folder))
    assert tuple(HawaiiProcessor.from_pretrained(hub).image_processor.image_mean) == (0.1, 0.2, 0.3)
    vision = json.loads((hub / "config.json").read_text())["vision_config"]
    assert vision["num_teacher_adapters"] == 2 and "auto_map" not in vision


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_dry_run_counts_the_parameters_of_the_student(recipe, folder, objective):
    if objective == "move_kd":
        with pytest.raises(
            ValueError, match="has 2 teacher-specific adapters, and the objective move_kd uses general adapters only"
        ):
            describe_recipe(recipe, ["objective=move_kd"])
        return
    adapters = [tensor.numel() for name, tensor in weights_of(folder).items() if "adapters." in name]
    description = describe_recipe(recipe, [f"objective={objective}"])
    assert f"| adapters | {sum(adapters):,} |" in " ".join(description.split())
    with pytest.raises(ValueError, match="lora_rank is 8 in the recipe's vision_config and 4"):
        describe_recipe(recipe, [f"objective={objective}", "vision_config.lora_rank=8"])


def test_another_number_of_teachers_than_of_adapters_is_an_error(recipe, teacher_folders):
    overrides = [f"teachers=[{teacher_folders['vit']}]"]
    for begin in (describe_recipe, train):
        with pytest.raises(
            ValueError, match=r"has 2 teacher-specific adapters but the recipe names 1 teachers \(vit\)"
        ):
            begin(recipe, overrides)


def test_other_teachers_or_another_order_cause_a_warning(folder, plain_folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_other_teachers(str(folder), ["vit", "convnext"])
        warn_of_other_teachers(None, ["vit"])
        warn_of_other_teachers(str(plain_folder), ["sam"])
        assert not caplog.text
        warn_of_other_teachers(str(folder), ["convnext", "vit"])
    assert "hub learned from vit, convnext, in this order, and continue with convnext, vit." in caplog.text
    # The folder of a stage has the names in another file.
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    (tmp_path / "stage.json").write_text(json.dumps({"teachers": {"vit": {}, "convnext": {}}}))
    with caplog.at_level(logging.WARNING):
        warn_of_other_teachers(str(tmp_path), ["vit", "sam"])
    assert "learned from vit, convnext, in this order, and continue with vit, sam." in caplog.text


@pytest.mark.parametrize(("objective", "is_warned"), [("hawaii", True), ("radio", False)])
def test_another_order_causes_a_warning_if_teachers_have_adapters(
    folder, tmp_path, teacher_folders, caplog, objective, is_warned
):
    teachers = dict(reversed(teacher_folders.items()))
    recipe = write_recipe(tmp_path, teachers, vision_tower=str(folder), vision_config=None, max_steps=1)
    with caplog.at_level(logging.WARNING):
        train(str(recipe), [f"objective={objective}"])
    assert ("learned from vit, convnext, in this order" in caplog.text) == is_warned


@pytest.mark.parametrize("layer", [None, 1, -2])
def test_a_teacher_gives_the_encoders_features_with_active_routers(folder, layer):
    teacher = load_teacher(TeacherConfig.parse({"checkpoint": str(folder), "layer": layer}))
    assert (teacher.image_size, teacher.grid) == (16, (4, 4, 32))
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    model = HawaiiVisionModel.from_pretrained(folder).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    with torch.no_grad():
        states = model((images / 255 - mean) / std, output_hidden_states=True).hidden_states
    expected = states[-1 if layer is None else layer][:, 1:].unflatten(1, (4, 4))
    torch.testing.assert_close(teacher(images), expected)


def test_the_encoder_of_a_complete_model_is_a_teacher_too(hub_folder):
    teacher = load_teacher(TeacherConfig.parse(str(hub_folder)))
    assert teacher.grid == (4, 4, 32) and isinstance(teacher.model, HawaiiVisionModel)


def test_an_encoder_learns_from_a_trained_encoder(folder, teacher_folders, tmp_path):
    teachers = {"first": teacher_folders["vit"], "second": folder}
    recipe = str(write_encoder_recipe(tmp_path, teachers, max_steps=1))
    assert "| hub | 22,970 | 16 x 16 | 4 x 4 | 32 |" in " ".join(describe_recipe(recipe).split())
    train(recipe)
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert list(results["stages"]["first"]["teachers"]) == ["vit", "hub"]
