"""A dry run counts what training would build, without building it."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from hawaii import __main__ as command
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.language_models import FAMILIES, save_language_model
from hawaii.tests.tiny.students import save_clip_folder, save_llava
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.counting import recipes
from hawaii.training.counting.recipes import describe_recipe
from hawaii.training.recipes.objectives import OBJECTIVES
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.students.student import build_student
from hawaii.training.students.trainable import part_of
from hawaii.training.teachers.loading import load_teachers


RECIPES = "training/recipes/"


@pytest.fixture(autouse=True)
def no_costs(monkeypatch):
    """Tests of the costs are in test_costs.py; those here are about parameters."""
    monkeypatch.setattr(recipes, "count_stage", lambda *args: None)
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: "Memory of each device")


LAYERS, ADAPTERS, WIDTH, RANK, ROUTER = 23, 6, 1024, 16, 64


def read_tables(text):
    """Maps the first cell of each row of the tables of parameters to the other cells."""
    text = text.partition("Memory of each device")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in rows if row[1].replace(",", "").isdigit()}


def counts_of(text):
    return {name: int(cells[0].replace(",", "")) for name, cells in read_tables(text).items()}


@pytest.fixture
def recipe(tmp_path, teacher_folders):
    return str(write_recipe(tmp_path, teacher_folders))


def name_parts(recipe, **parts):
    """Makes a recipe name these parts, and not the sizes of others."""
    values = yaml.safe_load(Path(recipe).read_text())
    for key in ("text_config", "vision_config", "tokenizer"):
        del values[key]
    Path(recipe).write_text(yaml.safe_dump({**values, **parts}, sort_keys=False))


def sizes_of_parts(recipe, folder):
    """Leaves the recipe unchanged."""


def checkpoints(recipe, folder):
    """An encoder, and a language model whose vocabulary has no place for the image token."""
    tower = save_clip_folder(folder / "clip")
    language_model = save_language_model(folder / "language_model", FAMILIES["phi"])
    name_parts(recipe, vision_tower=tower, language_model=str(language_model), vision_config={"lora_rank": 2})


def llava(recipe, folder):
    """A LLaVA in its original form, whose vocabulary does not include the image token either."""
    name_parts(recipe, llava=save_llava(folder / "llava", is_original=True)[1])


def encoder(recipe, folder):
    """No language model."""
    values = yaml.safe_load(Path(recipe).read_text())
    for key in ("text_config", "tokenizer"):
        del values[key]
    stages = {"distill": {"trainable": ["vision_tower", "projector"]}}
    Path(recipe).write_text(yaml.safe_dump({**values, "stages": stages}, sort_keys=False))


def encoder_from_a_clip(recipe, folder):
    encoder(recipe, folder)
    values = yaml.safe_load(Path(recipe).read_text())
    start = {"vision_tower": save_clip_folder(folder / "clip"), "vision_config": None}
    Path(recipe).write_text(yaml.safe_dump({**values, **start}, sort_keys=False))


DISTILLING = ("hawaii", "radio", "move_kd")
STARTS = [(start, []) for start in (sizes_of_parts, checkpoints, llava)]
STARTS += [(start, [f"objective={name}"]) for start in (sizes_of_parts, llava) for name in OBJECTIVES]
STARTS += [(checkpoints, ["distillation=[fine]"]), (checkpoints, ["distillation=[coarse]"])]
STARTS += [(start, [f"objective={name}"]) for start in (encoder, encoder_from_a_clip) for name in DISTILLING]
STARTS += [(llava, ["distillation=[coarse]", "vision_config.num_teacher_adapters=0"])]


@pytest.mark.parametrize(("start", "overrides"), STARTS)
def test_counts_equal_those_of_the_models_that_training_builds(recipe, tmp_path, start, overrides):
    start(recipe, tmp_path)
    counts = counts_of(describe_recipe(recipe, overrides))
    stage = next(iter(read_recipe(recipe, overrides).stages.values()))
    args = stage.training
    kind = OBJECTIVES[args.objective]
    teachers = kind.prepare_teachers(load_teachers(stage.distilled_teachers))
    student, _ = build_student(stage.model, stage.data, len(teachers), args.objective)
    objective = kind(stage.options, student, {teacher.name: teacher.grid for teacher in teachers})
    expected = Counter()
    for name, parameter in student.named_parameters():
        expected[part_of(name)] += parameter.numel()
    expected |= {
        "the student": student.num_parameters(),
        "projections": sum(parameter.numel() for parameter in objective.parameters()),
        **{teacher.name: teacher.model.num_parameters() for teacher in teachers},
    }
    assert Counter(counts) == expected


def test_an_encoder_alone_has_no_parts_of_a_language_model(recipe, tmp_path):
    encoder(recipe, tmp_path)
    rows = read_tables(describe_recipe(recipe))
    assert list(rows) == ["vision_tower", "adapters", "routers", "the student", "projections", "vit", "convnext"]
    assert [rows[part][1] for part in ("vision_tower", "adapters", "routers")] == ["learns", "", ""]
    for override, problem in (
        ("objective=llava", "The objective llava trains on answers only"),
        ("stages.distill.trainable=[projector]", r"trainable is \['projector'\], but the student is an encoder"),
    ):
        with pytest.raises(UserError, match=problem):
            describe_recipe(recipe, [override])


def test_the_table_marks_the_stages_that_train_a_part(recipe):
    rows = read_tables(describe_recipe(recipe))
    assert rows["adapters"][1:] == ["learns", "learns"]
    assert rows["language_model"][1:] == ["", "learns"]


@pytest.mark.parametrize(
    ("objective", "learns"),
    [
        ("hawaii", ["", "learns"]),
        ("move_kd", ["", "learns"]),
        ("radio", ["learns", "learns"]),
        ("llava", ["", ""]),
    ],
)
def test_the_table_marks_the_stages_that_train_the_projections(recipe, objective, learns):
    text = describe_recipe(recipe, [f"objective={objective}"])
    assert read_tables(text)["projections"][1:] == learns
    assert OBJECTIVES[objective].note in text
    assert ("| teacher " in text) == (objective != "llava")


def test_a_dry_run_writes_no_files(recipe, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert command.main(["train", recipe, "--dry-run"]) == 0
    assert "| vision_tower " in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_overrides_change_the_counts(recipe):
    plain, ranked = (
        counts_of(describe_recipe(recipe, [f"vision_config.lora_rank={rank}"]))["adapters"] for rank in (4, 8)
    )
    assert ranked == 2 * plain


def test_a_missing_teacher_is_one_sentence(recipe, capsys):
    assert command.main(["train", recipe, "teachers=./nowhere", "--dry-run"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("vision_config.image_size=0", "vision_config: image_size is 0; it must be at least 1"),
        ("vision_config.patch_size=99", "image_size 16 is less than one patch of patch_size 99"),
        ("vision_config.lora_rank=0", "vision_config: lora_rank is 0; it must be at least 1"),
        ("text_config.num_attention_heads=3", "not a multiple of the number of attention heads"),
    ],
)
def test_sizes_that_no_student_can_have_are_an_error_of_the_recipe(recipe, capsys, override, problem):
    assert command.main(["train", recipe, override, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hawaii train: ") and problem in error and error.count("\n") == 1


def test_a_damaged_checkpoint_is_an_error_of_the_recipe(recipe, tmp_path):
    checkpoints(recipe, tmp_path)
    path = tmp_path / "language_model" / "config.json"
    path.write_text(path.read_text().replace('"model_type": "phi"', '"model_type": "sam"'))
    with pytest.raises(UserError, match="The student of the recipe cannot be built: Unrecognized configuration class"):
        describe_recipe(recipe)


# The paper's student, counted by hand. Vicuna's 32,000 tokens and the image's make 501 blocks of 64.
PAPER = {
    "vision_tower": 1024 * (3 * 14 * 14 + 1 + 577 + 2)
    + LAYERS * (4 * (WIDTH + 1) * WIDTH + (WIDTH + 1) * 4096 + (4096 + 1) * WIDTH + 4 * WIDTH),
    "routers": LAYERS * 2 * ((WIDTH + 1) * ROUTER + (ROUTER + 1) * 3),
    "adapters": LAYERS * ADAPTERS * RANK * 2 * WIDTH,
    "projector": (WIDTH + 1) * 4096 + (4096 + 1) * 4096,
    "language_model": 6_738_415_616 + 2 * 64 * 4096,
}


def test_the_papers_student_has_the_counts_of_the_formulas():
    # Three teachers without timm: the student is the same.
    counts = counts_of(describe_recipe(f"{RECIPES}hawaii_vicuna_7b.yaml", ["teachers=[clip, pix2struct, sam]"]))
    assert {part: counts[part] for part in PAPER} == PAPER
    assert counts["the student"] == sum(PAPER.values())


def test_move_kd_has_no_encoder_adapter_for_clip_and_its_own_ranks():
    overrides = ["teachers=[clip, pix2struct, sam]", "objective=move_kd"]
    counts = counts_of(describe_recipe(f"{RECIPES}hawaii_vicuna_7b.yaml", overrides))
    adapters = [(1536 + 1) * WIDTH + (45 * 45 + 1) * 576, (256 + 1) * WIDTH + (64 * 64 + 1) * 576]
    assert counts["projections"] == sum(adapters)
    assert counts["routers"] == LAYERS * (WIDTH + 1) * 3
    assert counts["adapters"] == LAYERS * 3 * (2 * 32 * (WIDTH + 4096) + 2 * 32 + WIDTH + 4096)


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "teachers"),
    [
        ("hawaii", ["clip", "convnext", "eva02"]),
        ("hawaii_dagger", ["clip", "convnext", "eva02", "pix2struct"]),
        ("hawaii_double_dagger", ["clip", "convnext", "eva02", "sam"]),
    ],
)
def test_the_papers_recipes_are_counted_without_weights(name, teachers):
    rows = read_tables(describe_recipe(f"{RECIPES}{name}_vicuna_7b.yaml"))
    assert list(rows)[7:] == teachers
    num_router_outputs = len(teachers) + 3
    routers = LAYERS * (2 * (WIDTH + 1) * ROUTER + (ROUTER + 1) * num_router_outputs)
    assert rows["routers"][0] == f"{routers:,}"
    assert rows["convnext"] == ["843,398,016", "768 x 768", "24 x 24", "3072"]
    assert rows["eva02"] == ["304,055,232", "448 x 448", "32 x 32", "1024"]


def test_a_lora_is_counted_and_the_language_model_does_not_learn():
    """Both recipes are counted without a download."""
    tables = read_tables(describe_recipe("hawaii_qwen3_small"))
    # Of each layer: the query is twice as wide as the model, key and value are as wide, the mlp is three times.
    pairs = [(1024, 2048), (1024, 1024), (1024, 1024), (2048, 1024), (1024, 3072), (1024, 3072), (3072, 1024)]
    assert tables["LoRA of finetune"] == [f"{28 * 64 * sum(map(sum, pairs)):,}", "", "learns"]
    assert tables["language_model"] == ["596,049,920", "", ""]
    assert tables["projector"][1:] == ["learns", "learns"]
    tables = read_tables(describe_recipe("hawaii_vicuna_7b_lora", ["teachers=[clip]"]))
    pairs = [(4096, 4096)] * 4 + [(4096, 11008)] * 3
    assert tables["LoRA of finetune"] == [f"{32 * 128 * sum(map(sum, pairs)):,}", "", "learns"]
