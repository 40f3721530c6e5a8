"""Figure 6: the adapters that the routers choose for the images of a benchmark, by layer."""

import tempfile
from collections.abc import Iterable
from itertools import islice
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from ..configuration.tiles_hawaii import count_tiles, find_features, find_tile_grids
from ..drawing.style import COLORS, PAGE_WIDTH, SETTINGS, matplotlib_or_error, save_figure, shorten_title
from ..evaluation.checkpoint import ENCODER_TYPE, checkpoint_folder
from ..evaluation.evaluate import split_tasks
from ..evaluation.paper.benchmarks import BENCHMARKS
from ..evaluation.paper.images import folder_source, task_sources
from ..files.run_contents import FACTS_FILE
from ..files.user_error import UserError, explain_errors
from ..hub_cards.card import read_config
from ..hub_cards.space.hawaii_space.loading import read_facts
from ..hub_cards.space.hawaii_space.routing_map import count_adapters, name_adapters
from .published_encoder import load_published_encoder


BATCH_SIZE = 32
BANK_TITLES = {"teacher": "Teacher-specific", "general": "General"}
MAX_COLUMNS = 5
LONGEST_TITLE = 22
HATCHES = ("", "////", "....")  # for more adapters than colours
# Shapes: T squares, P tokens, m patches of a square, L layers, N adapters of one bank, A of both.


def adapter_names(folder: Path) -> dict[str, list[str]]:
    """
    Returns the names of the adapters of a published folder: teacher names from its training facts, or numbers.

    Args:
        folder (`Path`):
            Checkpoint.

    Returns:
        `dict[str, list[str]]`: Names by bank, `teacher` and `general`, without empty banks.

    Raises:
        UserError: The checkpoint has no adapters.
    """
    config = read_config(folder)
    vision_configs = {"hawaii": config.get("vision_config"), ENCODER_TYPE: config}
    numbers = count_adapters(SimpleNamespace(**(vision_configs.get(config["model_type"]) or {})))
    if not numbers:
        raise UserError(f"{folder} has no adapters to choose from; give a HAWAII with adapters.")
    return name_adapters(numbers, read_facts(folder / FACTS_FILE))


def _batch_size(image_processor: Any) -> int:
    """Returns the number of images of a batch of `BATCH_SIZE` squares, at least one."""
    pinpoints = image_processor.image_grid_pinpoints
    num_tiles = max(count_tiles(pinpoints or [[1, 1]], pinpoints, image_processor.tile_size))  # of its own size
    return max(1, BATCH_SIZE // num_tiles)


def _find_read_patches(image_processor: Any, features: Any, patches_a_side: int) -> Any:
    """
    Returns the indices of the patches that the language model reads among those of all squares of a batch: not the
    padding of tiles.
    """
    pinpoints = image_processor.image_grid_pinpoints
    if pinpoints is None:
        return slice(None)
    grids = find_tile_grids(features["image_sizes"], pinpoints, image_processor.tile_size, patches_a_side)
    index, is_newline = find_features(grids, torch.arange(int(grids.num_tokens.sum())))
    return index[~is_newline]


@torch.inference_mode()
def routing_shares(encoder: Any, processor: Any, images: Iterable[Image.Image | Path]) -> tuple[dict, int]:
    """
    Counts how often the routers choose each adapter for the patches of images. The class token and, with tiles, the
    padding are not counted, because the language model does not receive them.

    Args:
        encoder (`HawaiiVisionModel`):
            Encoder on any device.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            Processor of the encoder.
        images (`Iterable[PIL.Image.Image or Path]`):
            One or more images; they are read one batch at a time.

    Returns:
        The shares by bank, without empty banks, as float64 tensors of shape `(num_layers, num_adapters)` whose rows
        sum to one; and the number of images.
    """
    vision = encoder.config
    numbers = count_adapters(vision)
    counts: torch.Tensor | int = 0
    images, num_images, num_patches = iter(images), 0, 0
    image_processor = processor.image_processor
    while batch := list(islice(images, _batch_size(image_processor))):
        num_images += len(batch)
        features = image_processor(batch, return_tensors="pt")
        pixel_values = features["pixel_values"].to(encoder.device, encoder.dtype)
        probabilities = encoder(pixel_values, output_routing=True).router_probabilities  # (L, T, P, A)
        patches = probabilities[:, :, vision.num_prefix_tokens :].flatten(1, 2)  # (L, T * m, A)
        patches = patches[:, _find_read_patches(image_processor, features, vision.patches_a_side)]
        num_patches += patches.shape[1]
        banks = patches.split(list(numbers.values()), dim=-1)
        chosen = [F.one_hot(bank.argmax(dim=-1), bank.shape[-1]) for bank in banks]
        counts = counts + torch.cat(chosen, dim=-1).sum(dim=1)  # (L, A)
    assert isinstance(counts, torch.Tensor)
    shares = (counts.double() / num_patches).cpu()
    return dict(zip(numbers, shares.split(list(numbers.values()), dim=-1))), num_images


def _title(name: str) -> str:
    """Returns the title of a panel: the benchmark's name in the paper, shortened to the width of the panel."""
    title = BENCHMARKS[name].column if name in BENCHMARKS else name
    return shorten_title(title, LONGEST_TITLE)


def _draw_panel(axis: Any, shares: list[list[float]], names: list[str], first: int) -> None:
    """Draws a stacked bar for each layer with a segment for each adapter. `first` is the index of the first colour."""
    num_layers = len(shares)
    layers, bottom = range(1, num_layers + 1), [0.0] * num_layers
    for index, (name, heights) in enumerate(zip(names, zip(*shares)), start=first):
        style = {"color": COLORS[index % len(COLORS)], "hatch": HATCHES[index // len(COLORS) % len(HATCHES)]}
        axis.bar(layers, heights, bottom=bottom, width=1, label=name, edgecolor="white", linewidth=0.2, **style)
        bottom = [base + height for base, height in zip(bottom, heights)]
    axis.set_xlim(0.5, num_layers + 0.5)
    axis.set_xticks(list(layers) if num_layers <= 8 else [1, *range(5, num_layers + 1, 5)])
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])


def draw_routing(results: dict) -> Any:
    """
    Draws Figure 6: a block for each bank of adapters with a panel for each benchmark.

    Args:
        results (`dict`):
            Content of `routing.json`.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        UserError: matplotlib is not installed.
    """
    matplotlib = matplotlib_or_error()
    benchmarks, banks = results["benchmarks"], results["adapters"]
    num_rows = ceil(len(benchmarks) / MAX_COLUMNS)  # per block
    num_columns = ceil(len(benchmarks) / num_rows)
    with matplotlib.rc_context(SETTINGS):
        size = (min(PAGE_WIDTH, 1.5 + 1.9 * num_columns), 0.2 + 1.25 * num_rows * len(banks))
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(num_rows * len(banks), num_columns, squeeze=False)
        num_drawn = 0  # adapters of the previous blocks, which determine the next colour
        for block, (bank, names) in enumerate(banks.items()):
            panels = axes[block * num_rows : (block + 1) * num_rows]
            for axis in panels.flat[len(benchmarks) :]:
                axis.remove()
            for index, (name, values) in enumerate(benchmarks.items()):
                axis = panels.flat[index]
                _draw_panel(axis, values[bank], names, num_drawn)
                axis.set_title(_title(name), pad=3)
                axis.tick_params(labelleft=index % num_columns == 0)
            panels[0, -1].legend(  # in the order of the segments
                reverse=True,
                title=BANK_TITLES[bank],
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
    Counts the adapters that the routers choose for each benchmark in each layer, draws `output_dir/routing.png`
    (Figure 6) and writes `output_dir/routing.json`.

    Args:
        folder (`str` or `Path`):
            A published folder or a repository on the Hub, with a model or only an encoder. No other files of training
            are needed.
        output_dir (`str` or `Path`):
            Output folder.
        tasks (`str` or `list[str]`, *optional*):
            Tasks of lmms-eval or of this package; a string is split at commas.
        images (`list[str]`, *optional*):
            Further benchmarks as `NAME=FOLDER` with a folder of images.
        limit (`int`, *optional*, defaults to 500):
            Maximum number of questions per task or images per folder, evenly spaced. An image with several questions
            counts once.
        data_file, data_folder (`str`, *optional*):
            Location of the tasks' data, as for [`evaluate`].

    Returns:
        `dict`: The content of `routing.json`: the names of the `adapters` by bank, and for each of `benchmarks` its
        `num_images` and a list of shares per layer for each bank.

    Raises:
        UserError: `folder` is not a checkpoint or has no adapters, there are no images, or a library is not
            installed.
    """
    matplotlib_or_error()
    names = split_tasks(tasks or [])
    all_names = [*names, *(argument.partition("=")[0] for argument in images or [])]
    if not all_names:
        raise UserError("There are no images; give --tasks, --images or both.")
    if duplicates := [name for name in all_names if all_names.count(name) > 1]:
        raise UserError(f"Two benchmarks are named {duplicates[0]}; rename one.")
    if limit < 1:
        raise UserError(f"--limit is {limit}, but must be at least 1.")
    path = checkpoint_folder(folder, or_encoder=True)
    results = {"folder": str(folder), "adapters": adapter_names(path), "benchmarks": {}}
    sources = [folder_source(argument, limit) for argument in images or []]
    output_dir = Path(output_dir)
    with tempfile.TemporaryDirectory(prefix="routing-") as scratch:
        if names:
            sources = task_sources(names, limit, output_dir, data_file, data_folder, Path(scratch)) + sources
        with explain_errors(f"{folder} could not be loaded"):
            encoder, processor = load_published_encoder(path)
        for source in sources:
            with tqdm(total=len(source.documents), desc=source.name) as progress:
                shares, num_images = routing_shares(encoder, processor, source.images(progress.update))
            shares = {bank: share.tolist() for bank, share in shares.items()}
            results["benchmarks"][source.name] = {"num_images": num_images, **shares}
    save_figure(draw_routing(results), results, output_dir, "routing")
    return results
