"""The statements of docs/objectives.md are true, and its commands are valid."""

import shlex

import pytest
import yaml

from hawaii import HawaiiVisionModel
from hawaii.__main__ import build_parser
from hawaii.configuration.configuration_hawaii import HawaiiVisionConfig
from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.tiny.language_models import FAMILIES, save_language_model
from hawaii.tests.tiny.training import make_options
from hawaii.training.baselines.move_kd import MoveKdObjective
from hawaii.training.counting.recipes import describe_recipe
from hawaii.training.data.images import IMAGE_SUFFIXES
from hawaii.training.recipes.objectives import OBJECTIVES
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.students.student import vision_fields


DOCUMENT = read("docs/objectives.md")
RECIPE = str(ROOT / "training" / "recipes" / "easy_vqa.yaml")
LINES = [line for block in blocks(DOCUMENT, "bash") for line in block.splitlines()]
COMMANDS = [line for line in LINES if "RECIPE" in line]
ENCODER_COMMANDS = [line for line in LINES if "RECIPE" not in line]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("language_model"), FAMILIES["smollm2"])


def overrides_of(command):
    program, verb, recipe, *overrides = shlex.split(command, comments=True)
    assert (program, verb, recipe) == ("hawaii", "train", "RECIPE")
    return overrides


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_valid_recipe(command, language_model, teacher_folders):
    overrides = overrides_of(command)
    names = list(teacher_folders)
    if "teachers=[clip]" in overrides:
        overrides.remove("teachers=[clip]")
        names = names[:1]
    teachers = ", ".join(str(teacher_folders[name]) for name in names)
    overrides += [f"teachers=[{teachers}]", f"language_model={language_model}"]
    text = describe_recipe(RECIPE, overrides)
    assert "| the student " in text
    assert [name for name in names if f"| {name} " in text] == ([] if "objective=llava" in overrides else names)


@pytest.mark.parametrize("command", ENCODER_COMMANDS)
def test_every_encoder_command_is_valid(command, tmp_path, language_model, teacher_folders):
    words = shlex.split(command)[1:]
    options = vars(build_parser().parse_args(words))
    if words[0] == "data":
        return
    overrides = [*options.get("overrides", []), f"teachers=[{', '.join(map(str, teacher_folders.values()))}]"]
    is_alone = options["recipe"].endswith("_encoder.yaml")
    if not is_alone:
        # The result of the previous command, with as many teachers as in this test.
        assert "vision_tower=runs/easy_vqa_encoder/hub" in overrides
        fields = yaml.safe_load((ROOT / "training/recipes/easy_vqa_encoder.yaml").read_text())["vision_config"]
        HawaiiVisionModel(HawaiiVisionConfig(**fields, num_teacher_adapters=2)).save_pretrained(tmp_path / "hub")
        overrides += [f"vision_tower={tmp_path / 'hub'}", f"language_model={language_model}"]
    text = describe_recipe(str(ROOT / options["recipe"]), overrides)
    assert ("| language_model " not in text) == is_alone
    assert all(f"| {name} " in text for name in teacher_folders)


def test_the_recipe_of_the_encoder_agrees_with_the_complete_one():
    recipe = read_recipe("easy_vqa_encoder", use_cpu=True)
    assert recipe.is_encoder_alone
    (stage,) = recipe.stages.values()
    complete = read_recipe(RECIPE, use_cpu=True).stages["pretrain"]
    # A complete model of the other recipe starts from it, so all settings must agree, the order of teachers too.
    assert stage.model.vision_config == complete.model.vision_config
    assert stage.teachers == complete.teachers and stage.options.distillation == complete.options.distillation
    paths = [(each.data.data_path, each.data.image_folder) for each in (stage, complete)]
    assert paths[0] == paths[1]
    assert all(suffix in DOCUMENT for suffix in IMAGE_SUFFIXES)


def test_every_objective_is_in_the_table_and_has_a_command():
    for name in OBJECTIVES:
        assert f"\n| `{name}` |" in DOCUMENT
        assert name == "hawaii" or any(f"objective={name}" in overrides_of(command) for command in COMMANDS)


def test_the_documented_weights_are_those_of_the_options_and_recipes():
    assert "`lambda_1` is 0.5; `lambda_2` is 0.05 for `hawaii` and 0.01 for `move_kd`" in DOCUMENT
    options = {name: make_options(name) for name in OBJECTIVES}
    assert {args.lambda_1 for args in options.values()} == {0.5}
    assert "set `lambda_1: 10`" in DOCUMENT
    for recipe in (RECIPE, RECIPE.replace("easy", "emoji")):
        stages = read_recipe(recipe, use_cpu=True).stages.values()
        assert {stage.options.lambda_1 for stage in stages} == {10}
    assert (options["hawaii"].lambda_2, options["move_kd"].lambda_2) == (0.05, 0.01)


def test_the_last_command_of_move_kd_makes_its_student():
    command = [command for command in COMMANDS if "lora_rank=32" in command][0]
    fields = MoveKdObjective.vision_fields(3)
    for stage in read_recipe(RECIPE, overrides_of(command), use_cpu=True).stages.values():
        vision = HawaiiVisionConfig(**vision_fields(stage.model, 3, stage.training.objective))
        assert {name: getattr(vision, name) for name in fields} == fields
        assert "projections" in stage.training.trainable and stage.options.lambda_1 == 0.5
        assert not (stage.options.single_softmax or stage.options.detached_teacher_weights)
