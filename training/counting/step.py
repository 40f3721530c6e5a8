"""FLOPs and memory of a training step, traced on the real modules and objective with tensors without data."""

import copy
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..baselines.class_token_teacher import ClassTokenFeatures, ClassTokenGrid
from ..objectives.encoder_passes import Student, encoder_of
from ..recipes.objectives import StudentWithObjective


ENCODER, PROJECTOR, LANGUAGE_MODEL, OBJECTIVE = "encoder", "projector", "language model", "projections and losses"
PARTS = (ENCODER, PROJECTOR, LANGUAGE_MODEL, OBJECTIVE)
# A model with repeated layers is traced with one and with two of them; each further one costs as much as the second.
SHORT, LONGER = 1, 2
# Formulas for the fused attention of CPUs, which the counter lacks; its costs and saved tensors equal those of GPUs.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, out_shape=None, **kwargs: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *args, out_shape=None, **kwargs: sdpa_backward_flop_count(
            gradient, query, key, value
        )
    ),
}


@dataclass(frozen=True)
class BatchShape:
    """
    Size of a micro-batch.

    Args:
        num_samples, num_images (`int`):
            Samples, and images of all samples.
        num_tokens, num_prompt_tokens (`int`, *optional*, defaults to 0):
            Positions of each sample, padded, with those of images, and positions of its instruction.
        num_labels (`int`, *optional*, defaults to 0):
            Label tokens of all samples.
        is_packed (`bool`, *optional*, defaults to `False`):
            Whether the samples are packed into one sequence.
        num_tiles (`int`, *optional*):
            Tiles of all images, with the whole pictures; `None` if each image is one square.
        distill_tiles (`bool`, *optional*, defaults to `True`):
            Whether teachers see all tiles, or only the whole pictures.
    """

    num_samples: int
    num_images: int
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_labels: int = 0
    is_packed: bool = False
    num_tiles: int | None = None
    distill_tiles: bool = True

    @property
    def num_squares(self) -> int:
        """Squares that the encoder sees."""
        return self.num_images if self.num_tiles is None else self.num_tiles

    @property
    def num_distilled(self) -> int:
        """Squares that each teacher sees."""
        return self.num_squares if self.distill_tiles else self.num_images

    def make(self, student: Student) -> dict[str, torch.Tensor]:
        """Makes a batch like the collator's, with the counts of a step; the values are arbitrary."""
        vision = encoder_of(student).config
        text = torch.zeros(self.num_samples, self.num_tokens, dtype=torch.long)
        context = {"attention_mask": torch.ones_like(text)}
        if self.is_packed:
            context = {"position_ids": torch.arange(self.num_tokens).repeat(self.num_samples)[None]}
            text = text.view(1, -1)
        prompt = torch.zeros(self.num_samples, self.num_prompt_tokens, dtype=torch.long)
        tiles = {}
        if self.num_tiles is not None:
            tiles["image_sizes"] = torch.ones(self.num_images, 2, dtype=torch.long)
            if not self.distill_tiles:
                tiles["distilled_index"] = torch.arange(self.num_images)
        return {
            "input_ids": text,
            **context,
            "labels": torch.zeros_like(text),
            "label_index": torch.ones(self.num_labels, dtype=torch.long),
            "prompt_ids": prompt,
            "prompt_mask": torch.ones_like(prompt, dtype=torch.bool),
            "image_index": torch.zeros(self.num_squares, dtype=torch.long),
            "pixel_values": torch.zeros(self.num_squares, vision.num_channels, vision.image_size, vision.image_size),
            **tiles,
            "num_label_tokens": torch.ones((), dtype=torch.long),
            "num_squares": torch.ones((), dtype=torch.long),
        }


def make_features(grids: list, num_images: int) -> list:
    """Makes features like the teachers', from [`Teacher.grid`]."""
    features = []
    for grid in grids:
        height, width, channels = grid
        cells = torch.zeros(num_images, height, width, channels)
        if isinstance(grid, ClassTokenGrid):
            attention = torch.zeros(num_images, height * width)
            cells = ClassTokenFeatures(cells, torch.zeros(num_images, channels), attention)
        features.append(cells)
    return features


@dataclass
class StepCost:
    """
    Costs of a forward and a backward pass over one micro-batch, by part.

    Args:
        forward, backward (`Counter`):
            Floating-point operations; with gradient checkpointing, the backward pass contains the recomputation.
        saved (`Counter`):
            Bytes in use after the forward pass: tensors that autograd saves, without weights and their copies.
        copies (`Counter`), saved_copies (`Counter`):
            Bytes of autocast's copies of weights: those in use at the end of the forward pass, and those that autograd
            saves.
        forward_temporaries, backward_temporaries (`int`):
            Bytes by which the peak of each pass exceeds the sum of the above.
    """

    forward: Counter
    backward: Counter
    saved: Counter
    copies: Counter
    saved_copies: Counter
    forward_temporaries: int
    backward_temporaries: int

    @property
    def flops(self) -> int:
        return self.forward.total() + self.backward.total()

    @property
    def activations(self) -> int:
        """The most bytes that activations and temporaries take, without copies of weights."""
        return self.saved.total() + max(self.forward_temporaries, self.backward_temporaries)

    @property
    def peak(self) -> int:
        """The most bytes that activations, temporaries and copies of weights take at once."""
        forward = self.copies.total() + self.forward_temporaries
        return self.saved.total() + max(forward, self.saved_copies.total() + self.backward_temporaries)


def find_parts(student: Student) -> dict[nn.Module, str]:
    """Maps a student's modules to the names of their parts; the rest of a step belongs to the objective."""
    model: Any = student
    encoder = encoder_of(student)
    if encoder is student:
        return {encoder: ENCODER}
    parts = {encoder: ENCODER, model.model.multi_modal_projector: PROJECTOR}
    return {**parts, model.model.language_model: LANGUAGE_MODEL, model.get_output_embeddings(): LANGUAGE_MODEL}


class _NoModules(nullcontext):
    """Replaces the counter's module tracker, whose hooks keep recomputed tensors in memory until the step ends."""

    parents = ("Global",)


class _Scope:
    """Counts the operations of a step by part, in the forward and the backward pass."""

    def __init__(self, counter: FlopCounterMode):
        self.part = OBJECTIVE
        self.flops = Counter()
        self._counter, self._last = counter, 0

    def enter(self, part: str) -> None:
        total = self._counter.get_total_flops()
        self.flops[self.part] += total - self._last
        self.part, self._last = part, total

    def watch(self, module: nn.Module, part: str) -> list:
        """Makes a module enter its part; returns the handles of the hooks."""

        def before(module, args, kwargs):
            self.enter(part)
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.enter(OBJECTIVE))

        def after(module, args, output):
            self.enter(OBJECTIVE)
            hidden_states = next(tensor for tensor in tree_leaves(output) if isinstance(tensor, torch.Tensor))
            if hidden_states.requires_grad:
                hidden_states.register_hook(lambda gradient: self.enter(part))

        return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


class _LiveMemory(TorchDispatchMode):
    """Counts the bytes of the storages that operations create, until they are freed."""

    def __init__(self, module: nn.Module, inputs: list[torch.Tensor], scope: _Scope):
        super().__init__()
        self._scope = scope
        tensors = [*module.parameters(), *module.buffers(), *inputs]
        self._weights = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._sizes: dict[int, tuple[int, str, bool]] = {}
        self.live = self.highest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        source = args[0] if func is torch.ops.aten._to_copy.default else None
        is_copy = isinstance(source, torch.Tensor) and source.untyped_storage()._cdata in self._weights
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), is_copy)
        return output

    def _add(self, storage: torch.UntypedStorage, is_copy: bool) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._weights:
            return
        size = storage.nbytes()
        self._sizes[key] = (size, self._scope.part, is_copy)
        self.live += size
        self.highest = max(self.highest, self.live)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)[0]

    def by_part(self, is_copy: bool) -> Counter:
        sizes = Counter()
        for size, part, is_weight in self._sizes.values():
            sizes[part] += size if is_weight == is_copy else 0
        return sizes


def trace_step(
    module: StudentWithObjective, features: list, batch: dict[str, torch.Tensor], autocast: torch.dtype | None = None
) -> StepCost:
    """
    Runs a forward and a backward pass, on tensors with or without data, and counts their costs.

    Args:
        module (`StudentWithObjective`):
            Module in training mode; it has no gradients afterwards.
        features (`list`), batch (`dict`):
            Features of the teachers and a batch, as for [`Objective`].
        autocast (`torch.dtype`, *optional*):
            Precision of autocast.
    """
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    counter.mod_tracker = _NoModules()  # pyright: ignore[reportAttributeAccessIssue]
    scope = _Scope(counter)
    memory = _LiveMemory(module, tree_leaves((features, batch)), scope)

    def drop_gradient(parameter):
        parameter.grad = None

    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(drop_gradient) for parameter in learning]
    hooks += [hook for child, part in find_parts(module.student).items() for hook in scope.watch(child, part)]
    try:
        with memory, counter:
            with torch.autocast("cpu", dtype=autocast) if autocast is not None else nullcontext():
                loss, terms = module(features, batch)
                # Until autocast ends, it keeps a copy of every trainable weight.
                saved, copies = memory.by_part(is_copy=False), memory.by_part(is_copy=True)
            saved_copies = memory.by_part(is_copy=True)
            scope.enter(OBJECTIVE)
            forward, scope.flops = scope.flops, Counter()
            forward_temporaries = memory.highest - saved.total() - copies.total()
            memory.highest = memory.live
            loss.backward()
            scope.enter(OBJECTIVE)
            backward_temporaries = memory.highest - saved.total() - saved_copies.total()
        del loss, terms
    finally:
        for hook in hooks:
            hook.remove()
    return StepCost(forward, scope.flops, saved, copies, saved_copies, forward_temporaries, backward_temporaries)


def find_layers(part: nn.Module) -> tuple[nn.Module, str] | None:
    """
    Finds the repeated layers of a part: the module that has the list and the list's name in it. `None` if no list has
    layers of one class with equal shapes, or if the list is short.
    """

    def describe(layer: nn.Module) -> tuple:
        return type(layer), [(name, weight.shape, weight.requires_grad) for name, weight in layer.named_parameters()]

    for parent in part.modules():
        for name, layers in parent.named_children():
            if isinstance(layers, nn.ModuleList) and len(layers) > LONGER:
                first = describe(layers[0])
                if first[1] and all(describe(layer) == first for layer in layers[1:]):
                    return parent, name
    return None


def _scale(short: Counter, longer: Counter, num_layers: dict[str, int]) -> Counter:
    # The losses depend on the encoder's depth: they use the routers' probabilities of every layer.
    depths = {**num_layers, OBJECTIVE: num_layers[ENCODER]}
    return Counter(
        {part: short[part] + (depths.get(part, SHORT) - SHORT) * (longer[part] - short[part]) for part in PARTS}
    )


@contextmanager
def _shortened(lists: dict[str, tuple[nn.Module, str]], depth: int) -> Iterator[None]:
    whole = {part: getattr(parent, name) for part, (parent, name) in lists.items()}
    try:
        for part, (parent, name) in lists.items():
            setattr(parent, name, whole[part][:depth])
        yield
    finally:
        for part, (parent, name) in lists.items():
            setattr(parent, name, whole[part])


def trace_outline(
    module: StudentWithObjective,
    grids: list,
    shape: BatchShape,
    autocast: torch.dtype | None = None,
    is_checkpointed: bool = False,
) -> StepCost:
    """
    Costs of a step of a module on the meta device. Only one and two of the repeated layers are traced, so that it
    takes seconds.

    Args:
        module (`StudentWithObjective`):
            Module on the meta device; parameters that training does not change are frozen.
        grids (`list`):
            Height, width and channels of each teacher's features.
        shape (`BatchShape`):
            Size of the micro-batch.
        autocast (`torch.dtype`, *optional*):
            Precision of autocast.
        is_checkpointed (`bool`, *optional*, defaults to `False`):
            Whether gradient checkpointing is on.

    Raises:
        RuntimeError: sizes in a part of the model depend on data, as in a mixture of experts.
    """
    student: Any = module.student
    parts = {ENCODER: encoder_of(student)}
    if parts[ENCODER] is not student:
        parts[LANGUAGE_MODEL] = student.model.language_model
    found = {part: find_layers(child) for part, child in parts.items()}
    lists = {part: place for part, place in found.items() if place is not None}
    num_layers = {part: len(getattr(*place)) for part, place in lists.items()}
    module.train()
    costs = []
    for depth in (SHORT, LONGER) if lists else (None,):
        with _shortened(lists, depth) if depth is not None else nullcontext():
            traced = copy.deepcopy(module)
            # On the CPU and not on the meta device, so that autocast and kernels are chosen as for real tensors.
            with FakeTensorMode(allow_non_fake_inputs=True):
                traced.to_empty(device="cpu")
                if is_checkpointed:
                    traced.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                batch, features = shape.make(traced.student), make_features(grids, shape.num_distilled)
                costs.append(trace_step(traced, features, batch, autocast))
    if not lists:
        return costs[0]
    short, longer = costs
    num_layers = {ENCODER: SHORT, LANGUAGE_MODEL: SHORT, **num_layers}
    names = [item.name for item in fields(StepCost) if item.type is Counter]
    scaled = {name: _scale(getattr(short, name), getattr(longer, name), num_layers) for name in names}
    return replace(longer, **scaled)
