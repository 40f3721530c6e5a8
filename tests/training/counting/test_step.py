"""The traced costs of a step are those of a real one: operations and saved bytes of a forward and a backward pass."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hawaii.tests.tiny.tiled_data import PINPOINTS
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_module
from hawaii.training.baselines.class_token_teacher import ClassTokenGrid
from hawaii.training.counting.step import (
    CPU_ATTENTION,
    ENCODER,
    LANGUAGE_MODEL,
    OBJECTIVE,
    PROJECTOR,
    BatchShape,
    make_features,
    trace_outline,
)
from hawaii.training.recipes.objectives import OBJECTIVES
from hawaii.training.students.student import set_tiles
from hawaii.training.students.trainable import set_trainable


SHAPE = BatchShape(num_samples=3, num_images=3, num_tokens=48, num_prompt_tokens=7, num_labels=60)
PACKED = replace(SHAPE, is_packed=True)
STAGE_1 = ["adapters", "routers", "projector"]
ALL = ["vision_tower", "adapters", "routers", "projector", "language_model", "projections"]
DEPTH = {"vision": {"num_hidden_layers": 3}, "text": {"num_hidden_layers": 4}}


def build(trainable=ALL, **kwargs):
    """A module whose repeated layers are traced in part, in training mode."""
    module = make_module(**{**DEPTH, **kwargs}, trainable=trainable).train()
    set_trainable(module.student, trainable)
    return module


def grids_of(objective):
    grids = dict(TEACHER_GRIDS)
    if objective == "move_kd":
        grids["vit"] = ClassTokenGrid(*grids["vit"])
    return list(grids.values())


def trace(module, objective="hawaii", shape=SHAPE, **kwargs):
    return trace_outline(copy.deepcopy(module).to("meta"), grids_of(objective), shape, **kwargs)


def make_inputs(module, grids, shape=SHAPE):
    """Features and a batch with padding; without padding, transformers would use no mask."""
    batch = shape.make(module.student)
    if not shape.is_packed:
        batch["attention_mask"][0, -1] = 0
    return make_features(grids, shape.num_distilled), batch


def measure_flops(module, grids, shape=SHAPE):
    """Operations of the forward and of the backward pass, by torch's counter on a real step."""
    features, batch = make_inputs(module, grids, shape)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as forward:
        loss, _ = module(features, batch)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(
    ("objective", "trainable"),
    [*((name, trainable) for name in OBJECTIVES for trainable in (STAGE_1, ALL)), ("llava", ["language_model"])],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} parts",
)
def test_operations_equal_those_of_a_real_step(objective, trainable):
    module = build(trainable, objective=objective)
    cost = trace(module, objective)
    assert (cost.forward.total(), cost.backward.total()) == measure_flops(module, grids_of(objective))


@pytest.mark.parametrize("distill_tiles", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_tiles_cost_what_they_cost_in_a_real_step(objective, distill_tiles):
    module = build(objective=objective)
    set_tiles(module.student, PINPOINTS)
    set_trainable(module.student, ALL)
    shape = replace(SHAPE, num_tiles=7, distill_tiles=distill_tiles)
    cost, plain = trace(module, objective, shape), trace(module, objective, replace(shape, num_tiles=3))
    assert (cost.forward.total(), cost.backward.total()) == measure_flops(module, grids_of(objective), shape)
    assert cost.forward[PROJECTOR] * 3 == plain.forward[PROJECTOR] * 7
    passes = 3 if objective == "hawaii" else 1  # the routed one, and that of each teacher's adapter
    seen = (7 * passes if distill_tiles else 7 + 3 * (passes - 1)) / (3 * passes)
    assert cost.forward[ENCODER] == pytest.approx(plain.forward[ENCODER] * seen)
    assert cost.forward[LANGUAGE_MODEL] == plain.forward[LANGUAGE_MODEL]


def test_packed_samples_cost_the_attention_of_one_long_sequence():
    module = build()
    cost, padded = trace(module, shape=PACKED), trace(module)
    grids = grids_of("hawaii")
    assert (cost.forward.total(), cost.backward.total()) == measure_flops(module, grids, PACKED)
    samples, tokens, heads, head_width, layers = 3, 48, 4, 8, DEPTH["text"]["num_hidden_layers"]
    attention = layers * heads * 2 * (2 * tokens * tokens * head_width)  # of one sample: two products
    assert cost.forward[LANGUAGE_MODEL] - padded.forward[LANGUAGE_MODEL] == attention * (samples**2 - samples)
    assert cost.forward[ENCODER] == padded.forward[ENCODER]


def test_operations_follow_the_options_of_the_objective():
    module = build(distillation=["coarse"])
    cost = trace(module)
    assert (cost.forward.total(), cost.backward.total()) == measure_flops(module, grids_of("hawaii"))


def test_recomputation_is_what_gradient_checkpointing_adds():
    module = build()
    plain, checkpointed = trace(module), trace(module, is_checkpointed=True)
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert (checkpointed.forward.total(), checkpointed.backward.total()) == measure_flops(module, grids_of("hawaii"))
    assert plain.forward == checkpointed.forward
    assert plain.backward[OBJECTIVE] == checkpointed.backward[OBJECTIVE]
    for part in (ENCODER, LANGUAGE_MODEL):
        recomputed = checkpointed.backward[part] - plain.backward[part]
        assert 0.5 * plain.forward[part] < recomputed < plain.forward[part], part


def test_frozen_weights_have_no_gradients_but_pass_those_of_their_inputs():
    """By hand: backward, a product has twice its operations, or once if its weight is frozen; attention 2.5 times."""
    frozen, trained = (trace(build(trainable, objective="llava"), "llava") for trainable in (["projector"], ALL))
    samples, tokens, heads, head_width, layers = 3, 48, 4, 8, DEPTH["text"]["num_hidden_layers"]
    attention = layers * samples * heads * 2 * (2 * tokens * tokens * head_width)  # two products
    products = frozen.forward[LANGUAGE_MODEL] - attention
    assert frozen.backward[LANGUAGE_MODEL] == products + attention * 5 // 2
    assert trained.backward[LANGUAGE_MODEL] == 2 * products + attention * 5 // 2
    assert frozen.backward[ENCODER] == 0 < trained.backward[ENCODER]
    # Its first layer has no gradient of its input, which comes from the frozen encoder.
    first, second = 2 * 3 * 16 * 32 * 32, 2 * 3 * 16 * 32 * 32
    assert frozen.forward[PROJECTOR] == first + second
    assert frozen.backward[PROJECTOR] == first + 2 * second
    assert trained.backward[PROJECTOR] == 2 * (first + second)


def saved_bytes(module, grids, autocast, shape):
    """Bytes that autograd saves in a real forward pass: each storage once, without weights and their copies."""
    weights = {tensor.untyped_storage()._cdata for tensor in [*module.parameters(), *module.buffers()]}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = (storage.nbytes(), storage)
        return tensor

    features, batch = make_inputs(module, grids, shape)
    given = {tensor.untyped_storage()._cdata for tensor in [*batch.values(), *features]}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
            loss, _ = module(features, batch)
    assert loss.requires_grad
    return sum(size for key, (size, _) in saved.items() if key not in given)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("trainable", [STAGE_1, ALL], ids=["stage 1", "all"])
@pytest.mark.parametrize("shape", [SHAPE, PACKED], ids=["padded", "packed"])
def test_activations_are_within_five_percent_of_what_autograd_saves(trainable, autocast, shape):
    module = build(trainable)
    cost = trace(module, shape=shape, autocast=autocast)
    expected = saved_bytes(module, grids_of("hawaii"), autocast, shape)
    assert cost.saved.total() + cost.saved_copies.total() == pytest.approx(expected, rel=0.05)
    assert (cost.copies.total() > 0) == (autocast is not None)


def peak_of_a_step(module, grids):
    """The highest sum of bytes that torch allocates in a real step, by its profiler, without gradients of weights."""

    def drop_gradient(parameter):
        parameter.grad = None

    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(drop_gradient)
    features, batch = make_inputs(module, grids)
    module(features, batch)[0].backward()  # creates tensors that only the first step creates
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss, _ = module(features, batch)
        loss.backward()
    live = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            highest = max(highest, live)
    return highest


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_the_peak_is_within_fifteen_percent_of_what_torch_allocates(is_checkpointed):
    module = build()
    cost = trace(module, is_checkpointed=is_checkpointed)
    if is_checkpointed:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert cost.peak == pytest.approx(peak_of_a_step(module, grids_of("hawaii")), rel=0.15)
