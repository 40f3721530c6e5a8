"""Drawings of vendors: read as SVG, cut to what is painted, rasterised, and compared."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ...files.user_error import UserError
from .concepts import Concept
from .packages import read_members


OUTLINE_SIZE = 64  # pixels at which a drawing's edges are looked for
# How closely drawings are compared: pixels at which they are rasterised, and parts along an edge that are averaged.
COMPARED_SIZE, NUM_PARTS = 32, 8


@dataclass(frozen=True)
class Drawing:
    """The body of an SVG and the part of its plane that is shown."""

    body: str
    left: float
    top: float
    width: float
    height: float


def import_resvg():
    """The package that rasterises SVG."""
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise UserError(
            "EmojiVQA's drawings are rasterised by the package resvg-py, which is not installed; get it with "
            "`pip install resvg-py==0.5.0`."
        ) from None
    return resvg_py


def read_code_points(archive: Path) -> dict[str, str]:
    """The code points that a vendor has drawn, and the names of the drawings."""
    return read_members(archive, "chars.json")[0]


def read_drawings(archive: Path, concepts: Sequence[Concept]) -> list[Drawing]:
    """
    Reads a vendor's drawings of `concepts`.

    Args:
        archive (`Path`):
            The vendor's package of Iconify.
        concepts (`Sequence[Concept]`):
            Whose drawings are wanted.
    """
    table, names = read_members(archive, "icons.json", "chars.json")
    drawings = []
    for concept in concepts:
        icon = table["icons"][names[concept.code_point]]
        # Where an icon says nothing else, all icons' size counts.
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(key, table[key]) for key in ("width", "height"))
        drawings.append(Drawing(icon["body"], left, top, width, height))
    return drawings


def rasterize(drawing: Drawing, size: int) -> Image.Image:
    """Paints a drawing on `size` by `size` transparent pixels: an image of mode RGBA."""
    view = f"{drawing.left} {drawing.top} {drawing.width} {drawing.height}"
    image = import_resvg().svg_to_bytes(
        svg_string=(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{view}" width="{size}" height="{size}">{drawing.body}</svg>'
        ),
        width=size,
        height=size,
        skip_system_fonts=True,  # A drawing looks alike on every machine.
    )
    return Image.open(io.BytesIO(bytes(image))).convert("RGBA")


@cache
def cut_out(drawing: Drawing) -> Drawing:
    """The smallest square around what is painted: vendors leave borders of other widths."""
    box = rasterize(drawing, OUTLINE_SIZE).getchannel("A").getbbox()
    if box is None:
        return drawing
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    left, top = (left + right - side) / 2, (top + bottom - side) / 2
    # A plane that is not square is centred in the square that is painted.
    extent = max(drawing.width, drawing.height)
    scale = extent / OUTLINE_SIZE
    return Drawing(
        drawing.body,
        drawing.left + (drawing.width - extent) / 2 + left * scale,
        drawing.top + (drawing.height - extent) / 2 + top * scale,
        side * scale,
        side * scale,
    )


def _parts(drawings: Sequence[Drawing]) -> np.ndarray:
    """Mean colour and opacity of each part of each drawing: `(num_drawings, NUM_PARTS ** 2 * 4)`."""
    images = np.stack([np.asarray(rasterize(cut_out(drawing), COMPARED_SIZE)) for drawing in drawings]) / 255.0
    images[..., :3] *= images[..., 3:]  # What is transparent has no colour.
    edge = COMPARED_SIZE // NUM_PARTS
    return images.reshape(-1, NUM_PARTS, edge, NUM_PARTS, edge, 4).mean(axis=(2, 4)).reshape(len(images), -1)


def disagreement(drawings: Sequence[Sequence[Drawing]]) -> np.ndarray:
    """
    How differently vendors draw each concept.

    Args:
        drawings (`Sequence[Sequence[Drawing]]`):
            Of each vendor, of the same concepts.

    Returns:
        `np.ndarray` of shape `(num_concepts,)`: how many drawings of another vendor are nearer, by colour and
        outline, to a concept's drawing than the other vendor's own drawing of it is; the mean over pairs of vendors.
    """
    parts = [_parts(vendor) for vendor in drawings]
    num_nearer = []
    for one in parts:
        for other in parts:
            if one is other:
                continue
            # (concepts of one, concepts of the other); rounded, so that what is equal is so on every machine.
            distance = (one**2).sum(axis=1)[:, None] - 2 * one @ other.T + (other**2).sum(axis=1)
            distance = distance.round(6)
            num_nearer.append((distance < np.diag(distance)[:, None]).sum(axis=1))
    return np.mean(num_nearer, axis=0)


def choose_concepts(
    concepts: Sequence[Concept], drawings: Sequence[Sequence[Drawing]], num_per_group: int
) -> list[Concept]:
    """
    The `num_per_group` concepts of each group that `drawings`' vendors draw most alike, in the order of `concepts`. So
    what is learned from some vendors can be known in the drawings of another, and of concepts that look alike, such as
    kinds of bear, there are few.
    """
    ranking = sorted(zip(disagreement(drawings), range(len(concepts)), strict=True))
    chosen = set()
    for group in dict.fromkeys(concept.group for concept in concepts):
        members = [index for _, index in ranking if concepts[index].group == group]
        chosen.update(members[:num_per_group])
    return [concepts[index] for index in sorted(chosen)]
