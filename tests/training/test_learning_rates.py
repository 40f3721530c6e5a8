"""Parts of a student with learning rates of their own."""

import pytest
import torch

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import build_trainer, make_arguments, make_module, make_record
from hawaii.training.distribution.finite_checks import trained_parts
from hawaii.training.learning_rates import split_groups
from hawaii.training.students.trainable import set_trainable


RATES = {"projector": 0.5, "adapters": 0.0}
DECAY = 0.25


@pytest.fixture
def make_trainer(tmp_path, teachers_of):
    def make_trainer(module, **kwargs):
        kwargs = {"learning_rate": 0.1, "save_strategy": "no", "logging_steps": 1, **kwargs}
        records = [make_record(number) for number in range(2)]
        return build_trainer(tmp_path, module, teachers_of[type(module.objective)], records, **kwargs)

    return make_trainer


def test_each_parameter_takes_the_step_of_its_part_and_keeps_its_decay(make_trainer):
    module = make_module()
    trainable = ["vision_tower", "adapters", "routers", "projector", "language_model"]
    set_trainable(module.student, trainable)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    options = {"max_grad_norm": 0, "weight_decay": DECAY, "optim": "sgd", "lr_scheduler_type": "constant"}
    trainer = make_trainer(module, max_steps=1, trainable=trainable, learning_rates=RATES, **options)
    gradients = {}
    step = trainer.training_step

    def training_step(*args, **kwargs):
        loss = step(*args, **kwargs)
        gradients.update({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
        return loss

    trainer.training_step = training_step
    trainer.train()
    decayed = set(trainer.get_decay_parameter_names(module))
    parts = dict(zip((name for name, _ in module.named_parameters()), (part for part, _ in trained_parts(module))))
    assert {parts[name] for name in gradients} >= set(trainable)
    for name, parameter in module.named_parameters():
        if name in gradients:
            rate = RATES.get(parts[name], 0.1)
            change = gradients[name] + (DECAY * before[name] if name in decayed else 0)
            torch.testing.assert_close(parameter.detach(), before[name] - rate * change, msg=name)


def test_the_log_has_the_rate_of_each_part_at_its_step(make_trainer):
    options = {"lr_scheduler_type": "linear", "max_steps": 4, "learning_rates": RATES}
    trainer = make_trainer(make_module(), **options)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for step, entry in enumerate(entries):
        left = 1 - step / 4
        assert entry["learning_rate"] == pytest.approx(0.1 * left)
        assert entry["learning_rate/projector"] == pytest.approx(0.5 * left)
        assert entry["learning_rate/adapters"] == 0
    assert len(entries) == 4
    parts = [key for key in entries[0] if key.startswith("learning_rate/")]
    assert sorted(parts) == ["learning_rate/adapters", "learning_rate/projector"]


def test_without_rates_of_parts_the_log_has_one_rate(make_trainer):
    trainer = make_trainer(make_module(), max_steps=1)
    trainer.train()
    assert not any(key.startswith("learning_rate/") for entry in trainer.state.log_history for key in entry)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"projectors": 1e-3}, "a part of learning_rates is 'projectors'; it must be one of vision_tower, adapters"),
        ({"vision_tower": 1e-3}, "learning_rates has a rate for vision_tower, but trainable is ['projector']"),
        ({"projector": "fast"}, "The learning rate of projector in learning_rates is 'fast'; it must be a number"),
        ({"projector": -1}, "The learning rate of projector in learning_rates is -1; it must be a number"),
    ],
)
def test_a_wrong_rate_is_refused(rates, message):
    with pytest.raises(ValueError) as error:
        make_arguments(trainable=["projector"], learning_rates=rates)
    assert message in str(error.value)


def test_an_optimizer_without_groups_is_refused():
    with pytest.raises(UserError, match="learning_rates needs an optimizer of PyTorch"):
        split_groups(object(), make_module(), RATES)


def test_a_rate_for_a_part_that_the_student_does_not_have_is_refused(make_trainer):
    module = make_module(vision={"num_teacher_adapters": 0, "num_general_adapters": 0}, objective="llava")
    trainer = make_trainer(module, learning_rates={"adapters": 1e-3})
    with pytest.raises(
        UserError, match="a rate for adapters, but no parameter of this part is trained: leave adapters"
    ):
        trainer.create_optimizer()
