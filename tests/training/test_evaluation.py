"""Training evaluates the student without affecting the weights, and logs each evaluation once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hawaii.files.manifest import write_manifest
from hawaii.tests.tiny.answers import make_parrot, make_question, make_questions, save_questions
from hawaii.tests.tiny.models import FACTS, make_processor
from hawaii.tests.tiny.training import (
    CHECKPOINTING,
    make_arguments,
    make_dataset,
    make_module,
    make_record,
    save_data,
    write_recipe,
)
from hawaii.training import trainer as trainer_module
from hawaii.training.checkpoints import save_objective
from hawaii.training.data.conversation_dataset import Collator
from hawaii.training.identity import describe_stage
from hawaii.training.monitoring.monitor import CLOCK_ENTRIES
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.train import train
from hawaii.training.trainer import HawaiiTrainer


ANSWERS = [("red", "color"), ("blue", "color"), ("red", "shape"), ("yes", "shape"), ("red", "shape")]
QUESTIONS = [
    make_question(number, answer, image=number != 3, question_type=question_type)
    for number, (answer, question_type) in enumerate(ANSWERS)
]
RED = {"eval_accuracy": 3 / 5, "eval_accuracy/color": 1 / 2, "eval_accuracy/shape": 2 / 3, "eval_num_questions": 5}


@pytest.fixture
def make_trainer(tmp_path):
    """Makes a trainer with questions and the objective that needs no teachers."""

    def make_trainer(module=None, callbacks=(), **kwargs):
        processor = make_processor()
        kwargs = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "logging_steps": 1, **kwargs}
        kwargs = {"disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 2, **kwargs}
        return HawaiiTrainer(
            model=make_module(objective="llava") if module is None else module,
            teachers=[],
            args=make_arguments(tmp_path / "run", objective="llava", **kwargs),
            train_dataset=make_dataset(save_data(tmp_path, [make_record(number) for number in range(8)]), processor),
            eval_dataset=make_questions(tmp_path, QUESTIONS),
            data_collator=Collator(processor),
            processing_class=processor,
            callbacks=list(callbacks),
        )

    return make_trainer


@pytest.fixture
def timed_training(clock, monkeypatch):
    """Makes each micro-batch take 2 seconds and each batch of questions 10."""

    def advance(function, seconds):
        def advancing(*args, **kwargs):
            clock.now += seconds
            return function(*args, **kwargs)

        return advancing

    monkeypatch.setattr(HawaiiTrainer, "compute_loss", advance(HawaiiTrainer.compute_loss, 2))
    monkeypatch.setattr(trainer_module, "answer_questions", advance(trainer_module.answer_questions, 10))


def evaluations(history):
    return [entry for entry in history if "eval_accuracy" in entry]


@pytest.fixture
def parrot():
    module = make_module(objective="llava")
    module.student = make_parrot("red", vision={"num_teacher_adapters": 0, "num_general_adapters": 0})
    return module


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_accuracy_is_the_share_of_right_answers(make_trainer, parrot, batch_size):
    metrics = make_trainer(parrot, per_device_eval_batch_size=batch_size).evaluate()
    assert metrics == {**RED, "train_seconds": 0.0, "epoch": 0}


@pytest.mark.parametrize("kwargs", [{"bf16": True}, {"dataloader_num_workers": 1}, {CHECKPOINTING[0]: True}], ids=str)
def test_the_accuracy_does_not_depend_on_training_options(make_trainer, parrot, kwargs):
    trainer = make_trainer(parrot, learning_rate=0.0, max_steps=1, **kwargs)
    trainer.train()
    (entry,) = evaluations(trainer.state.log_history)
    assert {name: entry[name] for name in RED} == RED


def test_a_model_in_half_precision_is_evaluated(make_trainer, parrot):
    parrot.student.to(torch.bfloat16)
    assert make_trainer(parrot).evaluate()["eval_accuracy"] == 3 / 5


def test_evaluations_do_not_change_training(make_trainer):
    weights = []
    for eval_steps in (1, 2, 100):
        torch.manual_seed(0)
        module = make_module(objective="llava", text={"attention_dropout": 0.1})
        trainer = make_trainer(module, eval_steps=eval_steps, max_grad_norm=1.0)
        trainer.train()
        # transformers evaluates at the last step in any case.
        assert len(evaluations(trainer.state.log_history)) == {1: 4, 2: 2, 100: 1}[eval_steps]
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        weights.append((losses, module.state_dict()))
    for losses, state in weights[1:]:
        assert losses == weights[0][0]
        assert all(torch.equal(tensor, weights[0][1][name]) for name, tensor in state.items())


def test_the_seconds_of_evaluations_do_not_count_as_training(make_trainer, timed_training):
    trainer = make_trainer(eval_steps=1)
    trainer.train()
    assert [entry["train_seconds"] for entry in evaluations(trainer.state.log_history)] == [2, 4, 6, 8]
    assert trainer.timer.seconds == 8


class Listener(TrainerCallback):
    """Records the events that every `report_to` integration receives."""

    def __init__(self):
        self.logs, self.evaluations, self.batches = [], [], 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.evaluations.append(metrics["eval_accuracy"])

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        assert len(eval_dataloader) == 3
        self.batches += 1


def test_callbacks_receive_the_events_of_transformers_evaluations(make_trainer, parrot):
    listener = Listener()
    trainer = make_trainer(parrot, [listener], per_device_eval_batch_size=2, learning_rate=0.0)
    trainer.train()
    logged = evaluations(listener.logs)
    assert len(logged) == 2 and listener.evaluations == [0.6, 0.6] and listener.batches == 6
    assert all(isinstance(value, int | float) for entry in logged for value in entry.values())
    assert not any(name.startswith("eval") for entry in listener.logs if "loss" in entry for name in entry)


def test_an_evaluation_does_not_split_the_logged_terms_of_the_loss(make_trainer):
    logs = []
    for eval_steps in (1, 100):
        torch.manual_seed(0)
        trainer = make_trainer(eval_steps=eval_steps, logging_steps=4)
        trainer.train()
        logs.append(next(entry for entry in trainer.state.log_history if "loss" in entry))
    first, second = ({name: value for name, value in log.items() if name not in CLOCK_ENTRIES} for log in logs)
    assert first == second


# Recipes, as `hawaii train` runs them.


@pytest.fixture
def recipe(tmp_path, teacher_folders):
    """A recipe whose second stage is evaluated after every step."""
    path = write_recipe(tmp_path, teacher_folders)
    save_questions(tmp_path, QUESTIONS)
    options = {"eval_data_path": str(tmp_path / "questions.json"), "eval_strategy": "steps", "eval_steps": 1}
    overrides = [f"stages.finetune.{name}={value}" for name, value in options.items()]
    return path, [*overrides, "objective=llava", "max_steps=4", "save_steps=2"]


# Of 14 records: three steps of two micro-batches and one step of one.
SECONDS = [4, 8, 12, 14]


def log(folder):
    return [json.loads(line) for line in (folder / "finetune" / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_evaluates_each_step_once_and_continues_to_count_seconds(recipe, tmp_path, timed_training):
    path, overrides = recipe
    overrides = [*overrides, "stages.finetune.eval_on_start=true"]
    train(str(path), overrides)
    run = tmp_path / "run"
    whole, weights = log(run), load_file(run / "finetune" / "model" / "model.safetensors")
    # As if it had been killed after step 3.
    shutil.rmtree(run / "finetune" / "model")
    shutil.rmtree(run / "finetune" / "checkpoint-4")
    kept = [json.dumps(entry) for entry in whole if entry["step"] <= 3]
    (run / "finetune" / "log.jsonl").write_text("\n".join(kept) + "\n")
    train(str(path), overrides)
    again = log(run)
    assert [entry["step"] for entry in evaluations(again)] == [0, 1, 2, 3, 4]
    assert evaluations(again) == evaluations(whole)
    assert [entry["train_seconds"] for entry in evaluations(again)] == [0, *SECONDS]
    resumed = load_file(run / "finetune" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights.items())


def test_the_report_of_a_stage_has_the_last_loss_and_the_seconds_of_training(recipe, tmp_path, timed_training):
    path, overrides = recipe
    train(str(path), overrides)
    report = json.loads((tmp_path / "run" / "finetune" / "model" / "stage.json").read_text())
    assert report["log"]["loss"] > 0 and report["log"]["step"] == 4
    last = evaluations(log(tmp_path / "run"))[-1]
    assert last["step"] == 4 and last["train_seconds"] == report["seconds"] == SECONDS[-1]


def test_a_stage_trains_on_the_given_share_of_the_images(recipe, tmp_path):
    path, overrides = recipe
    train(str(path), [*overrides, "image_share=0.5", "max_steps=1"])
    for stage in ("pretrain", "finetune"):
        report = json.loads((tmp_path / "run" / stage / "model" / "stage.json").read_text())
        assert 0 < report["samples"] < 14
    assert evaluations(log(tmp_path / "run"))[0]["eval_num_questions"] == 5


def test_the_error_about_a_broken_image_names_it(recipe, tmp_path):
    path, overrides = recipe
    (tmp_path / "images" / "q4.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"questions.json, record 'q4': its image .*q4.png cannot be read"):
        train(str(path), overrides)


def finish_first_stage(run, path, overrides):
    """Saves a parrot as the model of the first stage of a recipe."""
    folder = run / "pretrain" / "model"
    make_parrot("red", vision={"num_teacher_adapters": 0, "num_general_adapters": 0}).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    save_objective(make_module(objective="llava").objective, folder)
    (folder / "stage.json").write_text(json.dumps({**FACTS["stages"]["finetune"], "num_parameters": 1}))
    stage = read_recipe(path, overrides).stages["pretrain"]
    write_manifest(folder, describe_stage(stage, None, 1))


@pytest.mark.slow
def test_two_processes_get_the_accuracy_of_one(recipe, tmp_path):
    path, overrides = recipe
    # Five questions: one process has a batch more than the other.
    overrides += ["learning_rate=0", "save_strategy=no", "max_steps=1", "per_device_eval_batch_size=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        finish_first_stage(run, path, overrides)
    train(str(path), [*overrides, f"output_dir={one}"])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hawaii", "train"]
    done = subprocess.run(
        [sys.executable, *launch, str(path), *overrides, f"output_dir={two}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for run in (one, two):
        (entry,) = evaluations(log(run))
        assert {name: entry[name] for name in RED} == RED
