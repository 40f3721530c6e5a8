"""MoVE-KD's Figures 2 and 5: the attention of the encoder's class token, before training and after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import HawaiiVisionConfig  # from the root, which registers the Auto classes
from ..drawing.style import PAGE_WIDTH, matplotlib_or_error, save_figure, shorten_title
from ..evaluation.checkpoint import checkpoint_folder
from ..evaluation.picture import open_picture
from ..files.atomic import read_json
from ..files.manifest import read_identity
from ..files.run_contents import HUB_FOLDER, MODEL_FOLDER, RESULTS_FILE
from ..files.user_error import UserError, explain_errors
from ..modeling_hawaii.conversion.clip import convert_clip, load_vision_config
from ..processing.encoder_processor import EncoderProcessor, load_image_processor
from ..training.identity import describe_path
from ..training.students.encoders import holds_encoder, load_encoder
from .maps import assemble_whole, draw_maps, panel_heights, size_of
from .published_encoder import check_is_hawaii, load_published_encoder


LONGEST_TITLE = 28
LARGEST_SHOWN = 600  # pixels of a panel in print; matplotlib would need gigabytes for a large photograph
# Shapes: H heads, P tokens, m patches of a square.


def find_start(run: Path) -> str | None:
    """
    Returns the checkpoint that the encoder of a run started from; `None` if it started from random weights.

    Args:
        run (`Path`):
            The `output_dir` of a finished `hawaii train`.

    Raises:
        UserError: The run does not say it, started from a LLaVA, or the checkpoint is no longer the same.
    """
    results = run / RESULTS_FILE
    with explain_errors(f"{results} does not describe a run", (KeyError, TypeError, StopIteration)):
        first = next(iter(read_json(results)["stages"]))
    try:
        options = read_identity(run / first / MODEL_FOLDER)["options"]
    except UserError as error:
        raise UserError(f"{error}. Name the encoder that the student started from with --start.") from error
    if "llava" in options:
        raise UserError(f"{run} started from a LLaVA; name the CLIP or SigLIP that is its encoder with --start.")
    start = options.get("vision_tower")
    if isinstance(start, dict):  # a folder, by its path and the hash of its content
        if describe_path(start["path"]) != start:
            raise UserError(
                f"{run} started from the encoder {start['path']}, which is missing or has changed since; name a copy "
                "of it with --start."
            )
        start = start["path"]
    return start


def load_start(name: str, layer: int, image_aspect_ratio: str) -> tuple[Any, EncoderProcessor]:
    """
    Loads the encoder that a student started from, in single precision.

    Args:
        name (`str`):
            Folder or Hub id of a CLIP, a SigLIP, or a HAWAII encoder.
        layer (`int`):
            Layer whose attention is drawn; later layers of a CLIP or SigLIP are not built.
        image_aspect_ratio (`str`):
            How an image becomes a square.

    Raises:
        UserError: It could not be loaded or has no such layer.
    """
    is_hawaii = holds_encoder(name)
    config = HawaiiVisionConfig.from_pretrained(name) if is_hawaii else load_vision_config(name)
    if layer > config.num_hidden_layers:
        raise UserError(f"{name} has {config.num_hidden_layers} layers; choose one of them instead of layer {layer}.")
    if is_hawaii:
        with explain_errors(f"{name} could not be loaded"):
            encoder, processor = load_encoder(name, torch.float32, image_aspect_ratio)
    else:
        encoder = convert_clip(name, vision_feature_layer=layer, dtype=torch.float32).model
        processor = EncoderProcessor(load_image_processor(name), encoder.config, image_aspect_ratio)
    if torch.accelerator.is_available():
        encoder.to(torch.accelerator.current_accelerator())
    return encoder.eval(), processor


def square_attention(encoder: Any, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
    """
    Returns the attention that each patch of a square receives, averaged over the heads: from the class token, or the
    mean over all patches if the encoder has none.

    Args:
        encoder (`HawaiiVisionModel`):
            Encoder on any device.
        pixel_values (`torch.FloatTensor` of shape `(1, num_channels, image_size, image_size)`):
            A normalised square.
        layer (`int`):
            Number of the layer, from 1.

    Returns:
        `torch.DoubleTensor` of shape `(num_patches,)`. With the class token's attention to itself, its sum is one.
    """
    attentions = encoder(pixel_values.to(encoder.device, encoder.dtype), output_attentions=True).attentions
    weights = attentions[layer - 1][0].double().mean(dim=0).cpu()  # (H, P, P) to (P, P)
    return weights[0, encoder.config.num_prefix_tokens :] if encoder.config.has_class_token else weights.mean(dim=0)


@torch.inference_mode()
def patch_attention(
    encoder: Any, processor: Any, image: Image.Image, layer: int, tile_cutter: Any = None
) -> torch.Tensor:
    """
    Returns a map of the attention that each patch receives, see [`square_attention`].

    Args:
        encoder (`HawaiiVisionModel`):
            Encoder on any device.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            Its processor.
        image (`PIL.Image.Image`):
            Image of any size, upright and in RGB.
        layer (`int`):
            Number of the layer, from 1.
        tile_cutter (`HawaiiImageProcessor`, *optional*):
            Image processor that cuts the image into tiles, in the size and with the filter of the encoder's own; the
            encoder's own processor prepares the image if not given.

    Returns:
        `torch.DoubleTensor` of shape `(rows, columns)`: the map of the image's square or, with tiles, of the whole
        image. The attention of each tile stays within the tile.
    """
    own = processor.image_processor
    squares = [image] if tile_cutter is None else tile_cutter.square_images(image, own.tile_size, own.resample)
    pixel_values = own(squares, return_tensors="pt")["pixel_values"]
    # One by one: the attention of all layers needs much memory.
    received = torch.stack([square_attention(encoder, square, layer) for square in pixel_values.split(1)])  # (T, m)
    (weights,) = (tile_cutter or own).assemble_maps(received, size_of(image))
    return weights


def describe_encoder(encoder: Any, name: str, is_tiled: bool = False) -> dict[str, Any]:
    """
    Returns the properties of an encoder that its maps depend on: its `name`, the `query` whose attention they show,
    and `covered`, the share of the shown image's sides that its patches cover. A picture that is assembled from tiles
    consists of patches.
    """
    config = encoder.config
    covered = 1.0 if is_tiled else config.image_size // config.patch_size * config.patch_size / config.image_size
    query = "class token" if config.has_class_token else "mean of all patches"
    return {"name": name, "query": query, "covered": covered}


def check_same_patches(start: Any, student: Any, name: str) -> None:
    """Raises a `UserError` unless tiles have equally many patches in both encoders, so that their maps are aligned."""
    sides = [encoder.config.patches_a_side for encoder in (start, student)]
    if sides[0] != sides[1]:
        raise UserError(
            f"{name} has {sides[0]} x {sides[0]} patches in a tile but the student {sides[1]} x {sides[1]}; name the "
            "encoder that the student started from with --start."
        )


def shown_picture(image_processor: Any, picture: Image.Image, patch_size: int) -> Image.Image:
    """
    Returns the picture that the maps cover, not larger than it is printed: the square that the student receives or,
    with tiles, the whole picture.
    """
    if image_processor.image_grid_pinpoints is not None:
        whole = assemble_whole(image_processor, picture, patch_size)
        whole.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
        return whole
    longest = min(picture.size) if image_processor.image_aspect_ratio == "crop" else max(picture.size)
    return image_processor.square_image(picture, min(longest, LARGEST_SHOWN))


def draw_attention(results: dict, pictures: Sequence[Image.Image]) -> Any:
    """
    Draws a row for each image: the image, and the map of each encoder.

    Args:
        results (`dict`):
            Content of `attention.json`.
        pictures (`Sequence[PIL.Image.Image]`):
            The square images that the encoders receive, or whole pictures that were assembled from tiles.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        UserError: matplotlib is not installed.
    """
    encoders, rows = results["encoders"], results["images"]
    side = min(1.9, PAGE_WIDTH / (1 + len(encoders)))
    titles = [
        f"{shorten_title(Path(encoder['name']).name, LONGEST_TITLE)}\n{encoder['query']}, layer {results['layer']}"
        for encoder in encoders.values()
    ]
    maps = [[(row[key], encoder["covered"]) for key, encoder in encoders.items()] for row in rows]
    size = (side * (1 + len(encoders)), 0.2 + sum(panel_heights(pictures, side)) + 0.2 * len(rows))
    return draw_maps(pictures, maps, ["image", *titles], size)


def attention_figure(
    folder: str | Path,
    output_dir: str | Path,
    image: Sequence[str],
    start: str | None = None,
    layer: int | None = None,
) -> dict:
    """
    Compares the attention of a trained encoder with that of the encoder that it started from, draws
    `output_dir/attention.png` (MoVE-KD's Figures 2 and 5) and writes `output_dir/attention.json`.

    Args:
        folder (`str` or `Path`):
            The `output_dir` of a finished `hawaii train`, or a published folder or a repository on the Hub, with a
            model or only an encoder.
        output_dir (`str` or `Path`):
            Output folder.
        image (`Sequence[str]`):
            Paths or URLs of one or more images.
        start (`str`, *optional*):
            Folder or Hub id of the CLIP, SigLIP or HAWAII encoder that the student started from; defaults to that of
            the run. A run from random weights has none.
        layer (`int`, *optional*):
            Number of the layer, from 1; defaults to the student's last, whose output the language model reads.

    Returns:
        `dict`: The content of `attention.json`: the `layer`; for each of `encoders`, `student` and possibly `start`,
        its properties (see [`describe_encoder`]); and for each of `images` a grid of attention per encoder (see
        [`patch_attention`]).

    Raises:
        UserError: The folder is not the checkpoint of a HAWAII or a run, the start is unknown or could not be loaded,
            an encoder has no such layer, the start of a student with tiles has other patches, an image could not be
            opened, or matplotlib is not installed.
    """
    matplotlib_or_error()
    folder = Path(folder)
    pictures = [open_picture(path) for path in image]
    run = folder.parent if folder.name == HUB_FOLDER else folder
    is_run = (run / RESULTS_FILE).is_file()
    path = checkpoint_folder(run / HUB_FOLDER if is_run else folder, or_encoder=True)
    check_is_hawaii(path, folder)
    if start is None and not is_run:
        raise UserError(
            f"{folder} is not in the output_dir of a run, so the encoder that it started from is unknown; name it "
            "with --start."
        )
    start = find_start(run) if start is None else start
    with explain_errors(f"{folder} could not be loaded"):
        student, processor = load_published_encoder(path)
    num_layers = student.config.num_hidden_layers
    layer = num_layers if layer is None else layer
    if not 1 <= layer <= num_layers:
        raise UserError(f"--layer is {layer}, but the encoder of {folder} has layers 1 to {num_layers}.")
    image_processor = processor.image_processor
    tile_cutter = image_processor if image_processor.image_grid_pinpoints is not None else None
    encoders = {"student": ("student", student.float(), processor, None)}
    if start is None:
        print(f"The encoder of {folder} started from random weights, so the figure shows the student alone.")
    else:
        loaded = load_start(start, layer, image_processor.image_aspect_ratio)
        if tile_cutter is not None:
            check_same_patches(loaded[0], student, start)
        encoders = {"start": (start, *loaded, tile_cutter), **encoders}
    results = {"folder": str(folder), "layer": layer, "encoders": {}}
    for key, (name, encoder, *_) in encoders.items():
        results["encoders"][key] = describe_encoder(encoder, name, tile_cutter is not None)
    results["images"] = []
    for name, picture in zip(image, pictures):
        maps = {
            key: patch_attention(encoder, its_processor, picture, layer, cutter).tolist()
            for key, (_, encoder, its_processor, cutter) in encoders.items()
        }
        results["images"].append({"image": name, **maps})
    shown = [shown_picture(image_processor, picture, student.config.patch_size) for picture in pictures]
    save_figure(draw_attention(results, shown), results, Path(output_dir), "attention")
    return results
