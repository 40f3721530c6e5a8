"""The recipe of each row is the recipe of the user except for the options of the row, and training reads it."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hawaii.ablation.rows import DEFAULT_ROWS, ROWS, make_recipe, read_rows, rows_of
from hawaii.files.user_error import UserError
from hawaii.training.recipes.built_in import BUILT_IN
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.teachers.presets import expand_teachers


@pytest.fixture
def recipe():
    """The embedded default with its data in `data_here`."""
    return read_recipe("easy_vqa", ["output_dir=data_here", "lambda_2=0.1"], use_cpu=True)


def save_and_read(path, recipe):
    """The recipe as training reads it."""
    recipe.save(path)
    return read_recipe(path, use_cpu=True)


@pytest.mark.parametrize("name", BUILT_IN)
def test_training_reads_every_row_of_every_built_in_recipe(tmp_path, name):
    recipe = read_recipe(name, use_cpu=True)
    if recipe.is_encoder_alone:
        recipe = dataclasses.replace(recipe, eval_tasks=[])
    for row_name, row in rows_of(next(iter(recipe.stages.values())).teachers).items():
        made = make_recipe(recipe, row, 3, tmp_path / row_name)
        found = save_and_read(tmp_path / f"{row_name}.yaml", made)
        assert found == made and list(found.stages) == list(recipe.stages)
        for stage in found.stages.values():
            assert stage.training.seed == 3
            assert stage.training.output_dir == str(tmp_path / row_name / stage.name)


def test_a_row_has_another_output_dir_but_the_same_data(recipe, tmp_path):
    made = make_recipe(recipe, ROWS["llava"], 0, Path("runs/llava"))
    assert made.output_dir == Path("runs/llava")
    assert made.stages["finetune"].model.language_model == "data_here/language_model"
    assert made.stages["pretrain"].data.data_path == "data_here/data/pretrain.json"
    assert made.eval_tasks == []


def options_of(recipe, name, stage="finetune"):
    """What one row sets, or changes in the recipe, for a stage; fields of vision_config one by one, if they differ."""
    row = rows_of(recipe.stages[stage].teachers)[name]
    given = recipe.stages[stage].given
    made = make_recipe(recipe, row, 0, Path("run")).stages[stage].given
    changed = {key: value for key, value in made.items() if key in row.options or given.get(key, "") != value}
    vision = changed.pop("vision_config", {})
    fields = given["vision_config"]
    return changed | {f"vision_config.{key}": value for key, value in vision.items() if fields.get(key, "") != value}


HAWAII = {"objective": "hawaii", "distillation": ["fine", "coarse"], "token_scoring": True}
NO_GENERAL = {"vision_config.num_general_adapters": 0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llava", {"objective": "llava"}),
        ("fine", {**HAWAII, "distillation": ["fine"], "token_scoring": False, **NO_GENERAL}),
        ("token_scoring", {**HAWAII, "distillation": ["fine"], **NO_GENERAL}),
        ("hawaii", HAWAII),
        ("radio", {"objective": "radio", "lambda_2": None}),
        ("teacher_adapters", {**HAWAII, **NO_GENERAL}),
        ("coarse", {**HAWAII, "distillation": ["coarse"]}),
        ("general_adapters", {**HAWAII, "distillation": ["coarse"], "vision_config.num_teacher_adapters": 0}),
    ],
)
def test_each_row_changes_only_its_options(recipe, name, options):
    assert options_of(recipe, name) == options


def test_each_row_of_table_2_adds_one_part_to_the_row_before(recipe):
    fine, token_scoring, hawaii = (options_of(recipe, name) for name in ("fine", "token_scoring", "hawaii"))
    assert {key for key in fine if fine[key] != token_scoring[key]} == {"token_scoring"}
    assert {key for key in token_scoring if token_scoring[key] != hawaii.get(key)} == {"distillation", *NO_GENERAL}


def test_move_kd_does_not_use_the_adapters_of_the_recipe(recipe):
    assert recipe.stages["pretrain"].model.vision_config["lora_rank"] == 8
    faithful, repaired = options_of(recipe, "move_kd"), options_of(recipe, "move_kd_repaired")
    assert faithful["vision_config.lora_rank"] == 32 and faithful["vision_config.adapter_placement"] == "linear"
    assert faithful["vision_config.router_hidden_size"] is None and faithful["lambda_2"] is None
    changed = {key: repaired[key] for key in repaired if repaired[key] != faithful[key]}
    assert changed == {"single_softmax": True, "detached_teacher_weights": True}


def test_the_options_of_a_row_replace_those_of_every_stage(tmp_path):
    overrides = ["stages.finetune.token_scoring=false", "stages.finetune.seed=7", "stages.finetune.lambda_2=3"]
    made = make_recipe(read_recipe("easy_vqa", overrides, use_cpu=True), ROWS["hawaii"], 3, tmp_path)
    stages = save_and_read(tmp_path / "recipe.yaml", made).stages.values()
    assert [(stage.training.objective, stage.training.seed) for stage in stages] == [("hawaii", 3)] * 2
    assert [stage.options.token_scoring for stage in stages] == [True, True]
    assert [stage.options.lambda_2 for stage in stages] == [0.05, 3]


def test_an_option_of_one_stage_stays_in_that_stage(tmp_path):
    recipe = read_recipe("easy_vqa", ["stages.finetune.save_on_each_node=true"], use_cpu=True)
    make_recipe(recipe, ROWS["llava"], 0, tmp_path).save(tmp_path / "recipe.yaml")
    saved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert "save_on_each_node" not in saved and saved["stages"]["finetune"]["save_on_each_node"] is True
    assert saved["stages"]["pretrain"]["chat_template"] == "plain" and "chat_template" not in saved


def test_a_single_teacher_keeps_its_options_of_the_recipe(tmp_path):
    rows = rows_of(expand_teachers(["clip", {"preset": "convnext", "image_size": 512}, "owner/dino.v2"]))
    assert list(rows)[-3:] == ["only_clip", "only_convnext", "only_dino.v2"]
    (teacher,) = rows["only_convnext"].options["teachers"]
    assert teacher["image_size"] == 512 and teacher["checkpoint"].startswith("timm/convnext_xxlarge")
    assert rows["only_clip"].label == "HAWAII, clip alone"


def test_without_teachers_there_are_no_rows_of_a_single_teacher():
    assert set(rows_of([])) == set(ROWS) >= set(DEFAULT_ROWS)


def test_rows_of_a_file_start_from_known_rows(recipe, tmp_path):
    path = tmp_path / "rows.yaml"
    path.write_text(
        "strong: {label: HAWAII at 2e1, options: {lambda_1: 2e1}}\n"
        "later: {row: radio, options: {stages.finetune.lambda_1: 0, teachers: ['${output_dir}/../experts/vit']}}\n"
    )
    rows = read_rows(path, ROWS, recipe.output_dir)
    assert rows["strong"].label == "HAWAII at 2e1" and rows["later"].label == "later"
    strong, later = (make_recipe(recipe, row, 0, tmp_path).stages for row in rows.values())
    assert [stage.options.lambda_1 for stage in strong.values()] == [20.0, 20.0]
    assert [stage.options.lambda_1 for stage in later.values()] == [10, 0]
    assert later["pretrain"].training.objective == "radio"
    assert [teacher.checkpoint for teacher in later["pretrain"].teachers] == ["experts/vit"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a file of rows"),
        ("- a", "is not a file of rows"),
        ("a: [", "is not a file of rows"),
        ("a: 3", "row a: it must be a mapping"),
        ("a: {options: 3}", "row a: it must be a mapping"),
        ("a: {option: {}}", "row a: there is no entry 'option'. Did you mean options"),
        ("a: {row: hawai}", "row a: there is no row 'hawai'. Did you mean hawaii"),
        ("radio: {}", "row radio: give it a name"),
        ("a/b: {}", "row a/b: give it a name"),
        ("a: {options: {1: 2}}", "row a: the names of its options must be text"),
        ("a: {label: '${nowhere}'}", "is not a file of rows: .*nowhere"),
    ],
)
def test_a_file_that_is_none_of_rows_is_refused(tmp_path, content, message):
    path = tmp_path / "rows.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=f"rows.yaml.*{message}"):
        read_rows(path, ROWS, tmp_path)
    with pytest.raises(FileNotFoundError, match="missing.yaml"):
        read_rows(tmp_path / "missing.yaml", ROWS, tmp_path)


def test_an_option_of_one_stage_replaces_that_of_all_stages(recipe, tmp_path):
    row = ROWS["hawaii"]
    made = recipe.with_options({"stages.finetune.lambda_2": 7, **row.options, "lambda_2": 3})
    assert [stage.options.lambda_2 for stage in made.stages.values()] == [3, 7]
    for name in ("stages.middle.lambda_2", "stages.finetune"):
        with pytest.raises(UserError, match=f"has no stage for the option {name}"):
            recipe.with_options({name: 1})
