"""Training stops before a step whose loss or gradient is not finite; weights that are not finite are not saved."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import (
    build_trainer,
    make_arguments,
    make_module,
    make_options,
    make_record,
    write_recipe,
)
from hawaii.training.data.conversation_dataset import Collator
from hawaii.training.distribution.finite_checks import check_step, check_weights, gradient_norms
from hawaii.training.finished_stage import ObjectiveSettings
from hawaii.training.recipes.objectives import OBJECTIVES
from hawaii.training.trainer import HawaiiTrainer


RECORDS = [make_record(number) for number in range(6)]
TERMS = {
    "hawaii": ["text", "fine", "fine/vit", "fine/convnext", "coarse", "balance"],
    "llava": ["text"],
    "move_kd": ["text", "distillation", "distillation/vit", "distillation/convnext", "weight/vit", "balance"],
    "radio": ["text", "distillation", "distillation/vit", "distillation/convnext"],
}
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def make_trainer(tmp_path, teachers_of):
    """Makes a trainer of two steps, in the order of the records."""

    def make_trainer(module, **kwargs):
        kwargs = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1, **kwargs}
        kwargs = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential", **kwargs}
        return build_trainer(tmp_path, module, teachers_of[type(module.objective)], RECORDS, **kwargs)

    return make_trainer


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def break_term(monkeypatch, module, name, value, calls):
    """Sets a term of the loss, and the loss, in the micro-batches `calls`."""
    objective, original, number = type(module.objective), type(module.objective).forward, 0

    def forward(self, student, features, batch):
        nonlocal number
        loss, terms = original(self, student, features, batch)
        number += 1
        if number in calls:
            loss, terms = loss + value, {**terms, name: terms[name] + value}
        return loss, terms

    monkeypatch.setattr(objective, "forward", forward)


def weights_of(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def unchanged(module, before):
    return all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("objective", "name"), [(key, name) for key, names in TERMS.items() for name in names])
def test_a_term_that_is_not_finite_is_named_with_its_step_and_records(
    make_trainer, monkeypatch, objective, name, value
):
    module = make_module(objective=objective, vision={"num_general_adapters": 2, "router_gradient": "none"})
    break_term(monkeypatch, module, name, value, calls=[2])
    first = {}
    monkeypatch.setattr(HawaiiTrainer, "log", lambda self, *args: first.update(weights_of(self.model)))
    with pytest.raises(UserError, match=rf"before step 2 .* the loss term {name} is not finite .* '1': fix"):
        make_trainer(module).train()
    assert unchanged(module, first)  # since the first step


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_checks_all_terms_that_it_adds_up(run, batch, objective):
    _, terms = run(make_module(objective=objective), batch)
    left_out = {name for name in terms if name.startswith(("variance/", "weight/convnext"))}
    assert set(terms) - left_out <= set(TERMS[objective])


@pytest.mark.parametrize("objective", ["hawaii", "move_kd", "radio"])
def test_features_of_a_teacher_that_are_not_finite_stop_training(make_trainer, monkeypatch, objective):
    module = make_module(objective=objective)
    trainer = make_trainer(module)
    before, convnext = weights_of(module), trainer.teachers[1]
    monkeypatch.setattr(trainer, "teachers", [trainer.teachers[0], lambda images: convnext(images) * INF])
    with pytest.raises(UserError, match=r"before step 1 .*(fine|distillation)/convnext.* for the records '0'"):
        trainer.train()
    assert unchanged(module, before)


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("student.model.multi_modal_projector.linear_1.weight", "projector"),
        ("student.model.language_model.norm.weight", "language_model"),
        ("objective.coarse_projection.0.weight", "projections"),
    ],
)
def test_a_gradient_that_is_not_finite_is_named_by_its_part(make_trainer, name, part, value, max_grad_norm, precision):
    module = make_module()
    before = weights_of(module)
    dict(module.named_parameters())[name].register_hook(lambda gradient: gradient + value)
    with pytest.raises(UserError, match=rf"before step 1 .* because the gradient of {part} is not finite .* '0': fix"):
        make_trainer(module, max_grad_norm=max_grad_norm, **precision).train()
    assert unchanged(module, before)


def test_a_sum_of_finite_terms_that_is_not_finite_is_named(make_trainer):
    module = make_module(lambda_1=1e308, lambda_2=0.0, distillation=["coarse"])
    with pytest.raises(UserError, match="before step 1 .* the loss term loss is not finite for the records '0': fix"):
        make_trainer(module).train()


def test_the_records_are_those_of_the_micro_batches_with_the_term(make_trainer, monkeypatch):
    module = make_module()
    break_term(monkeypatch, module, "fine", NAN, calls=[2])
    with pytest.raises(UserError, match=r"before step 1 .* for the records '2', '3': fix"):
        make_trainer(module, gradient_accumulation_steps=3, per_device_train_batch_size=2).train()


def test_the_records_of_a_gradient_are_those_of_the_whole_step(make_trainer):
    module = make_module()
    module.student.lm_head.weight.register_hook(lambda gradient: gradient * INF)
    with pytest.raises(UserError, match=r"language_model is not finite for the records '0', '1', '2', '3', '4', '5':"):
        make_trainer(module, gradient_accumulation_steps=3, per_device_train_batch_size=2).train()


def test_an_error_does_not_name_thousands_of_records(accelerator):
    records = [[str(number) for number in range(100)]]
    with pytest.raises(UserError, match=r"records 0, 1, .*, 62, 63 and 36 others: fix"):
        check_step(1, [{"text": torch.tensor(NAN)}], {}, records, accelerator)


@pytest.mark.parametrize(("scale", "is_error"), [(65536.0, False), (2.0, False), (1.0, True), (0.5, True)])
def test_a_gradient_that_a_smaller_scale_may_repair_is_no_error(accelerator, monkeypatch, scale, is_error):
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=scale))
    accelerator.scaler.scale(torch.ones(()))  # creates the scale
    step = (3, [{"text": torch.ones(())}], {"projector": torch.tensor(INF)}, [["a"]], accelerator)
    if is_error:
        with pytest.raises(UserError, match="before step 3 .* the gradient of projector is not finite"):
            check_step(*step)
    else:
        check_step(*step)


def test_a_loss_that_is_not_finite_is_an_error_whatever_the_scale(accelerator, monkeypatch):
    monkeypatch.setattr(accelerator, "scaler", SimpleNamespace(get_scale=lambda: 65536.0))
    with pytest.raises(UserError, match="the loss term text is not finite for the records a"):
        check_step(3, [{"text": torch.tensor(INF)}], {"projector": torch.tensor(INF)}, [["a"]], accelerator)


class CountReads(TorchDispatchMode):
    """Counts the numbers that are copied from the device."""

    num_reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_reads_one_number_from_the_device(accelerator, run, batch):
    module = make_module()
    loss, terms = run(module, batch)
    loss.backward()
    with CountReads() as count:
        check_step(1, [terms] * 8, gradient_norms(module), [["a"]] * 8, accelerator)
    assert count.num_reads == 1
    assert not make_arguments().logging_nan_inf_filter  # reads one in each micro-batch


def test_a_step_without_label_tokens_has_no_text_loss(make_trainer, monkeypatch):
    collate = Collator.__call__

    def without_labels(self, samples):
        batch = collate(self, samples)
        return {**batch, "labels": torch.full_like(batch["labels"], -100), "label_index": batch["label_index"][:0]}

    monkeypatch.setattr(Collator, "__call__", without_labels)
    trainer = make_trainer(make_module())
    trainer.train()
    log = trainer.state.log_history[0]
    assert trainer.state.global_step == 2 and log["text"] == 0 and log["fine"] > 0


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_not_finite_are_neither_saved_nor_evaluated(make_trainer, tmp_path, value):
    module = make_module()
    with torch.no_grad():
        module.student.model.multi_modal_projector.linear_1.bias[3] = value
    trainer = make_trainer(module)
    settings = ObjectiveSettings("hawaii", make_options(), [])
    problem = "The weights of projector are not finite after step 0, so they are not used: lower"
    for attempt in (
        lambda: trainer._save_checkpoint(module, None),
        lambda: trainer.save_whole(tmp_path / "run" / "model", {}, settings),
        trainer.evaluate,
    ):
        with pytest.raises(UserError, match=problem):
            attempt()
    assert not list(tmp_path.glob("run/*"))


def test_large_weights_are_finite(accelerator):
    module = make_module()
    module.student.lm_head.weight.data.fill_(1e38)
    check_weights(1, module, accelerator)


@pytest.mark.parametrize("learning_rate", ["1e12", "1e39"])
def test_a_learning_rate_that_diverges_ends_with_one_sentence(tmp_path, teacher_folders, capsys, learning_rate):
    # The second makes the weights of the very first step infinite.
    recipe = write_recipe(tmp_path, teacher_folders)
    overrides = [f"learning_rate={learning_rate}", "save_steps=1", "max_steps=4"]
    for _ in range(2):  # a rerun fails as well
        assert main(["train", str(recipe), *overrides]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hawaii train: ")]
        assert ("before step 2 changed" if learning_rate == "1e12" else "not finite after step 1") in line
        assert "lower learning_rate" in line
        assert not list((tmp_path / "run").rglob("*model")) and not (tmp_path / "run" / "hub").exists()
        for path in (tmp_path / "run").rglob("*.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(path).values())


@pytest.mark.parametrize("max_steps", [1, 2])
def test_a_learning_rate_that_diverges_in_the_last_step_leaves_no_stage(tmp_path, teacher_folders, capsys, max_steps):
    recipe = write_recipe(tmp_path, teacher_folders, save_strategy="no")
    rate = {1: "1e39", 2: "1e12"}[max_steps]
    assert main(["train", str(recipe), f"learning_rate={rate}", f"max_steps={max_steps}"]) == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "pretrain" / "model").exists()
