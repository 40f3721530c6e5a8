"""The paper's recipes run from start to end with their options and with tiny models."""

import json
from pathlib import Path

import pytest
import yaml

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.tests.tiny.language_models import FAMILIES, save_language_model
from hawaii.tests.tiny.students import save_clip_folder
from hawaii.tests.tiny.teachers import FIELDS, save_expert
from hawaii.tests.tiny.training import make_image, make_record, save_data
from hawaii.training.teachers.presets import TEACHER_SETS
from hawaii.training.train import train


RECIPES = Path(__file__).parents[3] / "training" / "recipes"
# The presets have the resolutions of the published weights, which are too large for the tests.
SMALL = {
    **{name: {"image_size": 24, **fields} for name, fields in FIELDS.items()},
    "convnext": {"image_size": 192},
    "eva02": {"image_size": 84},
}
TIMM = {
    "convnext": ("convnext_atto", {"dims": (8, 12, 16, 24), "depths": (1, 1, 1, 1)}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 84, "embed_dim": 32, "depth": 2, "num_heads": 2}),
}


def save_teacher(name, folder):
    if name in TIMM:
        import timm

        architecture, sizes = TIMM[name]
        timm.models.save_for_hf(timm.create_model(architecture, **sizes), folder, safe_serialization=True)
    else:
        save_expert(name, folder)
    return {"preset": name, "checkpoint": str(folder), **SMALL[name]}


def run_small(recipe, folder, members, family="mistral"):
    """Runs a recipe with tiny models and few images; returns the folder of the run."""
    save_data(folder, [make_record(number) for number in range(6)])
    teachers = [save_teacher(name, folder / name) for name in members]
    # One process, two images per step and one step per stage; everything else is the recipe's.
    changes = {
        "output_dir": folder / "run",
        "vision_tower": save_clip_folder(folder / "tower"),
        "language_model": save_language_model(folder / "language_model", FAMILIES[family]),
        "teachers": json.dumps(teachers),
        "dataloader_num_workers": 0,
        "use_cpu": True,
    }
    for stage in ("pretrain", "finetune"):
        changes[f"stages.{stage}.data_path"] = folder / "data.json"
        changes[f"stages.{stage}.image_folder"] = folder / "images"
        changes[f"stages.{stage}.per_device_train_batch_size"] = 2
        changes[f"stages.{stage}.max_steps"] = 1
    train(str(RECIPES / recipe), [f"{key}={value}" for key, value in changes.items()])
    return folder / "run"


def check(run, members):
    for stage in ("pretrain", "finetune"):
        log = [json.loads(line) for line in (run / stage / "log.jsonl").read_text().splitlines()]
        results = json.loads((run / "train_results.json").read_text())["stages"][stage]
        assert list(results["teachers"]) == list(members)
        assert results["steps"] == 1 and log[-1]["train_loss"] > 0
    student = HawaiiForConditionalGeneration.from_pretrained(run / "hub")
    assert student.config.vision_config.num_teacher_adapters == len(members)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_recipe_runs_with_any_language_model_and_its_chat_template(tmp_path, family):
    recipe = yaml.safe_load((RECIPES / "hawaii_vicuna_7b.yaml").read_text())
    del recipe["stages"]["finetune"]["chat_template"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run = run_small(tmp_path / "recipe.yaml", tmp_path, ("clip",), family)
    check(run, ("clip",))
    processor = HawaiiProcessor.from_pretrained(run / "hub")
    student = HawaiiForConditionalGeneration.from_pretrained(run / "hub").eval()
    ends = student.generation_config.eos_token_id
    assert processor.tokenizer.convert_tokens_to_ids(FAMILIES[family].end) in (
        ends if isinstance(ends, list) else [ends]
    )
    content = [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "what color is it?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    assert student.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("members", [("clip", "pix2struct", "sam"), TEACHER_SETS["frontier"], ("radio",)])
def test_the_papers_recipe_runs_with_teachers_from_transformers(tmp_path, members):
    check(run_small("hawaii_vicuna_7b.yaml", tmp_path, members), members)


@pytest.mark.timm
@pytest.mark.parametrize("name", [name for name in TEACHER_SETS if name.startswith("hawaii")])
def test_the_papers_recipes_run_with_all_their_teachers(tmp_path, name):
    members = TEACHER_SETS[name]
    check(run_small(f"{name}_vicuna_7b.yaml", tmp_path, members), members)
