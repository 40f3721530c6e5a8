"""An encoder is trained with teachers and images only, resumes bit for bit, and its folder can be loaded."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from hawaii import HawaiiVisionModel
from hawaii.tests.finished_runs import assert_resumes_bit_for_bit, logged_steps, weights_of
from hawaii.tests.tiny.encoders import write_encoder_recipe
from hawaii.tests.tiny.models import VISION
from hawaii.tests.tiny.students import save_clip_folder
from hawaii.tests.tiny.training import CHECKPOINTING
from hawaii.training.finished_stage import find_stage, load_stage
from hawaii.training.teachers.grids import match_grid
from hawaii.training.train import train


DISTILLING = ("hawaii", "radio", "move_kd")
ADAPTERS = {"hawaii": (2, 3), "radio": (0, 0), "move_kd": (0, 3)}
STAGES = ("first", "second")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    return write_encoder_recipe(tmp_path_factory.mktemp("world"), teacher_folders)


@pytest.fixture(scope="module", params=DISTILLING)
def finished(request, recipe, tmp_path_factory):
    """The objective, its overrides, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    overrides = [f"output_dir={folder}", f"objective={request.param}"]
    train(str(recipe), overrides)
    return request.param, overrides, folder


def one_step(recipe, folder, *overrides):
    """Runs one step per stage with learning rate 0 and no dropout, so that the saved weights are the initial ones."""
    settings = ["stages.second.max_steps=1", "max_steps=1", "learning_rate=0", "vision_config.attention_dropout=0.0"]
    train(str(recipe), [f"output_dir={folder}", *settings, *overrides])
    return folder


def test_the_hub_folder_is_an_encoder_that_loads_and_its_image_processor(finished):
    objective, _, folder = finished
    model, report = AutoModel.from_pretrained(folder / "hub", output_loading_info=True)
    assert type(model) is HawaiiVisionModel and not any(report.values())
    assert (model.config.num_teacher_adapters, model.config.num_general_adapters) == ADAPTERS[objective]
    inputs = AutoImageProcessor.from_pretrained(folder / "hub")(Image.new("RGB", (30, 20)), return_tensors="pt")
    with torch.no_grad():
        features = model(**inputs).last_hidden_state
    assert features.shape == (1, 17, 32) and features.isfinite().all()
    published = {path.name for path in (folder / "hub").iterdir() if path.suffix != ".py"}
    assert published == {
        "README.md",
        "recipe.yaml",
        "loss_curves.png",
        "training.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "manifest.json",
    }
    assert not list(folder.rglob("tokenizer*")) and not list(folder.rglob("*chat_template*"))


def test_the_results_count_images_and_have_no_text(finished):
    objective, _, folder = finished
    results = json.loads((folder / "train_results.json").read_text())
    assert list(results["stages"]) == list(STAGES)
    for stage in results["stages"].values():
        assert (stage["objective"], stage["samples"], stage["question"]) == (objective, 12, "")  # of 14 records
        assert list(stage["teachers"]) == ["vit", "convnext"]
    assert results["num_parameters"] == HawaiiVisionModel.from_pretrained(folder / "hub").num_parameters()
    assert not any("text" in entry for stage in STAGES for entry in logged_steps(folder, stage))


def test_the_aspect_ratio_of_the_last_stage_is_published(finished):
    _, _, folder = finished
    processors = [
        json.loads((folder / place / "preprocessor_config.json").read_text())
        for place in ("first/model", "second/model", "hub")
    ]
    assert [processor.get("do_pad", False) for processor in processors] == [False, True, True]


def test_every_trainable_parameter_and_the_features_change(finished, recipe, tmp_path):
    objective, overrides, folder = finished
    start = one_step(recipe, tmp_path / "run", *overrides[1:])
    before, after = weights_of(start, "second"), weights_of(folder, "second")
    assert before.keys() == after.keys()
    same = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert same == []
    images = torch.randn(2, 3, 16, 16)
    models = [HawaiiVisionModel.from_pretrained(run / "hub") for run in (start, folder)]
    with torch.no_grad():
        features = [model(images).last_hidden_state for model in models]
    assert (features[0] - features[1]).abs().amax(dim=-1).min() > 1e-3


def test_only_the_trainable_parts_change(recipe, tmp_path):
    train(str(recipe), [f"output_dir={tmp_path}", "trainable=[adapters, projector]", "stages.second.max_steps=1"])
    first, second = (load_file(tmp_path / "first" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4))
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        name for name in first if "adapters." in name
    }


def test_a_student_without_trainable_parts_is_an_error(recipe, tmp_path):
    problem = r"trainable is \['projector', 'projections'\], but the student .* none of these.* adapters, routers, vi"
    with pytest.raises(ValueError, match=problem):
        train(str(recipe), [f"output_dir={tmp_path / 'run'}", "trainable=[projector, projections]"])
    assert not (tmp_path / "run").exists()


def project(weights, prefix, tokens):
    hidden = F.gelu(F.linear(tokens, weights[f"{prefix}.0.weight"], weights[f"{prefix}.0.bias"]))
    return F.linear(hidden, weights[f"{prefix}.2.weight"], weights[f"{prefix}.2.bias"])


def test_the_loss_of_the_first_batch_is_equation_7_without_text(recipe, tmp_path, teachers):
    # One batch of all images, so that their order does not matter.
    run = one_step(recipe, tmp_path / "run", "per_device_train_batch_size=12", "lambda_1=0.25")
    student = HawaiiVisionModel.from_pretrained(run / "hub").eval().double()
    weights = {name.split(" ")[1]: tensor.double() for name, tensor in weights_of(run, "first").items()}
    processor = AutoImageProcessor.from_pretrained(run / "first" / "model")
    images = [Image.open(path).convert("RGB") for path in sorted((recipe.parent / "images").glob("*.png"))]
    assert len(images) == 12
    squares = [image.crop((0, (image.height - 16) // 2, 16, (image.height - 16) // 2 + 16)) for image in images]
    pixel_values = processor(squares, return_tensors="pt")["pixel_values"].double()
    shown = [np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)) for square in squares]
    shared = torch.tensor(np.stack(shown)).permute(0, 3, 1, 2)
    matched = [
        F.layer_norm(match_grid(teacher(shared), 4, "unshuffle").double(), (width,))
        for teacher, width in zip(teachers, (16, 64))
    ]
    with torch.no_grad():
        routed = student(pixel_values, output_routing=True)
        fine, coarse = [], project(weights, "coarse_projection", torch.cat(matched, dim=-1))
        for index, key in enumerate(("0_vit", "1_convnext")):
            target = project(weights, f"fine_projections.{key}", matched[index])
            alone = student(pixel_values, adapters=torch.full((12,), index)).last_hidden_state[:, 1:]
            scores = (target @ target.mT / 32**0.5).softmax(dim=-1).mean(dim=1)  # without an instruction
            fine.append((scores * (alone - target).square().mean(dim=-1)).sum(dim=-1).mean())
        coarse = (routed.last_hidden_state[:, 1:] - coarse).square().mean()
    balance = 0
    for bank in routed.router_probabilities.split([2, 3], dim=-1):
        for layer in bank:
            chosen = F.one_hot(layer.argmax(dim=-1), bank.shape[-1]).double().mean(dim=(0, 1))
            balance += bank.shape[-1] * (chosen * layer.mean(dim=(0, 1))).sum() / len(bank)
    expected = {"fine": sum(fine) / 2, "coarse": coarse, "balance": balance, "fine/vit": fine[0]}
    (entry,) = logged_steps(run, "first")
    for name, value in expected.items():
        assert entry[name] == pytest.approx(value.item(), rel=1e-3), name  # the log has four digits
    total = 0.25 * (expected["fine"] + coarse) + 0.05 * balance
    assert entry["loss"] == pytest.approx(total.item(), rel=1e-3)


def test_accumulated_batches_train_the_same_weights_as_one_large_batch(recipe, tmp_path):
    # RADIO's loss is exactly a mean over images, so dividing by a wrong count would show.
    shared = ["objective=radio", "optim=sgd", "learning_rate=0.1", "max_steps=1", "save_strategy=no"]
    shared += ["vision_config.attention_dropout=0.0", "stages.second.gradient_accumulation_steps=1"]
    sizes = {"large": (8, 1), "small": (2, 4)}
    for name, (batch_size, accumulation) in sizes.items():
        changes = [f"per_device_train_batch_size={batch_size}", f"gradient_accumulation_steps={accumulation}"]
        train(str(recipe), [f"output_dir={tmp_path / name}", *shared, *changes])
    large, small = (logged_steps(tmp_path / name, "first")[0] for name in sizes)
    for term in ("loss", "distillation", "grad_norm"):
        assert small[term] == pytest.approx(large[term], rel=1e-3)
    weights = [weights_of(tmp_path / name, "first") for name in sizes]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("objective", DISTILLING)
def test_two_processes_train_the_same_weights_as_one(recipe, tmp_path, objective):
    # One process accumulates the micro-batches of the two processes.
    shared = [f"objective={objective}", "optim=sgd", "learning_rate=0.05", "max_steps=2", "save_strategy=no"]
    shared += ["vision_config.attention_dropout=0.0", "stages.second.max_steps=1"]
    accumulated = ["gradient_accumulation_steps=2", "stages.second.gradient_accumulation_steps=4"]
    train(str(recipe), [f"output_dir={tmp_path / 'one'}", *shared, *accumulated])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hawaii", "train"]
    done = subprocess.run(
        [sys.executable, *launch, str(recipe), f"output_dir={tmp_path / 'two'}", *shared],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = weights_of(tmp_path / "one", *STAGES), weights_of(tmp_path / "two", *STAGES)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    for stage in STAGES:
        for entry, expected in zip(logged_steps(tmp_path / "two", stage), logged_steps(tmp_path / "one", stage)):
            assert entry["loss"] == pytest.approx(expected["loss"], rel=2e-3)


def test_the_first_line_states_that_the_encoder_is_trained_alone(recipe, tmp_path, capsys):
    train(str(recipe), [f"output_dir={tmp_path}", "max_steps=1"])
    strategy, line = capsys.readouterr().out.splitlines()[:2]
    assert strategy.startswith("Strategy single: ")
    assert line.startswith("The recipe names no language model: the encoder is trained alone, on im")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(finished, recipe, tmp_path):
    _, overrides, folder = finished
    assert_resumes_bit_for_bit(recipe, overrides, folder, tmp_path)


def test_gradient_checkpointing_trains_to_the_same_weights(recipe, tmp_path):
    shared = ["vision_config.attention_dropout=0.0", "max_steps=2", "save_strategy=no"]
    runs = [tmp_path / "plain", tmp_path / "checkpointed"]
    for run, changes in zip(runs, ([], [f"{CHECKPOINTING[0]}=true"])):
        train(str(recipe), [f"output_dir={run}", *shared, *changes])
    expected, actual = (weights_of(run, *STAGES) for run in runs)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_without_a_data_path_all_images_of_the_folder_are_training_data(recipe, tmp_path):
    train(str(recipe), [f"output_dir={tmp_path}", "data_path=", "max_steps=1", "image_share=0.5"])
    first = json.loads((tmp_path / "train_results.json").read_text())["stages"]["first"]
    names = [path.name for path in (recipe.parent / "images").iterdir()]
    assert 0 < first["samples"] < len(names) == 12


def test_a_finished_stage_loads_with_its_processor_and_teachers(finished):
    objective, _, folder = finished
    stage = load_stage(find_stage(folder))
    assert (
        stage.processor.image_aspect_ratio == "pad" and [teacher.name for teacher in stage.teachers][1] == "convnext"
    )
    expected = load_file(folder / "second" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stage.student.state_dict().items())
    assert load_stage(folder / "first" / "model").processor.image_aspect_ratio == "crop"


INVALID = {
    "neftune_noise_alpha=5": "neftune_noise_alpha is 5, but the recipe's first stage names no language model",
    "objective=llava": "The objective llava trains on answers only, but the recipe names no language model",
    "distillation=[fine]": r"distillation is \['fine'\], which trains each adapter alone.*add coarse to distillation",
    "distill_tiles=false": "distill_tiles is False, but the recipe's first stage names no language model",
    "teachers=[]": "names no teachers",
    "lambda_1=0": "stage first: lambda_1 is 0, but without a language model the teachers are all that the",
    "lambda_1=0.0": "lambda_1 is 0",
    "chat_template=vicuna_v1": "stage first: chat_template is 'vicuna_v1', but the recipe's first stage names no",
    "stages.second.chat_template=plain": "stage second: chat_template is 'plain', but .*is trained alone",
    "stages.second.tokenizer=words": "stage second: there is a tokenizer but no language model; name a language_model",
    "tokenizer=words": "stage first: there is a tokenizer but no language model; name a language_model",
    "vision_config=": "stage first: there is no encoder; name a vision_tower",
    "image_folder=''": "there is no image_folder",
}


@pytest.mark.parametrize("override", INVALID)
def test_options_that_an_encoder_alone_does_not_support_are_an_error(recipe, tmp_path, override):
    with pytest.raises(ValueError, match=INVALID[override]):
        train(str(recipe), [f"output_dir={tmp_path / 'run'}", override])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("overrides", [["eval_data_path=x", "eval_strategy=steps", "eval_steps=1"], ["eval_tasks=x"]])
def test_questions_need_a_language_model(recipe, tmp_path, overrides):
    name = overrides[0].partition("=")[0]
    with pytest.raises(ValueError, match=f"{name} is 'x', but the recipe's first stage names no language"):
        train(str(recipe), [f"output_dir={tmp_path}", *overrides])


def test_the_encoder_can_start_from_a_clip(tmp_path, teacher_folders):
    clip = save_clip_folder(tmp_path / "clip")
    path = write_encoder_recipe(tmp_path, teacher_folders, vision_tower=clip, vision_config={"lora_rank": 2})
    run = one_step(path, tmp_path / "run", "vision_config={lora_rank: 2}")
    model = AutoModel.from_pretrained(run / "hub")
    assert (model.config.num_hidden_layers, model.config.lora_rank, VISION["lora_rank"]) == (2, 2, 4)
    assert json.loads((run / "hub" / "preprocessor_config.json").read_text())["image_mean"] == [0.1, 0.2, 0.3]
