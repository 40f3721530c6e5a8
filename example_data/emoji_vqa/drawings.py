"""Vendors' drawings: read as SVG, cropped, rasterized and compared."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from ...files.user_error import explain_errors
from .concepts import Concept
from .packages import read_members


OUTLINE_SIZE = 64  # pixels at which the edges of a drawing are found
# Pixels at which drawings are compared, and the number of parts along an edge that are averaged.
COMPARED_SIZE, NUM_PARTS = 32, 8


@dataclass(frozen=True)
class Drawing:
    """The body of an SVG and its view box."""

    body: str
    left: float
    top: float
    width: float
    height: float


def import_resvg():
    """Returns the package that rasterizes SVG."""
    with explain_errors(
        "The package resvg-py rasterizes EmojiVQA's drawings. Install it with `pip install resvg-py==0.5.0`",
        ImportError,
    ):
        import resvg_py
    return resvg_py


def read_code_points(archive: Path) -> dict[str, str]:
    """Returns the names of a vendor's drawings by code point."""
    return read_members(archive, "chars.json")[0]


def read_drawings(archive: Path, concepts: Sequence[Concept]) -> list[Drawing]:
    """Reads the drawings of `concepts` from a vendor's Iconify package, which must contain them all."""
    table, names = read_members(archive, "icons.json", "chars.json")
    drawings = []
    for concept in concepts:
        icon = table["icons"][names[concept.code_point]]
        # An icon without a size has the size of the table.
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(key, table[key]) for key in ("width", "height"))
        drawings.append(Drawing(icon["body"], left, top, width, height))
    return drawings


def rasterize(drawing: Drawing, size: int) -> Image.Image:
    """Paints a drawing on `size` by `size` transparent pixels and returns the RGBA image."""
    view = f"{drawing.left} {drawing.top} {drawing.width} {drawing.height}"
    image = import_resvg().svg_to_bytes(
        svg_string=(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{view}" width="{size}" height="{size}">{drawing.body}</svg>'
        ),
        width=size,
        height=size,
        skip_system_fonts=True,  # A drawing looks the same on every machine.
    )
    return Image.open(io.BytesIO(bytes(image))).convert("RGBA")


@cache
def crop(drawing: Drawing) -> Drawing:
    """Crops a drawing to the smallest square around its painted pixels: vendors leave borders of different widths."""
    box = rasterize(drawing, OUTLINE_SIZE).getchannel("A").getbbox()
    if box is None:
        return drawing
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    left, top = (left + right - side) / 2, (top + bottom - side) / 2
    # A view box that is not square is centered in the square that is painted.
    extent = max(drawing.width, drawing.height)
    scale = extent / OUTLINE_SIZE
    return Drawing(
        drawing.body,
        drawing.left + (drawing.width - extent) / 2 + left * scale,
        drawing.top + (drawing.height - extent) / 2 + top * scale,
        side * scale,
        side * scale,
    )


def _mean_colors(drawings: Sequence[Drawing]) -> np.ndarray:
    """Mean color and opacity of the parts of each drawing, of shape `(num_drawings, NUM_PARTS ** 2 * 4)`."""
    images = np.stack([np.asarray(rasterize(crop(drawing), COMPARED_SIZE)) for drawing in drawings]) / 255.0
    images[..., :3] *= images[..., 3:]  # Transparent pixels have no color.
    edge = COMPARED_SIZE // NUM_PARTS
    return images.reshape(-1, NUM_PARTS, edge, NUM_PARTS, edge, 4).mean(axis=(2, 4)).reshape(len(images), -1)


def disagreement(drawings: Sequence[Sequence[Drawing]]) -> np.ndarray:
    """
    Measures how differently vendors draw each concept: how many drawings of another vendor are nearer to a concept's
    drawing, by color and outline, than that vendor's drawing of the same concept; the mean over pairs of vendors.
    `drawings` has those of each vendor, in the order of the returned array of shape `(num_concepts,)`.
    """
    num_nearer = []
    for one, other in permutations([_mean_colors(vendor) for vendor in drawings], 2):
        distance = (one**2).sum(axis=1)[:, None] - 2 * one @ other.T + (other**2).sum(axis=1)  # (concepts, concepts)
        distance = distance.round(6)  # Equal distances are then equal on every machine.
        num_nearer.append((distance < np.diag(distance)[:, None]).sum(axis=1))
    return np.mean(num_nearer, axis=0)


def choose_concepts(
    concepts: Sequence[Concept], drawings: Sequence[Sequence[Drawing]], num_per_group: int
) -> list[Concept]:
    """
    Returns the `num_per_group` concepts of each group that vendors draw most alike, in the order of `concepts`. A
    model can then recognize them in another vendor's drawings, and few concepts look alike, such as kinds of bear.
    """
    ranking = sorted(zip(disagreement(drawings), range(len(concepts)), strict=True))
    chosen = set()
    for group in dict.fromkeys(concept.group for concept in concepts):
        members = [index for _, index in ranking if concepts[index].group == group]
        chosen.update(members[:num_per_group])
    return [concepts[index] for index in sorted(chosen)]
