"""A recipe trains to a folder that can be published, and to the same folder if it is killed in between."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.__main__ import main
from hawaii.files.manifest import read_files, read_identity, write_manifest
from hawaii.files.run_contents import CHECKPOINT_STATE_FILES, OBJECTIVE_FILE
from hawaii.files.user_error import UserError
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.finished_runs import assert_resumes_bit_for_bit, logged_steps
from hawaii.tests.tiny.language_models import FAMILIES, save_language_model
from hawaii.tests.tiny.training import make_record, write_recipe
from hawaii.training import train as train_module
from hawaii.training.callbacks import JsonLinesCallback
from hawaii.training.finished_stage import find_stage, load_stage
from hawaii.training.train import train
from hawaii.training.trainer import HawaiiTrainer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    """A recipe of two stages with six steps each that saves every second step."""
    return write_recipe(tmp_path_factory.mktemp("world"), teacher_folders)


@pytest.fixture(scope="module")
def finished(recipe):
    """The folder of an uninterrupted run."""
    train(str(recipe))
    return recipe.parent / "run"


STAGES = ("pretrain", "finetune")


def assert_same_run(folder, expected):
    """Asserts that weights, optimizers, random states and logs are equal bit for bit."""
    for stage in STAGES:
        assert logged_steps(folder, stage) == logged_steps(expected, stage)
        for name in ("model", "objective"):
            weights = load_file(folder / stage / "model" / f"{name}.safetensors")
            for key, tensor in load_file(expected / stage / "model" / f"{name}.safetensors").items():
                assert torch.equal(weights[key], tensor), (stage, key)
        for name in ("optimizer.pt", "rng_state.pth"):
            states = [
                torch.load(run / stage / "checkpoint-6" / name, weights_only=False) for run in (folder, expected)
            ]
            torch.testing.assert_close(*(flatten(state) for state in states), rtol=0, atol=0)
    assert (folder / "hub" / "model.safetensors").read_bytes() == (expected / "hub" / "model.safetensors").read_bytes()


def flatten(state, path=""):
    """The tensors and numbers of a nested state, by path."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: leaf for key, item in items for name, leaf in flatten(item, f"{path}/{key}").items()}
    return {path: torch.as_tensor(state)} if isinstance(state, torch.Tensor | int | float) else {}


def test_a_finished_run_is_loaded_with_its_teachers_and_its_objective(finished, teacher_folders):
    stage = load_stage(find_stage(finished))
    assert (stage.folder, [teacher.name for teacher in stage.teachers]) == (
        finished / "finetune" / "model",
        list(teacher_folders),
    )
    weights = stage.objective.state_dict()
    for name, tensor in load_file(finished / "finetune" / "model" / OBJECTIVE_FILE).items():
        assert torch.equal(weights[name], tensor), name
    assert not list((finished / "hub").glob("objective*"))  # they name folders of this machine


def test_a_run_contains_its_stages_the_results_and_the_hub_folder(finished):
    folders = {"pretrain", "finetune", "hub"}
    assert {path.name for path in finished.iterdir()} == {*folders, "train_results.json", ".train.lock"}
    for stage in ("pretrain", "finetune"):
        assert sorted(path.name for path in (finished / stage).iterdir()) == [
            "checkpoint-2",
            "checkpoint-4",
            "checkpoint-6",
            "log.jsonl",
            "model",
        ]
        assert [entry["step"] for entry in logged_steps(finished, stage)] == [1, 2, 3, 4, 5, 6]


def test_the_results_report_steps_samples_and_seconds(finished):
    results = json.loads((finished / "train_results.json").read_text())
    student = HawaiiForConditionalGeneration.from_pretrained(finished / "hub")
    assert results["num_parameters"] == student.num_parameters()
    assert list(results["stages"]) == ["pretrain", "finetune"]
    assert results["train_seconds"] == pytest.approx(sum(stage["seconds"] for stage in results["stages"].values()))
    pretrain, finetune = results["stages"].values()
    assert (pretrain["steps"], pretrain["batch_size"], pretrain["samples"]) == (6, 2, 14)
    assert (finetune["steps"], finetune["batch_size"], finetune["epochs"]) == (6, 4, 1.57)
    assert pretrain["teachers"] == {
        "vit": {"image_size": 16, "grid": [4, 4, 16]},
        "convnext": {"image_size": 32, "grid": [8, 8, 16]},
    }


def test_the_hub_folder_has_a_card_of_the_run_without_its_paths(finished, recipe):
    hub = finished / "hub"
    card, facts = (hub / "README.md").read_text(), json.loads((hub / "training.json").read_text())
    assert read_files(hub).keys() >= {"recipe.yaml", "loss_curves.png", "training.json"}
    assert Image.open(hub / "loss_curves.png").size[0] > 500
    for stage in STAGES:
        (session,) = facts["stages"][stage]["hardware"]
        assert session["first_step"] == 1 and sum(session["devices"].values()) == 1
        assert f"| {stage} | 1 | 1 x " in card
    assert list(facts["card"]["teachers"]) == ["vit", "convnext"] and facts["card"]["license"] is None
    for stage in STAGES:
        report = json.loads((finished / stage / "model" / "stage.json").read_text())
        assert [len(origins) for origins in report["origins"].values()] != [0, 0]
        assert "origins" not in facts["stages"][stage]
    for name in ("README.md", "training.json", "recipe.yaml", "manifest.json", "config.json"):
        assert str(recipe.parent) not in (hub / name).read_text(), name


def test_a_card_that_the_recipe_completes_later_keeps_its_text(finished, recipe, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "hub" / "README.md").write_text("# Mine\n")
    options = [f"output_dir={folder}", "card={license: mit}", "card.language=en"]
    assert main(["train", str(recipe), *options]) == 0
    assert "is left as it is" not in capsys.readouterr().out
    assert main(["train", str(recipe), *options]) == 0
    assert "already has this model and is left as it is" in capsys.readouterr().out
    assert (folder / "hub" / "README.md").read_text() == "---\nlanguage:\n- en\nlicense: mit\n---\n# Mine\n"


def test_the_hub_folder_has_the_weights_and_the_template_of_the_last_stage(finished):
    published = HawaiiForConditionalGeneration.from_pretrained(finished / "hub").state_dict()
    last = HawaiiForConditionalGeneration.from_pretrained(finished / "finetune" / "model").state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in last.items())
    assert HawaiiProcessor.from_pretrained(finished / "hub").chat_template == load_chat_template("vicuna_v1")
    assert HawaiiProcessor.from_pretrained(finished / "pretrain" / "model").chat_template == load_chat_template(
        "plain"
    )


def test_the_first_stage_changes_the_trainable_parts_only(finished):
    first, second = (load_file(finished / "pretrain" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 6))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    parts = ("adapters.", "routing", "multi_modal_projector")
    assert changed == {name for name in first if any(part in name for part in parts)}


def test_a_stage_starts_from_the_weights_of_the_previous_one(recipe, tmp_path):
    train(str(recipe), [f"output_dir={tmp_path}", "max_steps=2", "stages.finetune.learning_rate=0"])
    for name in ("model", "objective"):
        before, after = (
            load_file(tmp_path / stage / "model" / f"{name}.safetensors") for stage in ("pretrain", "finetune")
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_finished_stages_do_not_run_again(recipe, finished, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "run_stage", lambda *args: pytest.fail("a finished stage ran again"))
    before = (finished / "hub" / "model.safetensors").read_bytes()
    train(str(recipe))
    assert capsys.readouterr().out.splitlines()[:2] == [
        "Stage 1 of 2, pretrain: already done.",
        "Stage 2 of 2, finetune: already done.",
    ]
    assert (finished / "hub" / "model.safetensors").read_bytes() == before


FILES = ["config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
FILES += ["chat_template.jinja", "generation_config.json", "model.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_finished_stage_without_one_of_its_files_is_refused(recipe, finished, tmp_path, capsys, stage, name):
    """Otherwise the next stage would start from other files, and the export would be incomplete."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "hub")
    if stage == "pretrain":
        shutil.rmtree(run / "finetune")
    (run / stage / "model" / name).unlink()
    assert main(["train", str(recipe), f"output_dir={run}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"hawaii train: {run / stage / 'model'} ") and name in error
    assert not (run / "hub").exists()
    assert (run / "finetune" / "model").exists() == (stage == "finetune")


def test_the_same_recipe_gives_the_same_model(recipe, finished, tmp_path):
    train(str(recipe), [f"output_dir={tmp_path}"])
    assert_same_run(tmp_path, finished)


def test_a_stage_has_the_precision_in_the_recipe(recipe, tmp_path):
    train(str(recipe), [f"output_dir={tmp_path}", "max_steps=1", "stages.finetune.dtype=bfloat16"])
    folders = {"pretrain/model": torch.float32, "finetune/model": torch.bfloat16, "hub": torch.bfloat16}
    for folder, dtype in folders.items():
        tensors = load_file(tmp_path / folder / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}, folder


# Reads lines with a path and a number n. For each, it runs `hawaii train` in a new process that kills itself at the
# n-th file operation (open, rename, remove) under the path, and prints the exit code.
RUN_AND_DIE = """
import os, signal, sys
from hawaii.__main__ import main
from hawaii.training.train import train

def die_at(place, number):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and place in str(arguments[0]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)

for line in sys.stdin:
    place, number = line.rsplit(maxsplit=1)
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        die_at(place, int(number))
        os._exit(main(["train", *sys.argv[1:]]))
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def run_elsewhere(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def complete_checkpoints(folder):
    """Returns the names of the checkpoints with a final name, and asserts that each has every file."""
    found = sorted(folder.glob("checkpoint-[0-9]*"))
    for checkpoint in found:
        for name in (
            "model.safetensors",
            "config.json",
            "processor_config.json",
            "rng_state.pth",
            *CHECKPOINT_STATE_FILES,
        ):
            assert any(checkpoint.glob(name)), (checkpoint, name)
        load_file(checkpoint / "model.safetensors")
        torch.load(checkpoint / "optimizer.pt", weights_only=True)
    return [checkpoint.name for checkpoint in found]


def test_a_recipe_with_neftune_resumes_bit_for_bit(recipe, tmp_path):
    overrides = ["neftune_noise_alpha=5", "max_steps=4"]
    train(str(recipe), [f"output_dir={tmp_path / 'whole'}", *overrides])
    assert_resumes_bit_for_bit(recipe, overrides, tmp_path / "whole", tmp_path)


STOPPED = "after step {} of 6, so the stage is not finished: the same command {}"


def assert_unfinished(folder, stage):
    assert not list((folder / stage).glob("model*")) and not (folder / "hub").exists()
    assert not (folder / "train_results.json").exists()


# The micro-batch in which the signal arrives; the first stage has six, the second has two for each step.
@pytest.mark.parametrize(
    ("name", "stage", "micro_batch", "step"),
    [
        ("SIGTERM", "pretrain", 4, 4),
        ("SIGUSR1", "pretrain", 6, 6),
        ("SIGUSR1", "finetune", 11, 3),
        ("SIGTERM", "finetune", 12, 3),
    ],
)
def test_a_run_that_a_signal_stops_continues_bit_for_bit(
    recipe, finished, tmp_path, monkeypatch, capsys, name, stage, micro_batch, step
):
    original, calls = HawaiiTrainer.training_step, 0
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    def interrupt(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == micro_batch:
            os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **kwargs)

    monkeypatch.setattr(HawaiiTrainer, "training_step", interrupt)
    assert main(["train", str(recipe), f"output_dir={tmp_path}"]) == 75
    continues = f"continues from {tmp_path / stage / f'checkpoint-{step}'}."
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"hawaii train: Training was stopped by {name} {STOPPED.format(step, continues)}"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert_unfinished(tmp_path, stage)
    assert (tmp_path / "finetune").exists() == (stage == "finetune")
    monkeypatch.setattr("hawaii.training.monitoring.hardware.device_name", lambda device: "another device")
    assert main(["train", str(recipe), f"output_dir={tmp_path}"]) == 0
    assert_same_run(tmp_path, finished)
    sessions = json.loads((tmp_path / "hub" / "training.json").read_text())["stages"][stage]["hardware"]
    assert "another device" not in sessions[0]["devices"]
    # No step is left after the last checkpoint.
    assert [session["first_step"] for session in sessions] == ([1] if step == 6 else [1, step + 1])
    assert step == 6 or sessions[1]["devices"] == {"another device": 1}


def test_a_signal_before_the_first_step_stops_at_once(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "build_student", lambda *args: os.kill(os.getpid(), signal.SIGUSR1))
    assert main(["train", str(recipe), f"output_dir={tmp_path}"]) == 75
    error = "hawaii train: Stopped by SIGUSR1: the same command continues from the last checkpoint."
    assert capsys.readouterr().err.splitlines()[-1] == error


def test_a_signal_while_a_finished_stage_is_saved_does_not_start_the_next(recipe, tmp_path, monkeypatch, capsys):
    original = HawaiiTrainer.save_whole

    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        original(*args)

    monkeypatch.setattr(HawaiiTrainer, "save_whole", interrupt)
    assert main(["train", str(recipe), f"output_dir={tmp_path}", "max_steps=1"]) == 75
    error = "hawaii train: Stopped by SIGTERM after stage pretrain: the same command starts the next."
    assert capsys.readouterr().err.splitlines()[-1] == error
    assert (tmp_path / "pretrain" / "model").is_dir() and not (tmp_path / "finetune").exists()


def test_the_handlers_of_signals_are_restored_after_an_error(recipe, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        assert signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL
        raise UserError("a bad record")

    monkeypatch.setattr(HawaiiTrainer, "training_step", fail)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(UserError, match="a bad record"):
        train(str(recipe), [f"output_dir={tmp_path}"])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers


@pytest.mark.parametrize("event", ["on_step_end", "on_step_begin", "on_epoch_end", "on_pre_optimizer_step"])
def test_a_run_that_a_callback_stops_continues_bit_for_bit(recipe, finished, tmp_path, monkeypatch, event):
    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 2

    overrides = [f"output_dir={tmp_path}"]
    if event == "on_epoch_end":
        overrides.append("stages.pretrain.per_device_train_batch_size=7")
    with monkeypatch.context() as patch:
        patch.setattr(JsonLinesCallback, event, stop, raising=False)
        with pytest.raises(
            UserError, match=r"stopped early, after step [23] of 6, .* continues from .*checkpoint-2\."
        ):
            train(str(recipe), overrides)
    assert_unfinished(tmp_path, "pretrain")
    train(str(recipe), overrides)
    if event != "on_epoch_end":
        assert_same_run(tmp_path, finished)
    assert (tmp_path / "hub").is_dir()


def test_a_stopped_run_without_a_checkpoint_starts_over(recipe, tmp_path, monkeypatch, capsys):
    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = True

    monkeypatch.setattr(JsonLinesCallback, "on_step_end", stop, raising=False)
    arguments = [
        "train",
        str(recipe),
        f"output_dir={tmp_path}",
        "save_strategy=no",
        "max_steps=-1",
        "num_train_epochs=1",
    ]
    assert main(arguments) == 2
    problem = (
        "stopped early, after step 1 of 7, so the stage is not finished: the same command starts over, as it has no"
    )
    assert problem in capsys.readouterr().err
    assert_unfinished(tmp_path, "pretrain")


# Only the second process receives the signal, in its second step.
STOP_ONE_PROCESS = """
import os, signal, sys
from hawaii.__main__ import main
from hawaii.training.trainer import HawaiiTrainer
training_step = HawaiiTrainer.training_step

def stopped(self, *args):
    if os.environ["RANK"] == "1" and self.state.global_step == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return training_step(self, *args)

HawaiiTrainer.training_step = stopped
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step(recipe, tmp_path):
    (tmp_path / "script.py").write_text(STOP_ONE_PROCESS)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", tmp_path / "script.py"]
    done = run_elsewhere(*launch, recipe, f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 1  # the launcher's status, not that of the processes
    assert "exitcode  : 75" in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("hawaii train: ")]
    continues = f"continues from {tmp_path / 'run' / 'pretrain' / 'checkpoint-2'}."
    # The launcher may end one of them before it prints its line.
    assert lines and set(lines) <= {
        f"hawaii train: Training was stopped by {name} {STOPPED.format(2, continues)}"
        for name in ("SIGTERM", "a signal")
    }
    assert_unfinished(tmp_path / "run", "pretrain")


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_while_it_saves_equals_an_uninterrupted_one(recipe, finished, tmp_path):
    generator = random.Random(0)
    overrides = [f"output_dir={tmp_path}"]
    runner = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_DIE, str(recipe), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    names = ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    # Path at which the process is killed, and the complete checkpoints that remain in the stage's folder.
    places = [
        ("pretrain/incomplete/checkpoint-2", []),
        ("pretrain/incomplete/checkpoint-4", names[:1]),
        ("pretrain/incomplete/checkpoint-6", names[:2]),
        ("pretrain/model.incomplete", names),
        ("finetune/incomplete/checkpoint-2", []),
        ("finetune/incomplete/checkpoint-4", names[:1]),
        ("finetune/incomplete/checkpoint-4", names[:1]),
        ("finetune/model.incomplete", names),
        ("hub.incomplete", names),
    ]
    for place, checkpoints in places:
        number = generator.randint(1, 25)
        runner.stdin.write(f"{tmp_path}/{place} {number}\n")
        runner.stdin.flush()
        assert runner.stdout.readline() == "-9\n", (place, number)
        stage = "pretrain" if "pretrain" in place else "finetune"
        assert complete_checkpoints(tmp_path / stage) == checkpoints, (place, number)
        assert not (tmp_path / "hub").exists()
    runner.communicate()
    train(str(recipe), overrides)
    assert_same_run(tmp_path, finished)
    assert not list(tmp_path.rglob("*incomplete*"))


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one_which_continues_for_them(recipe, tmp_path):
    # One process accumulates the micro-batches of the two processes.
    shared = ["optim=sgd", "learning_rate=0.05", "max_grad_norm=1.0", "save_steps=1"]
    # Less than an epoch, because at its end processes without samples repeat some.
    shared += ["text_config.attention_dropout=0.0", "max_steps=3", "stages.finetune.max_steps=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = ["gradient_accumulation_steps=2", "stages.finetune.gradient_accumulation_steps=4", *shared]
    train(str(recipe), [f"output_dir={one}", *alone])
    # accelerate launch would need MPI for processes on a CPU.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hawaii", "train"]
    finished = run_elsewhere(*launch, recipe, f"output_dir={two}", *shared)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert json.loads((two / "train_results.json").read_text())["stages"]["pretrain"]["batch_size"] == 4
    # One process continues after the first step of the two.
    resumed = shutil.copytree(two, tmp_path / "resumed")
    for left in ("hub", "finetune", *(f"pretrain/{name}" for name in ("model", "checkpoint-2", "checkpoint-3"))):
        shutil.rmtree(resumed / left)
    with pytest.raises(
        UserError, match=r"checkpoint-1 was written by 2 processes and this run has 1: .* 1 batches of"
    ):
        train(str(recipe), [f"output_dir={resumed}", *shared])
    train(str(recipe), [f"output_dir={resumed}", *alone])
    for run in (two, resumed):
        for stage in ("pretrain", "finetune"):
            for entry, expected in zip(logged_steps(run, stage), logged_steps(one, stage), strict=True):
                assert entry.keys() == expected.keys()
                for name in set(entry) - {"epoch"}:
                    assert entry[name] == pytest.approx(expected[name], rel=2e-3), (stage, name)
            for name in ("model", "objective"):
                weights = load_file(run / stage / "model" / f"{name}.safetensors")
                for key, tensor in load_file(one / stage / "model" / f"{name}.safetensors").items():
                    torch.testing.assert_close(weights[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{run} {stage} {key}")


@pytest.mark.slow
def test_samples_can_be_grouped_by_length(recipe, tmp_path):
    overrides = [f"output_dir={tmp_path}", "train_sampling_strategy=group_by_length", "max_steps=2"]
    train(str(recipe), overrides)
    assert (tmp_path / "hub" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_command_needs_only_the_recipe(recipe, finished):
    done = run_elsewhere("-m", "hawaii", "train", recipe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"The folder to publish: {finished / 'hub'}"


def test_training_data_without_images_are_an_error(recipe, tmp_path):
    (tmp_path / "text.json").write_text(json.dumps([make_record(1, image=False)]))
    with pytest.raises(ValueError, match=r"text\.json: none of the 1 sampled records has an image"):
        train(str(recipe), [f"output_dir={tmp_path / 'run'}", f"data_path={tmp_path / 'text.json'}"])


def test_an_error_in_a_recipe_is_raised_before_anything_is_written(recipe, tmp_path):
    with pytest.raises(ValueError, match="there is no option 'max_stepz'. Did you mean max_steps"):
        train(str(recipe), [f"output_dir={tmp_path / 'run'}", "max_stepz=1"])
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_another_recipe_are_an_error(recipe, tmp_path):
    overrides = [f"output_dir={tmp_path}", "max_steps=2"]
    train(str(recipe), overrides)
    for folder in ("pretrain/model", "finetune"):
        shutil.rmtree(tmp_path / folder)
    problem = r"checkpoint-2 was trained with another recipe: vision_config\.lora_rank is \d+ there and 2 here\. Undo"
    with pytest.raises(UserError, match=problem):
        train(str(recipe), [*overrides, "vision_config.lora_rank=2"])


def test_a_resume_from_the_last_checkpoint_adds_no_steps_and_no_seconds(recipe, finished, tmp_path, clock):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "finetune" / "model")
    state_path = tmp_path / "run" / "finetune" / "checkpoint-6" / "trainer_state.json"
    state = json.loads(state_path.read_text())
    state["stateful_callbacks"]["TimerCallback"]["args"]["seconds"] = 1000.0
    state_path.write_text(json.dumps(state))
    write_manifest(state_path.parent, read_identity(state_path.parent))
    train(str(recipe), [f"output_dir={tmp_path / 'run'}"])
    report = json.loads((tmp_path / "run" / "finetune" / "model" / "stage.json").read_text())
    assert report["steps"] == 6 and report["seconds"] == 1000.0  # the clock does not advance
    models = [
        load_file(folder / "finetune" / "model" / "model.safetensors") for folder in (finished, tmp_path / "run")
    ]
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name]), name


def test_the_same_teachers_in_another_order_are_an_error(recipe, tmp_path, teacher_folders):
    # Both have the same architecture, so that their projections have equal shapes.
    folder = str(next(iter(teacher_folders.values())))
    teachers = [{"checkpoint": folder, "name": name} for name in "ab"]
    overrides = [f"output_dir={tmp_path}", "max_steps=1", f"teachers={json.dumps(teachers)}"]
    overrides.append(f"stages.finetune.teachers={json.dumps(teachers[::-1])}")
    with pytest.raises(
        UserError, match=r"stage finetune: teachers is \['b', 'a'\] here and \['a', 'b'\] in stage pretr"
    ):
        train(str(recipe), overrides)
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image_size": 32}, "stage finetune: image_size of teacher vit is 32 here and None in stage pretrain, but a"),
        ({"imagesize": 32}, "stage finetune: A teacher has no field 'imagesize'"),
    ],
)
def test_other_teachers_in_a_later_stage_are_an_error_before_training(recipe, tmp_path, change, problem):
    first, *others = yaml.safe_load(Path(recipe).read_text())["teachers"]
    teachers = [{"checkpoint": first, "name": "vit", **change}, *others]
    overrides = [f"output_dir={tmp_path / 'run'}", f"stages.finetune.teachers={json.dumps(teachers)}"]
    with pytest.raises(UserError, match=problem):
        train(str(recipe), overrides)
    assert not (tmp_path / "run").exists()


def test_generation_stops_at_the_end_token_of_the_last_stage(tmp_path, teacher_folders):
    # In the first stage answers end with a line break, and the language model has another end token.
    folder = save_language_model(tmp_path / "language_model", FAMILIES["qwen2"])
    path = write_recipe(tmp_path, teacher_folders, language_model=str(folder), tokenizer=str(folder), max_steps=1)
    recipe = yaml.safe_load(path.read_text())
    del recipe["text_config"]
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    train(str(path))
    hub = tmp_path / "run" / "hub"
    tokenizer = HawaiiProcessor.from_pretrained(hub).tokenizer
    ends = HawaiiForConditionalGeneration.from_pretrained(hub).generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]) == ends
