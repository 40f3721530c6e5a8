"""Figure 6: which adapters the tokens of a benchmark's images take, layer by layer."""

import json
import tempfile
from collections.abc import Iterable
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..evaluation.checkpoint import ENCODER_TYPE, checkpoint_folder
from ..evaluation.evaluate import split_tasks
from ..evaluation.paper.benchmarks import BENCHMARKS
from ..evaluation.paper.images import ImageSource, folder_source, task_sources
from ..files.run_contents import FACTS_FILE
from ..files.user_error import UserError
from ..hub_cards.card import read_config
from .drawing import COLORS, PAGE_WIDTH, SETTINGS, matplotlib_or_error, save_figure


BATCH_SIZE = 32
BANKS = {"teacher": "Teacher-specific", "general": "General"}
MAX_COLUMNS = 5
LONGEST_TITLE = 22
HATCHES = ("", "////", "....")  # where there are more adapters than colours
# Shapes: I images, P tokens, L layers, N adapters of one bank, A of both.


def adapter_names(folder: Path) -> dict[str, list[str]]:
    """
    What the adapters of a published folder are called: the teachers' names, as training left them beside the weights,
    or numbers.

    Args:
        folder (`Path`):
            A checkpoint.

    Returns:
        `dict[str, list[str]]`: the names of `teacher` and of `general` adapters; only banks that there are.

    Raises:
        ValueError: it has no adapters.
    """
    config = read_config(folder)
    parts = {"hawaii": config.get("vision_config"), ENCODER_TYPE: config}
    vision = parts.get(config["model_type"]) or {}
    numbers = {bank: vision.get(f"num_{bank}_adapters", 0) for bank in BANKS}
    if not any(numbers.values()):
        raise UserError(f"{folder} has no adapters, so nothing is routed in it: name a HAWAII that has some.")
    names = {bank: [f"adapter {index}" for index in range(number)] for bank, number in numbers.items() if number}
    facts_path = folder / FACTS_FILE
    facts = json.loads(facts_path.read_text(encoding="utf-8")) if facts_path.is_file() else {"stages": {}}
    for stage in facts["stages"].values():
        # Adapter i is teacher i's. A stage without distillation names no teachers.
        if len(stage["teachers"]) == numbers["teacher"] > 0:
            names["teacher"] = list(stage["teachers"])
    return names


def _load(folder: Path) -> tuple[Any, Any]:
    """The encoder of a checkpoint, and what makes its pixels."""
    if read_config(folder)["model_type"] == ENCODER_TYPE:
        # Not at the top: it registers this package's classes, and a model is to run with the code published with it.
        from ..training.students.encoders import load_encoder

        encoder, processor = load_encoder(folder, "auto")
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", trust_remote_code=True)
        encoder = model.model.vision_tower
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    if torch.accelerator.is_available():
        encoder.to(torch.accelerator.current_accelerator())
    return encoder.eval(), processor


@torch.inference_mode()
def routing_shares(encoder: Any, processor: Any, images: Iterable[Image.Image | Path]) -> tuple[dict, int]:
    """
    How the routers spread the patches of some images over the adapters. The class token is not counted, for the
    language model does not see it.

    Args:
        encoder (`HawaiiVisionModel`):
            On any device.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            Its own.
        images (`Iterable[PIL.Image.Image or Path]`):
            One or more; read one batch at a time.

    Returns:
        The shares of each bank that there is, by its name, as `(num_layers, num_adapters)`, float64, each layer
        summing to one; and the number of images.
    """
    vision = encoder.config
    numbers = {bank: getattr(vision, f"num_{bank}_adapters") for bank in BANKS}
    counts: torch.Tensor | int = 0
    images, num_images = iter(images), 0
    while batch := list(islice(images, BATCH_SIZE)):
        num_images += len(batch)
        squares = [processor.square_image(image) for image in batch]
        pixel_values = processor.image_processor(squares, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(encoder.device, encoder.dtype)
        probabilities = encoder(pixel_values, output_routing=True).router_probabilities  # (L, I, P, A)
        banks = probabilities[:, :, vision.num_prefix_tokens :].split(list(numbers.values()), dim=-1)
        chosen = [F.one_hot(bank.argmax(dim=-1), bank.shape[-1]) for bank in banks if bank.shape[-1]]
        counts = counts + torch.cat(chosen, dim=-1).sum(dim=(1, 2))  # (L, A)
    assert isinstance(counts, torch.Tensor)
    shares = (counts.double() / (num_images * vision.num_patches)).cpu()
    by_bank = zip(numbers, shares.split(list(numbers.values()), dim=-1))
    return {bank: share for bank, share in by_bank if numbers[bank]}, num_images


def _measure(encoder: Any, processor: Any, source: ImageSource) -> dict:
    """What `routing.json` holds of one benchmark."""
    with tqdm(total=len(source.documents), desc=source.name) as progress:
        shares, num_images = routing_shares(encoder, processor, source.images(progress.update))
    return {"num_images": num_images, **{bank: share.tolist() for bank, share in shares.items()}}


def _title(name: str) -> str:
    """What stands over a panel: the paper's name of a benchmark, and no more than its width takes."""
    title = BENCHMARKS[name].column if name in BENCHMARKS else name
    return title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"


def _draw_panel(axis: Any, shares: list[list[float]], names: list[str], first: int) -> None:
    """A bar for each layer, in it a piece for each adapter; their colours begin with the one numbered `first`."""
    num_layers = len(shares)
    layers, bottom = range(1, num_layers + 1), [0.0] * num_layers
    for index, (name, heights) in enumerate(zip(names, zip(*shares)), start=first):
        style = {"color": COLORS[index % len(COLORS)], "hatch": HATCHES[index // len(COLORS) % len(HATCHES)]}
        axis.bar(layers, heights, bottom=bottom, width=1, label=name, edgecolor="white", linewidth=0.2, **style)
        bottom = [below + height for below, height in zip(bottom, heights)]
    axis.set_xlim(0.5, num_layers + 0.5)
    axis.set_xticks(list(layers) if num_layers <= 8 else [1, *range(5, num_layers + 1, 5)])
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])


def draw_routing(results: dict) -> Any:
    """
    Draws Figure 6: a block of panels for each bank of adapters, in it a panel for each benchmark.

    Args:
        results (`dict`):
            What `routing.json` holds.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: matplotlib is not installed.
    """
    matplotlib = matplotlib_or_error()
    benchmarks, banks = results["benchmarks"], results["adapters"]
    num_rows = ceil(len(benchmarks) / MAX_COLUMNS)  # of a block
    num_columns = ceil(len(benchmarks) / num_rows)
    with matplotlib.rc_context(SETTINGS):
        size = (min(PAGE_WIDTH, 1.5 + 1.9 * num_columns), 0.2 + 1.25 * num_rows * len(banks))
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(num_rows * len(banks), num_columns, squeeze=False)
        num_drawn = 0  # adapters of the blocks above, whose colours are taken
        for block, (bank, names) in enumerate(banks.items()):
            panels = axes[block * num_rows : (block + 1) * num_rows]
            for axis in panels.flat[len(benchmarks) :]:
                axis.remove()
            for index, (name, values) in enumerate(benchmarks.items()):
                axis = panels.flat[index]
                _draw_panel(axis, values[bank], names, num_drawn)
                axis.set_title(_title(name), pad=3)
                axis.tick_params(labelleft=index % num_columns == 0)
            panels[0, -1].legend(  # from top to bottom as the pieces lie
                reverse=True,
                title=BANKS[bank],
                alignment="left",
                loc="upper left",
                bbox_to_anchor=(1, 1.05),
                frameon=False,
                handlelength=1,
                handleheight=1,
            )
            num_drawn += len(names)
        figure.supxlabel("layer of the encoder", fontsize=7)
        figure.supylabel("share of the patches", fontsize=7)
    return figure


def _check(tasks: list[str], images: list[str], limit: int) -> None:
    """Says what is wrong with a call before anything slow begins."""
    names = [*tasks, *(argument.partition("=")[0] for argument in images)]
    if not names:
        raise UserError("There is nothing to look at: name --tasks, --images or both.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two benchmarks are called {twice[0]}; give each a name of its own.")
    if limit < 1:
        raise UserError(f"limit is {limit}; it must be 1 or more.")


def routing_figure(
    folder: str | Path,
    output_dir: str | Path,
    tasks: str | list[str] | None = None,
    images: list[str] | None = None,
    limit: int = 500,
    data_file: str | None = None,
    data_folder: str | None = None,
) -> dict:
    """
    Counts which adapters the tokens of each benchmark's images take in each layer, draws `output_dir/routing.png`
    (Figure 6) and writes `output_dir/routing.json`.

    Args:
        folder (`str` or `Path`):
            A published folder, of a model or of an encoder alone, or a name on the Hub. Nothing else of training is
            needed.
        output_dir (`str` or `Path`):
            Where both files go.
        tasks (`str` or `list[str]`, *optional*):
            Names of lmms-eval's tasks or of this package's, with commas between them if a string.
        images (`list[str]`, *optional*):
            More benchmarks, each `NAME=FOLDER` of images.
        limit (`int`, *optional*, defaults to 500):
            Questions, or images of a folder, that are looked at of each benchmark; they are spread evenly over it, and
            an image that several ask about counts once.
        data_file, data_folder (`str`, *optional*):
            Where the tasks' data is, as for [`evaluate`].

    Returns:
        `dict`: what `routing.json` holds: the `adapters`' names by bank, and for each of `benchmarks` its `num_images`
        and each bank's shares as lists, one for each layer.

    Raises:
        ValueError: `folder` is no checkpoint or has no adapters, there is nothing to look at, or a library is not
            installed.
    """
    matplotlib_or_error()
    names = split_tasks(tasks or [])
    _check(names, images or [], limit)
    path = checkpoint_folder(folder, or_encoder=True)
    results = {"folder": str(folder), "adapters": adapter_names(path), "benchmarks": {}}
    sources = [folder_source(argument, limit) for argument in images or []]
    output_dir = Path(output_dir)
    with tempfile.TemporaryDirectory(prefix="routing-") as scratch:
        if names:
            sources = task_sources(names, limit, output_dir, data_file, data_folder, Path(scratch)) + sources
        encoder, processor = _load(path)
        for source in sources:
            results["benchmarks"][source.name] = _measure(encoder, processor, source)
    save_figure(draw_routing(results), results, output_dir, "routing")
    return results
