"""The log has the speed of training and the load of the adapters; a collapsed router gives a warning."""

import json
import logging
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from hawaii.tests.tiny.tiled_data import PINPOINTS
from hawaii.tests.tiny.training import (
    RAGGED,
    build_trainer,
    make_batch,
    make_module,
    make_record,
)
from hawaii.training.callbacks import JsonLinesCallback
from hawaii.training.counting.step import BatchShape, make_features, trace_outline
from hawaii.training.monitoring.monitor import Monitor
from hawaii.training.monitoring.progress import ProgressBar, is_loss_term
from hawaii.training.monitoring.router_load import RouterLoad
from hawaii.training.monitoring.step_flops import StepFlops
from hawaii.training.objectives.encoder_passes import encoder_of, routed_and_forced_passes
from hawaii.training.students.student import set_tiles
from hawaii.training.students.trainable import set_trainable


RECORDS = [make_record(number, questions=1 + number % 3, image=number != 4) for number in range(6)]


@pytest.fixture
def make_trainer(tmp_path, teachers_of):
    def make_trainer(module, records=RECORDS, **kwargs):
        settings = {"save_strategy": "no", "logging_steps": 2, "max_steps": 4, **kwargs}
        teachers = teachers_of[type(module.objective)]
        return build_trainer(tmp_path, module, teachers, records, per_device_train_batch_size=3, **settings)

    return make_trainer


def test_the_log_has_the_rates_of_its_interval(make_trainer, clock, monkeypatch):
    """Each step takes two seconds; an interval of two steps has six samples."""
    lengths = []

    class Tick(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            clock.now += 2

    monkeypatch.setattr(StepFlops, "take", lambda self: 8_000)
    trainer = make_trainer(make_module(), callbacks=[Tick()])
    original = trainer.monitor.expect
    monkeypatch.setattr(
        trainer.monitor,
        "expect",
        lambda batch, s: lengths.append(int(batch["attention_mask"].sum())) or original(batch, s),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for log, tokens in zip(logs, (sum(lengths[:2]), sum(lengths[2:]))):
        assert log["samples_per_second"] == 1.5
        assert log["tokens_per_second"] == pytest.approx(tokens / 4, rel=1e-3)
        assert log["flops_per_second"] == 2_000 and "mfu" not in log
        assert abs(log["time"] - time.time()) < 600


def test_mfu_is_logged_where_the_peak_is_known(monkeypatch):
    module = make_module()
    monitor = Monitor(module, [], Accelerator(cpu=True))
    monitor._peak = 1e6
    monkeypatch.setattr(StepFlops, "take", lambda self: 500_000)
    batch = {"image_index": torch.tensor([0]), "attention_mask": torch.ones(1, 5)}
    monitor.expect(batch, 10.0)
    entries = monitor.summarize(12.0)
    assert entries["mfu"] == 0.25 and "flops_per_second" not in entries


TRAINABLE = {
    "stage 1": ["adapters", "routers", "projector"],
    "all": ["vision_tower", "adapters", "routers", "projector", "language_model", "projections"],
}


@pytest.mark.parametrize("trainable", TRAINABLE)
@pytest.mark.parametrize("objective", ["hawaii", "llava"])
def test_operations_are_within_ten_percent_of_the_traced_ones(teachers_of, objective, trainable):
    """The trace also counts the second pass of attention's backward kernel. Layers are as wide as they are long."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 256}
    module = make_module(vision=sizes, text=sizes, objective=objective, trainable=TRAINABLE[trainable]).train()
    set_trainable(module.student, TRAINABLE[trainable])
    grids = [teacher.grid for teacher in teachers_of[type(module.objective)]]
    shape = BatchShape(2, 2, 40, 6, 80)
    batch = shape.make(module.student)
    counter = StepFlops(module, [])
    module(make_features(grids, 2), batch)[0].backward()
    counted = counter.take()
    assert counter.take() == 0
    assert counted == pytest.approx(trace_outline(module.to("meta"), grids, shape).flops, rel=0.1)


@pytest.mark.parametrize("distill_tiles", [True, False])
def test_operations_of_tiles_are_within_ten_percent_of_the_traced_ones(teachers, distill_tiles):
    sizes = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 256}
    module = make_module(vision=sizes, text=sizes, trainable=TRAINABLE["all"]).train()
    set_tiles(module.student, PINPOINTS)
    grids = [teacher.grid for teacher in teachers]
    shape = BatchShape(2, 2, 40, 6, 80, num_tiles=8, distill_tiles=distill_tiles)
    batch = shape.make(module.student)
    counter = StepFlops(module, [])
    module(make_features(grids, shape.num_distilled), batch)[0].backward()
    counted = counter.take()
    assert counted == pytest.approx(trace_outline(module.to("meta"), grids, shape).flops, rel=0.1)


def test_teachers_count_for_every_image(teachers):
    counter = StepFlops(make_module(), teachers)
    counter.num_teacher_images = 1
    one = counter.take()
    counter.num_teacher_images = 5
    assert counter.take() == 5 * one > 0


def routes_of(module, pixel_values):
    """The adapters that each layer chooses for each token by the encoder's own output, by bank."""
    probabilities = encoder_of(module.student)(pixel_values, output_routing=True).router_probabilities
    teacher, general = probabilities.split([2, 3], dim=-1)
    return {"teacher": teacher.argmax(dim=-1), "general": general.argmax(dim=-1)}


@pytest.mark.parametrize("is_sequential", [False, True])
@pytest.mark.parametrize("distilled", [slice(None), slice(1, 2), [0, 3]])
def test_the_load_is_the_share_of_the_tokens_of_counted_images(tmp_path, processor, is_sequential, distilled):
    module = make_module().train()
    pixel_values = make_batch(tmp_path, RAGGED, processor)["pixel_values"].repeat(2, 1, 1, 1)
    is_counted = torch.tensor([True, False, True, True])
    with torch.no_grad():
        chosen = routes_of(module, pixel_values[is_counted])
    load = RouterLoad(module.student, ["vit", "convnext"])
    load.expect(is_counted)
    for _ in range(2):  # two micro-batches
        routed_and_forced_passes(module.student, pixel_values, is_sequential, pixel_values[distilled])
    entries = load.summarize(Accelerator(cpu=True))
    for bank, names in {"teacher": ["vit", "convnext"], "general": ["0", "1", "2"]}.items():
        for index, name in enumerate(names):
            expected = (chosen[bank] == index).float().mean().item()
            assert entries[f"load/{bank}/{name}"] == pytest.approx(expected, abs=1e-4)
        assert 0 <= entries[f"load_entropy/{bank}"] <= 1
    assert load.summarize(Accelerator(cpu=True)) == {}


def test_evaluations_and_a_student_without_adapters_have_no_load():
    module = make_module().eval()
    load = RouterLoad(module.student, [])
    load.expect(torch.tensor([True]))
    encoder_of(module.student)(torch.zeros(1, 3, 16, 16), output_routing=True)
    assert load.summarize(Accelerator(cpu=True)) == {}
    without = make_module(objective="llava").train()
    load = RouterLoad(without.student, [])
    load.expect(torch.tensor([True]))
    encoder_of(without.student)(torch.zeros(1, 3, 16, 16), output_routing=True)
    assert load.summarize(Accelerator(cpu=True)) == {}


def test_a_collapsed_router_causes_one_warning_that_names_layer_and_adapter(make_trainer, caplog):
    module = make_module()
    router = encoder_of(module.student).layers[1].feed_forward.routing.general_router
    for parameter in router.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)
    router.score.bias.data[2] = 5.0
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(module)
        trainer.train()
    warnings = [record.message for record in caplog.records if "general router of layer 1" in record.message]
    assert warnings == [
        "The general router of layer 1 has collapsed: it sends 100.0 % of the tokens to adapter 2. A larger lambda_2 "
        "balances it."
    ]
    assert trainer.state.log_history[0]["load/general/2"] >= 0.5


def test_nothing_waits_for_the_device_between_log_entries(make_trainer, monkeypatch):
    trainer = make_trainer(make_module())
    monitor = trainer.monitor
    waited = []
    for name in ("item", "tolist", "cpu", "__bool__", "__int__", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, f=original, n=name: waited.append(n) or f(self, *args)
        )
    batch = {"image_index": torch.tensor([0, 1]), "attention_mask": torch.ones(2, 5)}
    monitor.expect(batch, 0.0)
    encoder_of(trainer.model.student).train()(torch.zeros(2, 3, 16, 16), output_routing=True)
    assert waited == []
    monitor.summarize(1.0)
    assert "tolist" in waited


def test_trackers_receive_the_terms_and_the_load(make_trainer, monkeypatch):
    """Uses transformers' `report_to`, and a stub instead of a tracker's package."""
    from transformers.integrations import integration_utils

    received = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            received.append(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    make_trainer(make_module(), report_to=["tensorboard"]).train()
    log = next(log for log in received if "loss" in log)
    for name in ("text", "fine/vit", "balance", "variance/coarse", "load/teacher/vit", "samples_per_second"):
        assert isinstance(log[name], float), name


def test_nothing_is_reported_by_default():
    from hawaii.training.recipes.built_in import BUILT_IN
    from hawaii.training.recipes.recipe import read_recipe

    for name in BUILT_IN:
        if "vicuna" not in name:  # whose teachers need timm
            stages = read_recipe(name, use_cpu=True).stages.values()
            assert all(stage.training.report_to == [] for stage in stages)


def test_the_bar_starts_at_the_resumed_step_and_shows_every_loss_term(capsys):
    bar = ProgressBar()
    state = SimpleNamespace(global_step=40, max_steps=100, is_world_process_zero=True)
    bar.on_train_begin(None, state, None)
    assert (bar.training_bar.n, bar.training_bar.total) == (40, 100)
    bar.on_log(
        None, state, None, logs={"loss": 1.25, "text": 1.0, "fine/vit": 0.5, "time": 1.0, "load/teacher/vit": 1.0}
    )
    assert bar.training_bar.postfix == "loss=1.25, text=1, fine/vit=0.5"
    state.global_step = 41
    bar.on_step_end(None, state, None)
    assert bar.training_bar.n == 41
    bar.on_train_end(None, state, None)
    assert "<" in capsys.readouterr().err  # elapsed<remaining


def test_the_trainer_uses_the_bar_unless_it_is_disabled(make_trainer):
    for is_disabled in (True, False):
        trainer = make_trainer(make_module(objective="llava"), disable_tqdm=is_disabled)
        kinds = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
        assert ("ProgressBar" in kinds) == (not is_disabled) and "ProgressCallback" not in kinds


def test_every_term_of_an_objective_is_a_loss_term_and_nothing_else_is(make_trainer, tmp_path):
    trainer = make_trainer(make_module(), callbacks=[JsonLinesCallback()])
    trainer.train()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    names = [name for name in json.loads(lines[0]) if is_loss_term(name)]
    assert names == ["loss", "text", "fine", "fine/vit", "fine/convnext", "coarse", "balance"]
