"""Stages with a LoRA or a quantized language model: their training, checkpoints and finished models."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from peft import AutoPeftModel, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hawaii import HawaiiForConditionalGeneration
from hawaii.__main__ import main
from hawaii.files.manifest import read_identity, write_manifest
from hawaii.files.run_contents import TRAINED_FILE
from hawaii.tests.finished_runs import logged_steps, weights_of
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.finished_stage import find_stage, load_stage
from hawaii.training.students.trainable import part_of
from hawaii.training.train import train
from hawaii.training.trainer import HawaiiTrainer


# A block of 4-bit weights has 64.
TEXT = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
STAGES = {
    "pretrain": {"chat_template": "plain", "trainable": ["adapters", "routers", "projector"], "max_steps": 2},
    "finetune": {"lora": LORA, "max_steps": 4, "learning_rate": 0.02, "learning_rates": {"projector": 0.001}},
}
KINDS = {
    "lora": {},
    "lora 4bit": {"quantization": "4bit"},
    "lora 8bit": {"quantization": "8bit"},
    "4bit": {"quantization": "4bit", "lora": None, "trainable": ["adapters", "routers", "projector"]},
    "dora": {"lora": {"r": 2, "use_dora": True, "target_modules": ["q_proj", "v_proj"]}},
    "bias": {"lora": {"r": 2, "bias": "all", "rank_pattern": {"q_proj": 4}}},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    """A full stage, then one with a LoRA."""
    folder = tmp_path_factory.mktemp("world")
    return write_recipe(folder, teacher_folders, stages=STAGES, text_config={**TEXT, "attention_bias": True})


@pytest.fixture(scope="module")
def pretrained(recipe):
    """The folder of a run whose first stage is finished."""
    train(str(recipe), ["output_dir=" + str(recipe.parent / "pretrained")])
    return recipe.parent / "pretrained"


def options(kind, **more):
    values = {**KINDS[kind], **more}
    if values.get("lora", 0) is None:
        values["learning_rates"] = {"projector": 0.001}
    return [f"stages.finetune.{key}={json.dumps(value)}" for key, value in values.items()]


def start(pretrained, folder):
    """A copy of the run in which the second stage has not started."""
    (folder / "run").mkdir(parents=True)
    shutil.copytree(pretrained / "pretrain", folder / "run" / "pretrain")
    return folder / "run"


@pytest.fixture(scope="module")
def finished(recipe, pretrained, tmp_path_factory):
    """Runs the second stage of a kind once."""
    runs = {}

    def finished(kind, **more):
        key = (kind, *more.items())
        if key not in runs:
            runs[key] = start(pretrained, tmp_path_factory.mktemp("finished"))
            train(str(recipe), [f"output_dir={runs[key]}", *options(kind, **more)])
        return runs[key]

    return finished


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    text = torch.tensor([[2, *[4] * 16, 5, 6, 7, 8]])
    return {
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "pixel_values": torch.randn(1, 3, 16, 16),
    }


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_finished_model_is_the_base_with_what_trained(finished, kind, inputs):
    run = finished(kind)
    base = HawaiiForConditionalGeneration.from_pretrained(run / "pretrain" / "model")
    merged = HawaiiForConditionalGeneration.from_pretrained(run / "finetune" / "model")
    assert {part_of(name) for name in changed(base, merged)} == {
        "adapters",
        "routers",
        "projector",
        *([] if kind == "4bit" else ["vision_tower", "language_model"]),
    }
    names = [name for name in changed(base, merged) if part_of(name) == "language_model"]
    assert not any("embed" in name or "lm_head" in name for name in names)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    trained = load_file(run / "finetune" / "checkpoint-4" / TRAINED_FILE)
    state = merged.state_dict()
    for name, tensor in trained.items():
        if "lora_" not in name:
            torch.testing.assert_close(state[name.replace(".base_layer.", ".")], tensor, rtol=0, atol=0)
    hub = HawaiiForConditionalGeneration.from_pretrained(run / "hub")
    assert torch.equal(logits(hub, inputs), logits(merged, inputs))
    results = json.loads((run / "train_results.json").read_text())
    assert results["num_parameters"] == merged.num_parameters()


def changed(first, second):
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("kind", ["lora", "lora 4bit", "lora 8bit", "dora"])
def test_the_merged_weights_are_the_original_ones_and_the_products_of_the_adapters(finished, kind):
    run = finished(kind)
    base, merged = (load_file(run / stage / "model" / "model.safetensors") for stage in ("pretrain", "finetune"))
    trained = load_file(run / "finetune" / "checkpoint-4" / TRAINED_FILE)
    downs = [name for name in trained if "lora_A" in name]
    assert downs
    for name in downs:
        down, up = trained[name], trained[name.replace("lora_A", "lora_B")]
        name = name.replace(".lora_A.default", "")
        scale = (LORA["lora_alpha"] if kind != "dora" else 8) / len(down)
        expected = base[name] + scale * up @ down
        if kind == "dora":
            magnitude = trained[name.replace("weight", "lora_magnitude_vector.default.weight")]
            expected = expected * (magnitude / expected.norm(dim=1))[:, None]
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(merged[name], base[name])


@pytest.mark.parametrize("kind", ["lora", "lora 4bit"])
def test_a_checkpoint_has_only_what_trains(finished, kind):
    checkpoint = finished(kind) / "finetune" / "checkpoint-4"
    assert {path.name for path in checkpoint.glob("*.safetensors")} == {TRAINED_FILE, "objective.safetensors"}
    assert not (checkpoint / "config.json").exists() and not list(checkpoint.glob("*.bin.index*"))
    trained = load_file(checkpoint / TRAINED_FILE)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    of_language_model = [name for name in trained if part_of(name) == "language_model"]
    assert len(of_language_model) == 2 * 7 * 2 and all("lora_" in name for name in of_language_model)
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    objective = load_file(checkpoint / "objective.safetensors")
    assert len(optimizer["state"]) <= len(trained) + len(objective)


def assert_equal_runs(folder, expected):
    actual, wanted = (weights_of(run, "finetune") for run in (folder, expected))
    assert actual.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(actual[name], tensor)] == []
    assert logged_steps(folder, "finetune") == logged_steps(expected, "finetune")
    assert len(logged_steps(expected, "finetune")) == 4


def interrupt(run, folder):
    """A copy of a run that was killed after the second step of its second stage."""
    shutil.copytree(run, folder)
    for left in ("hub", "finetune/model", "finetune/checkpoint-4"):
        shutil.rmtree(folder / left)
    (folder / "train_results.json").unlink()
    return folder


@pytest.mark.parametrize("kind", ["lora", "lora 4bit", "lora 8bit", "4bit"])
def test_a_resumed_stage_is_the_same_bit_for_bit(recipe, finished, tmp_path, kind):
    run = interrupt(finished(kind), tmp_path / "run")
    train(str(recipe), [f"output_dir={run}", *options(kind)])
    assert_equal_runs(run, finished(kind))


# Kills itself before its third step.
RUN_AND_DIE = """
import os, signal, sys
from hawaii.__main__ import main
from hawaii.training.trainer import HawaiiTrainer

step = HawaiiTrainer.training_step

def training_step(self, *args, **kwargs):
    if self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)

HawaiiTrainer.training_step = training_step
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_killed_stage_continues_bit_for_bit_in_another_process(recipe, pretrained, finished, tmp_path):
    kind = "lora 4bit"
    run = start(pretrained, tmp_path)
    command = [sys.executable, "-c", RUN_AND_DIE, str(recipe), f"output_dir={run}", *options(kind)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert killed.returncode == -9, killed.stderr
    assert (run / "finetune" / "checkpoint-2").is_dir() and not (run / "finetune" / "model").exists()
    train(str(recipe), [f"output_dir={run}", *options(kind)])
    assert_equal_runs(run, finished(kind))


def test_other_frozen_weights_are_refused(recipe, finished, tmp_path, capsys):
    run = interrupt(finished("lora 4bit"), tmp_path / "run")
    path = run / "pretrain" / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("q_proj.weight") and "vision" not in name)
    weights[name].flatten()[5] += 1e-6
    save_file(weights, path, metadata={"format": "pt"})
    assert main(["train", str(recipe), f"output_dir={run}", *options("lora 4bit")]) == 2
    assert f"{path} is damaged: its content has changed since it was saved" in capsys.readouterr().err
    write_manifest(path.parent, read_identity(path.parent))  # as if the stage had been trained again
    assert main(["train", str(recipe), f"output_dir={run}", *options("lora 4bit")]) == 2
    assert "finetune/checkpoint-2 started from other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lora 8bit", "checkpoint-2 was trained with another recipe: quantization is '4bit' there and '8bit' here."),
        ("dora", "checkpoint-2 was trained with another recipe: lora.r is 4 there and 2 here."),
    ],
)
def test_another_precision_is_refused(recipe, finished, tmp_path, capsys, kind, message):
    run = interrupt(finished("lora 4bit"), tmp_path / "run")
    assert main(["train", str(recipe), f"output_dir={run}", *options(kind)]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_another_kind_of_stage_is_refused(recipe, pretrained, finished, tmp_path, capsys):
    run = interrupt(finished("lora"), tmp_path / "run")
    (run / "finetune" / "checkpoint-2" / TRAINED_FILE).unlink()
    assert main(["train", str(recipe), f"output_dir={run}", *options("lora")]) == 2
    assert f"checkpoint-2 lacks {TRAINED_FILE}" in capsys.readouterr().err
    run = interrupt(finished("lora"), tmp_path / "other")
    assert main(["train", str(recipe), f"output_dir={run}", *options("lora", lora={"r": 2})]) == 2
    assert "checkpoint-2 was trained with another recipe: lora." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "lora 4bit", "bias"])
def test_a_lora_that_is_kept_apart_answers_as_the_merged_one(finished, inputs, kind):
    run, merged = finished(kind, merge=False), finished(kind)
    folder, base = run / "finetune" / "model", run / "finetune" / "base"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert not (folder / "model.safetensors").exists()
    expected = logits(HawaiiForConditionalGeneration.from_pretrained(merged / "finetune" / "model"), inputs)
    alone = HawaiiForConditionalGeneration.from_pretrained(base)
    assert (logits(alone, inputs) - expected).abs().max() > 1e-3
    for model in (
        PeftModel.from_pretrained(alone, folder),
        AutoPeftModel.from_pretrained(folder, trust_remote_code=True),
        HawaiiForConditionalGeneration.from_pretrained(run / "hub"),
        load_stage(find_stage(run)).student,
    ):
        torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-5)
    assert not list(run.glob("*.incomplete")) and not (run / "hub" / "adapter_config.json").exists()


@pytest.mark.slow
def test_a_lora_that_is_kept_apart_loads_without_this_package(finished, inputs, tmp_path):
    run = finished("lora", merge=False)
    torch.save(inputs, tmp_path / "inputs.pt")
    script = f"""
import sys
sys.modules["hawaii"] = None
import torch
from peft import AutoPeftModel
model = AutoPeftModel.from_pretrained({str(run / "finetune" / "model")!r}, trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**torch.load({str(tmp_path / "inputs.pt")!r})).logits, {str(tmp_path / "logits.pt")!r})
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    merged = HawaiiForConditionalGeneration.from_pretrained(run / "hub")
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(merged, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_a_later_stage_continues_from_the_merged_model(recipe, finished, tmp_path, merge):
    run = shutil.copytree(finished("lora", merge=merge), tmp_path / "run")  # the run was moved
    shutil.rmtree(run / "hub")
    last = {"trainable": ["language_model"], "learning_rate": 0, "lora": {"r": 2}, "max_steps": 1}
    longer = recipe.with_name(f"longer-{merge}.yaml")
    longer.write_text(yaml.safe_dump({"extends": recipe.name, "stages": {"more": last}}))
    train(str(longer), [f"output_dir={run}", *options("lora", merge=merge)])
    before = HawaiiForConditionalGeneration.from_pretrained(finished("lora") / "finetune" / "model").state_dict()
    after = HawaiiForConditionalGeneration.from_pretrained(run / "hub").state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_damaged_lora_is_refused(recipe, finished, tmp_path, capsys):
    run = shutil.copytree(finished("lora", merge=False), tmp_path / "run")
    shutil.rmtree(run / "hub")
    flags = ["train", str(recipe), f"output_dir={run}", *options("lora", merge=False)]
    path = run / "finetune" / "model" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    assert main(flags) == 2 and f"{path} is truncated: it has" in capsys.readouterr().err
    path.unlink()
    assert main(flags) == 2 and f"{path.parent} lacks adapter_model.safetensors" in capsys.readouterr().err
    path.write_bytes(content)
    (run / "finetune" / "base" / "model.safetensors").unlink()
    assert main(flags) == 2 and str(run / "finetune" / "base") in capsys.readouterr().err
    shutil.rmtree(run / "finetune" / "base")
    assert main(flags) == 2 and f"{run}/finetune/base lacks manifest.json, so its" in (
        error := capsys.readouterr().err
    )
    assert f"Restore it from a copy: {path.parent} has only the adapters of this base." in error
    assert not (run / "hub").exists()


@pytest.mark.parametrize("folder", ["finetune/model", "finetune/checkpoint-4"])
def test_what_is_no_complete_model_is_not_evaluated_chatted_with_or_published(finished, capsys, folder):
    path = finished("lora", merge=False) / folder
    flags = {"publish": ["user/name", "--dry-run"], "chat": ["--image", "x.png", "--question", "what?"]}
    for command, rest in {**flags, "evaluate": ["--tasks", "easy_vqa", "--output_dir", "x"]}.items():
        assert main([command, str(path), *rest]) == 2
        error = capsys.readouterr().err
        assert str(path) in error and "Traceback" not in error


def test_trained_weights_are_float32_next_to_frozen_ones_in_bfloat16(recipe, pretrained, tmp_path):
    run = start(pretrained, tmp_path)
    train(str(recipe), [f"output_dir={run}", *options("lora", dtype="bfloat16", bf16=True, max_steps=2)])
    trained = load_file(run / "finetune" / "checkpoint-2" / TRAINED_FILE)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    finished = load_file(run / "finetune" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in finished.values()} == {torch.bfloat16}
    base = load_file(run / "pretrain" / "model" / "model.safetensors")
    for name, tensor in trained.items():
        if "lora_" not in name:
            assert torch.equal(finished[name], tensor.bfloat16())
    frozen = [name for name in base if part_of(name) == "language_model" and "norm" in name]
    assert frozen and all(torch.equal(finished[name], base[name].bfloat16()) for name in frozen)


@pytest.mark.parametrize("kind", ["lora", "lora 4bit"])
def test_gradient_checkpointing_trains_a_lora_alone_to_the_same_weights(recipe, pretrained, tmp_path, kind):
    """Nothing before the language model has a gradient, which the other form of checkpointing would need."""
    weights = []
    for checkpointing in (False, True):
        run = start(pretrained, tmp_path / str(checkpointing))
        more = {"trainable": ["language_model"], "learning_rates": {}, "max_steps": 2}
        train(str(recipe), [f"output_dir={run}", *options(kind, gradient_checkpointing=checkpointing, **more)])
        weights.append(load_file(run / "finetune" / "checkpoint-2" / TRAINED_FILE))
    assert any(tensor.any() for name, tensor in weights[0].items() if "lora_B" in name)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


def test_the_frozen_base_is_in_few_bits_while_it_trains(recipe, pretrained, tmp_path, monkeypatch):
    seen = {}
    step = HawaiiTrainer.training_step

    def training_step(self, model, *args, **kwargs):
        student = self._module.student
        for name, parameter in student.named_parameters():
            kind = "layer" if name.endswith("base_layer.weight") else part_of(name)
            seen.setdefault(kind, set()).add((parameter.dtype, parameter.requires_grad))
        seen["head"] = {(student.lm_head.weight.dtype, student.lm_head.weight.requires_grad)}
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(HawaiiTrainer, "training_step", training_step)
    run = start(pretrained, tmp_path)
    train(str(recipe), [f"output_dir={run}", *options("lora 4bit", max_steps=1)])
    assert seen.pop("layer") == {(torch.uint8, False)}
    assert seen.pop("head") == {(torch.float32, False)}
    assert seen.pop("language_model") == {(torch.float32, False), (torch.float32, True)}
    assert set(seen) == {"vision_tower", "adapters", "routers", "projector"}
    assert all(found == {(torch.float32, True)} for found in seen.values())


def test_the_hash_of_the_frozen_weights_is_in_the_checkpoint(finished):
    path = finished("lora 4bit") / "finetune" / "checkpoint-4" / TRAINED_FILE
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert len(metadata["frozen"]) == 32 and metadata["quantization"] == "4bit"


def test_packing_changes_no_loss(recipe, pretrained, finished, tmp_path):
    run = start(pretrained, tmp_path)
    train(str(recipe), [f"output_dir={run}", *options("lora", lora={"r": 4, "lora_alpha": 8}, packing=True)])
    padded = start(pretrained, tmp_path / "padded")
    train(str(recipe), [f"output_dir={padded}", *options("lora", lora={"r": 4, "lora_alpha": 8})])
    losses = [[entry["text"] for entry in logged_steps(each, "finetune")] for each in (run, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0][0] != losses[0][-1]
