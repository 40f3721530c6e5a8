"""The trainer changes only trainable parameters, and the split of a step into micro-batches has no effect."""

import logging

import pytest
import torch
from transformers import TrainerCallback

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import (
    CHECKPOINTING,
    build_trainer,
    make_module,
    make_record,
)
from hawaii.training.monitoring.monitor import CLOCK_ENTRIES
from hawaii.training.recipes.arguments import TRAINABLE_PARTS
from hawaii.training.students.trainable import set_trainable


# Different lengths, and two without an image.
RECORDS = [make_record(number, questions=1 + number % 3, image=number not in (1, 4)) for number in range(6)]
STAGE_1 = ["adapters", "routers", "projector"]
STAGE_2 = ["vision_tower", "adapters", "routers", "projector", "language_model"]


class RecordGradients(TrainerCallback):
    """Records each step's gradients by parameter name."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


@pytest.fixture
def make_trainer(tmp_path, teachers_of):
    """Makes a trainer with a tiny data set."""

    def make_trainer(module, records=RECORDS, **kwargs):
        kwargs = {"learning_rate": 1e-2, "save_strategy": "no", "logging_steps": 1, **kwargs}
        return build_trainer(tmp_path, module, teachers_of[type(module.objective)], records, **kwargs)

    return make_trainer


def reset_adapters(module):
    """Sets the adapters to their initial state: B is zero, so A has no gradient in the first step."""
    for name, parameter in module.named_parameters():
        if "adapters.up" in name:
            torch.nn.init.zeros_(parameter)
    return module


def values(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("trainable", [STAGE_1, STAGE_2, ["projector"], ["adapters"], ["language_model", "routers"]])
def test_all_trainable_parameters_change_and_no_others(make_trainer, trainable):
    module = reset_adapters(make_module())
    set_trainable(module.student, trainable)
    before = values(module)
    make_trainer(module, max_steps=3, per_device_train_batch_size=3).train()
    after = values(module)
    assert changed(before, after) == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if "adapters" in trainable:
        for name in before:
            if "lora_" in name:  # every teacher has a pass
                assert (before[name] != after[name])[:2].flatten(1).any(dim=1).all(), name


def test_the_plain_template_trains_all_but_the_projection_of_instructions(make_trainer):
    module = reset_adapters(make_module())
    set_trainable(module.student, STAGE_1)
    before = values(module)
    make_trainer(module, chat_template="plain", max_steps=3, per_device_train_batch_size=3).train()
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert changed(before, values(module)) == {name for name in trainable if "text_projection" not in name}


def test_teachers_do_not_change_and_are_in_neither_model_nor_optimizer(make_trainer, teachers):
    module = make_module()
    before = [values(teacher.model) for teacher in teachers]
    trainer = make_trainer(module, max_steps=2, per_device_train_batch_size=3)
    trainer.train()
    for teacher, state in zip(teachers, before):
        assert changed(state, values(teacher.model)) == set()
    teacher_parameters = {id(parameter) for teacher in teachers for parameter in teacher.model.parameters()}
    optimized = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert not teacher_parameters & {id(parameter) for parameter in [*optimized, *trainer.model.parameters()]}
    assert len(optimized) == sum(parameter.requires_grad for parameter in module.parameters())
    assert all(name.startswith(("student.", "objective.")) for name in trainer.model.state_dict())


def gradients_of_a_step(make_trainer, batch_size, num_micro_batches, **kwargs):
    """Returns the gradients and the log entry of one step over all six records."""
    torch.manual_seed(0)
    recorder = RecordGradients()
    trainer = make_trainer(
        make_module(**kwargs),
        callbacks=[recorder],
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=num_micro_batches,
        max_steps=1,
        max_grad_norm=0.0,
        optim="sgd",
    )
    trainer.train()
    return recorder.steps[0], trainer.state.log_history[0]


# HAWAII's balance loss is computed within each micro-batch, so it is left out.
@pytest.mark.parametrize(
    "kwargs",
    [
        {"lambda_2": 0.0},
        {"lambda_2": 0.0, "score_gradient": "full"},
        {"lambda_2": 0.0, "sequential_passes": True},
        {"lambda_2": 0.0, "distillation": ["fine"]},
        {"lambda_2": 0.0, "distillation": ["coarse"]},
        {"objective": "llava"},
        {"objective": "move_kd"},
        {"objective": "move_kd", "single_softmax": True, "detached_teacher_weights": True},
        {"objective": "radio"},
    ],
    ids=str,
)
def test_accumulated_micro_batches_give_the_gradient_of_one_large_batch(make_trainer, kwargs):
    whole, whole_log = gradients_of_a_step(make_trainer, 6, 1, **kwargs)
    for batch_size, num_micro_batches in [(4, 2), (1, 6)]:
        parts, log = gradients_of_a_step(make_trainer, batch_size, num_micro_batches, **kwargs)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9, msg=name)
        # Variances are computed within each micro-batch, too.
        left_out = (
            "variance/",
            "grad_norm",
            "learning_rate",
            *CLOCK_ENTRIES,
            *(["balance"] if "lambda_2" in kwargs else []),
        )
        names = [name for name in whole_log if not name.startswith(left_out)]
        assert {"loss", "text"} <= set(names) <= set(log)
        for name in names:
            assert log[name] == pytest.approx(whole_log[name], rel=1e-3), name


def test_the_balance_loss_of_a_step_is_the_mean_over_images_of_its_micro_batches(make_trainer, recorded):
    _, log = gradients_of_a_step(make_trainer, 2, 3)
    calls = [(int(is_counted.sum()), value.item()) for (_, is_counted), value in recorded["load_balance_loss"]]
    assert len(calls) == 3 * 2 and len(set(calls)) > 2  # three micro-batches, two banks
    expected = sum(num_images * value for num_images, value in calls) / (sum(count for count, _ in calls) / 2)
    assert log["balance"] == pytest.approx(expected, rel=1e-3)


def test_a_micro_batch_without_images_changes_only_the_text_loss(make_trainer):
    # Batches of one: two of the six have no image.
    _, log = gradients_of_a_step(make_trainer, 1, 6)
    images = [record for record in RECORDS if "image" in record]
    torch.manual_seed(0)
    trainer = make_trainer(
        make_module(), images, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=1, optim="sgd"
    )
    trainer.train()
    for name in ("fine", "coarse", "balance", "variance/student"):
        assert trainer.state.log_history[0][name] == pytest.approx(log[name], rel=2e-3), name


def test_the_log_has_the_mean_of_each_term_over_its_steps(make_trainer):
    logs = []
    for logging_steps in (1, 2, 4):
        torch.manual_seed(0)
        trainer = make_trainer(make_module(), max_steps=4, per_device_train_batch_size=2, logging_steps=logging_steps)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    each, pairs, whole = logs
    assert [len(log) for log in logs] == [4, 2, 1]
    for name in ("loss", "text", "fine", "coarse", "balance", "fine/vit", "variance/coarse"):
        numbers = [entry[name] for entry in each]
        assert pairs[1][name] == pytest.approx(sum(numbers[2:]) / 2, rel=1e-3), name
        assert whole[0][name] == pytest.approx(sum(numbers) / 4, rel=1e-3), name


def test_the_logged_loss_is_equation_7_of_the_logged_terms(make_trainer):
    trainer = make_trainer(make_module(), max_steps=1, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    trainer.train()
    log = trainer.state.log_history[0]
    expected = log["text"] + 0.5 * (log["fine"] + log["coarse"]) + 0.05 * log["balance"]
    assert log["loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_gradient_checkpointing_trains_to_the_same_weights(make_trainer, name):
    results = []
    for kwargs in ({}, {name: True}):
        torch.manual_seed(0)
        module = make_module()
        set_trainable(module.student, STAGE_1)
        make_trainer(module, max_steps=2, per_device_train_batch_size=3, **kwargs).train()
        results.append(values(module))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, msg=key)


def test_frozen_projections_leave_their_targets_unchanged_and_all_else_changes(make_trainer):
    parts = [part for part in TRAINABLE_PARTS if part != "projections"]
    module = make_module(trainable=parts)
    before = values(module)
    make_trainer(module, max_steps=2, per_device_train_batch_size=3, trainable=parts).train()
    targets = ("objective.fine_projections", "objective.coarse_projection")
    assert changed(before, values(module)) == {name for name in before if not name.startswith(targets)}


def test_a_collapsed_target_causes_one_warning(make_trainer, caplog):
    module = make_module()
    for parameter in module.objective.fine_projections["1_convnext"].parameters():
        parameter.data.zero_()
    module.objective.fine_projections["1_convnext"].requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        make_trainer(module, max_steps=3, per_device_train_batch_size=3).train()
    warnings = [record.message for record in caplog.records if "convnext has collapsed" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("The target convnext has collapsed: its variance is 0, the student's is")


def test_neftune_changes_the_words_of_training_alone(make_trainer):
    module, logs = make_module(), {}
    weights, embeddings = values(module), module.student.get_input_embeddings()
    for alpha in (None, 1e-9, 30.0):
        module.load_state_dict(weights)
        trainer = make_trainer(module, max_steps=1, per_device_train_batch_size=6, neftune_noise_alpha=alpha)
        trainer.train()
        logs[alpha] = trainer.state.log_history[0]
        assert not embeddings._forward_hooks
    assert logs[1e-9]["text"] == pytest.approx(logs[None]["text"], rel=1e-3)
    assert logs[30.0]["text"] != pytest.approx(logs[None]["text"], rel=1e-3)
    for name in ("fine", "coarse", "balance"):  # the weights of tokens are also computed from words without noise
        assert logs[30.0][name] == logs[None][name]


@pytest.mark.parametrize("options", [{}, {"train_sampling_strategy": "group_by_length"}], ids=["random", "grouped"])
def test_data_without_a_whole_batch_are_refused_if_the_last_one_is_dropped(make_trainer, options):
    trainer = make_trainer(
        make_module(), RECORDS[:1], per_device_train_batch_size=2, dataloader_drop_last=True, max_steps=1, **options
    )
    with pytest.raises(UserError, match="The 1 samples are too few for a batch in each of 1 processes: set"):
        trainer.train()
