"""Two processes under DeepSpeed's ZeRO-2 and ZeRO-3, on CPUs."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from hawaii import HawaiiForConditionalGeneration
from hawaii.tests.tiny.processes import BF16, BREAK_LOSS, FILL_MEMORY, Run, launch, launcher_environment
from hawaii.tests.tiny.training import write_recipe


pytest.importorskip("deepspeed", reason="needs DeepSpeed, which .venv-deepspeed has")
pytestmark = [pytest.mark.slow, pytest.mark.deepspeed]

STAGES = ("pretrain", "finetune")
STEPS = ["max_steps=2", "save_steps=1"]
TILES = ["stages.finetune.image_grid_pinpoints=[[16, 32], [32, 16]]", "max_length=128", "save_strategy=no"]
ON_CPUS = {"DS_ACCELERATOR": "cpu"}

# The second process has a gradient that is not finite in the second step, though its loss is.
BREAK_GRADIENT = """
from unittest import mock
import torch
from hawaii.training.recipes.objectives import StudentWithObjective
forward, calls = StudentWithObjective.forward, []

class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("inf")

def broken(*args):
    loss, terms = forward(*args)
    calls.append(1)
    return (Infinite.apply(loss) if rank == 1 and len(calls) == 2 else loss), terms

stack.enter_context(mock.patch.object(StudentWithObjective, "forward", broken))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, teacher_folders):
    folder = tmp_path_factory.mktemp("world")
    write_recipe(folder, teacher_folders)
    return folder


@pytest.fixture(scope="module")
def finished(world):
    """The runs by their names, each in the folder of its name."""
    recipe, broken = world / "recipe.yaml", ["max_steps=4", "save_steps=1"]
    runs = {"ddp": Run([recipe, "strategy=ddp", *STEPS])}
    for name in ("zero2", "zero3"):
        shared, environment = [recipe, "use_cpu=false", f"strategy={name}"], launcher_environment(name)
        runs[name] = Run([*shared, *STEPS], environment)
        runs[f"{name}_filled"] = Run([*shared, *STEPS], environment, setup=FILL_MEMORY)
        runs[f"{name}_loss"] = Run([*shared, *broken], environment, setup=BREAK_LOSS)
        runs[f"{name}_gradient"] = Run([*shared, *broken], environment, setup=BREAK_GRADIENT)
        runs[f"{name}_tiles"] = Run([*shared, *STEPS, *TILES], environment)
    runs["ddp_tiles"] = Run([recipe, "strategy=ddp", *STEPS, *TILES])
    runs["zero3_teachers"] = Run([*shared, *STEPS, "save_strategy=no", "shard_teachers=true"], environment)
    runs["zero3_bf16"] = Run([*shared, *STEPS, "save_strategy=no", "bf16=true"], environment, setup=BF16 + FILL_MEMORY)
    for name in ("zero2", "zero3"):
        shared = [recipe, "use_cpu=false", f"strategy={name}", *STEPS, "stages.finetune.lora={r: 2, lora_alpha: 4}"]
        runs[f"{name}_lora"] = Run(shared, launcher_environment(name))
    runs["zero3_mistake"] = Run(
        [*shared, "stages.finetune.lora={target_modules: [none]}"], launcher_environment("zero3")
    )
    runs["ddp_lora"] = Run([recipe, "strategy=ddp", *STEPS, "stages.finetune.lora={r: 2, lora_alpha: 4}"])
    runs["on_cpu"] = Run([recipe, "max_steps=1", "strategy=zero3"], environment)
    for name, run in runs.items():
        run.arguments.append(f"output_dir={world / name}")
    return dict(zip(runs, launch(world / "launch", list(runs.values()), **ON_CPUS)))


@pytest.fixture(scope="module")
def resumed(world, finished):
    """Copies of the uninterrupted runs with only the files of the first step, resumed by new processes."""
    runs = {}
    for name in ("zero2", "zero3"):
        folder = world / f"{name}_resumed"
        shutil.copytree(world / name, folder)
        for left in ("hub", "finetune", "pretrain/model", "pretrain/checkpoint-2"):
            shutil.rmtree(folder / left)
        arguments = [world / "recipe.yaml", "use_cpu=false", *STEPS, f"output_dir={folder}"]
        runs[name] = Run(arguments, launcher_environment(name))
    shutil.copytree(world / "zero2_resumed", world / "as_ddp")
    shutil.copytree(world / "zero2_resumed", world / "without_state")
    shutil.rmtree(world / "without_state/pretrain/checkpoint-1/global_step1")
    shutil.copytree(world / "zero3", world / "zero3_second")
    shutil.rmtree(world / "zero3_second/hub")
    shutil.rmtree(world / "zero3_second/finetune")
    arguments = [world / "recipe.yaml", "use_cpu=false", *STEPS, f"output_dir={world / 'zero3_second'}"]
    runs["zero3_second"] = Run(arguments, launcher_environment("zero3"))
    runs["as_ddp"] = Run([world / "recipe.yaml", *STEPS, f"output_dir={world / 'as_ddp'}"])
    arguments = [world / "recipe.yaml", "use_cpu=false", *STEPS, f"output_dir={world / 'without_state'}"]
    runs["without_state"] = Run(arguments, launcher_environment("zero2"))
    return dict(zip(runs, launch(world / "launch_again", list(runs.values()), **ON_CPUS)))


def weights_of(run):
    files = ["hub/model", *(f"{stage}/model/{name}" for stage in STAGES for name in ("model", "objective"))]
    return {file: load_file(run / f"{file}.safetensors") for file in files}


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero2_filled", "zero3_filled", "zero3_teachers"])
def test_zero_trains_what_ddp_trains(world, finished, name):
    assert finished[name][0].stdout.splitlines()[0] == (
        f"Strategy {name[:5]}: 2 processes on 1 machine, CPU, float32."
    )
    for process, expected in zip(finished[name], finished["ddp"]):
        assert process.status == expected.status == 0
        assert len(expected.losses) == 2 + 2 * 2  # the second stage accumulates two micro-batches
        assert process.records == expected.records
        assert process.losses == pytest.approx(expected.losses, abs=1e-4)
    expected, found = weights_of(world / "ddp"), weights_of(world / name)
    for file, tensors in expected.items():
        assert found[file].keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[file][key], tensor, rtol=1e-4, atol=1e-5, msg=f"{file} {key}")


@pytest.mark.parametrize("variant", ["lora", "tiles"])
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_lora_and_tiles_train_as_under_ddp(world, finished, name, variant):
    for process, expected in zip(finished[f"{name}_{variant}"], finished[f"ddp_{variant}"]):
        assert process.status == expected.status == 0
        assert process.losses == pytest.approx(expected.losses, abs=1e-4)
    expected, found = weights_of(world / f"ddp_{variant}"), weights_of(world / f"{name}_{variant}")
    assert ("model.image_newline" in found["hub/model"]) == (variant == "tiles")
    for file, tensors in expected.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[file][key], tensor, rtol=1e-4, atol=1e-5, msg=f"{file} {key}")


def test_a_mistake_in_the_second_stage_is_found_before_the_first_one_trains(world, finished):
    assert [process.status for process in finished["zero3_mistake"]] == [2, 2]
    assert "target_modules of lora names 'none'" in finished["zero3_mistake"][0].stderr
    assert not (world / "zero3_mistake").exists()


def test_a_finished_first_stage_is_followed_by_the_second_in_a_new_run(world, resumed):
    assert [process.status for process in resumed["zero3_second"]] == [0, 0]
    expected, found = weights_of(world / "zero3"), weights_of(world / "zero3_second")
    assert all(tensor.equal(found[file][key]) for file, tensors in expected.items() for key, tensor in tensors.items())


def test_the_folder_that_zero_3_publishes_gives_ddps_logits(world, finished):
    inputs = torch.arange(1, 9).view(1, -1)
    with torch.no_grad():
        expected, logits = (
            HawaiiForConditionalGeneration.from_pretrained(world / run / "hub").eval()(input_ids=inputs).logits
            for run in ("ddp", "zero3")
        )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one_bit_for_bit(world, finished, resumed, name):
    assert f"Resuming from {world / f'{name}_resumed'}" in resumed[name][0].stdout
    for uninterrupted, again in zip(finished[name], resumed[name]):
        assert again.status == 0
        assert again.losses == uninterrupted.losses[1:]
    expected, found = weights_of(world / name), weights_of(world / f"{name}_resumed")
    for file, tensors in expected.items():
        assert [key for key, tensor in tensors.items() if not torch.equal(found[file][key], tensor)] == [], file


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "as_ddp",
            "checkpoint-1 lacks optimizer.pt, which this run needs, although the checkpoint is whole: start the run "
            "with the ",
        ),
        ("without_state", "checkpoint-1 lacks global_step1/"),
    ],
)
def test_a_checkpoint_without_the_state_of_the_strategy_is_refused(world, resumed, name, problem):
    assert [outcome.status for outcome in resumed[name]] == [2, 2]
    for outcome in resumed[name]:
        assert f"{world / name / 'pretrain'}/{problem}" in outcome.stderr.splitlines()[-1]


def test_bf16_has_about_the_same_losses(world, finished):
    for process, expected in zip(finished["zero3_bf16"], finished["ddp"]):
        assert process.status == 0
        assert process.losses == pytest.approx(expected.losses, rel=0.02)
    assert "CPU, bfloat16 with float32 weights." in finished["zero3_bf16"][0].stdout.splitlines()[0]
    dtypes = {tensor.dtype for tensor in weights_of(world / "zero3_bf16")["pretrain/model/model"].values()}
    assert dtypes == {torch.bfloat16}  # DeepSpeed's copies


@pytest.mark.parametrize("name", ["zero2", "zero3"])
@pytest.mark.parametrize(
    ("kind", "step", "reason"),
    [
        ("loss", 3, "the loss term coarse is not finite for the records {}: fix these records"),
        ("gradient", 2, " is not finite for the records {}: fix these records"),
    ],
)
def test_what_is_not_finite_on_one_process_stops_all_before_the_optimizer_steps(
    world, finished, name, kind, step, reason
):
    outcomes = finished[f"{name}_{kind}"]
    assert [outcome.status for outcome in outcomes] == [2, 2]
    messages = [outcome.stderr.splitlines()[-1] for outcome in outcomes]
    assert messages[0] == messages[1]
    assert f"Training stopped before step {step} changed a weight, because the " in messages[0]
    named = outcomes[1:] if kind == "loss" else outcomes  # a gradient depends on all records of the step
    assert reason.format(", ".join(record for each in named for record in each.records[step - 1])) in messages[0]
    assert [len(outcome.losses) for outcome in outcomes] == [step, step]
    folder = world / f"{name}_{kind}" / "pretrain"
    assert sorted(path.name for path in folder.glob("*point-*")) == [
        f"checkpoint-{number}" for number in range(1, step)
    ]


def test_deepspeed_shards_on_cpus_too(finished):
    """Unlike FSDP: use_cpu does not turn it off where the Trainer builds the accelerator."""
    for outcome, line in zip(finished["on_cpu"], ["Strategy zero3: 2 processes on 1 machine, CPU, float32.", None]):
        assert outcome.status == 0
        assert next(iter(outcome.stdout.splitlines()), None) == line
