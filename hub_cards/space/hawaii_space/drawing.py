"""Maps over the picture that the encoder receives, as SVG: sharp in every size, with names under the pointer."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from .routing_map import BankRouting, RoutingMap


# The colour-blind-safe palette of Okabe and Ito. For more adapters they repeat; names under the pointer do not.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
FRAME = 0.09  # of a patch's side: the frame has the pure colour, the inside leaves the picture visible
BAR_WIDTH, BAR_HEIGHT = 10, 100
STYLE = """
.hawaii-map svg { display: block; width: 100%; }
.hawaii-map .picture { max-width: 26rem; max-height: 40rem; margin: auto; border-radius: 6px; }
.hawaii-map .picture rect:hover { fill-opacity: 0; }
.hawaii-map ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: .75rem 0; padding: 0; }
.hawaii-map li { display: flex; align-items: center; gap: .4rem; margin: 0; }
.hawaii-map .swatch { width: .9rem; height: .9rem; border-radius: 3px; }
.hawaii-map .bars { height: 4.5rem; overflow: visible; }
.hawaii-map .ends { display: flex; justify-content: space-between; padding: 0 .3rem; opacity: .75; font-size: .8rem; }
.hawaii-map p { margin: .5rem 0 .25rem; }
.hawaii-importance { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .75rem; }
.hawaii-importance figure { margin: 0; }
.hawaii-importance svg { max-height: 26rem; }
.hawaii-importance figcaption { text-align: center; overflow-wrap: anywhere; font-size: .85rem; }
"""


def _image(picture: Image.Image) -> str:
    """The picture as an SVG element, one unit per pixel. A small one shows its pixels, as the encoder sees them."""
    file = BytesIO()
    picture.save(file, "PNG")
    data = b64encode(file.getvalue()).decode()
    rendering = "pixelated" if picture.width <= 128 else "auto"
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<image href="data:image/png;base64,{data}" {size} style="image-rendering:{rendering}"/>'


def _first_color(routing: RoutingMap, bank: str) -> int:
    """Index of a bank's first colour: no two banks share one."""
    names = list(routing.banks)
    return sum(len(routing.banks[other].names) for other in names[: names.index(bank)])


def _draw_patches(routing: RoutingMap, bank: BankRouting, layer: int | None, first_color: int) -> str:
    if layer is None:
        counts = bank.counts()  # (m, N)
        chosen = counts.argmax(dim=-1).tolist()
        notes = [f"in {count} of {routing.num_layers} layers" for count in counts.amax(dim=-1).tolist()]
    else:
        chosen = bank.chosen[layer - 1].tolist()
        notes = [f"probability {value:.2f}" for value in bank.probabilities[layer - 1].tolist()]
    num_columns, size = routing.picture.width // routing.patch_size, routing.patch_size
    frame = FRAME * size
    shapes = []
    for patch, (index, note) in enumerate(zip(chosen, notes)):
        row, column = divmod(patch, num_columns)
        color = COLORS[(first_color + index) % len(COLORS)]
        title = escape(f"{bank.names[index]}, {note} (row {row + 1}, column {column + 1})")
        shapes.append(
            f'<rect x="{column * size + frame / 2:g}" y="{row * size + frame / 2:g}" width="{size - frame:g}" '
            f'height="{size - frame:g}" fill="{color}" stroke="{color}"><title>{title}</title></rect>'
        )
    return f'<g fill-opacity="0.3" stroke-width="{frame:g}">{"".join(shapes)}</g>'


def _draw_bars(shares: list[list[float]], bank: BankRouting, layer: int | None, first_color: int) -> str:
    """A stacked bar per layer, with one segment per adapter; the chosen layer has a frame."""
    parts = []
    for number, heights in enumerate(shares, start=1):
        left, top = (number - 1) * BAR_WIDTH, 0.0
        for index, height in enumerate(heights):
            title = escape(f"layer {number}: {bank.names[index]} {height:.0%}")
            color = COLORS[(first_color + index) % len(COLORS)]
            parts.append(
                f'<rect x="{left + 1}" y="{top:.2f}" width="{BAR_WIDTH - 2}" height="{height * BAR_HEIGHT:.2f}" '
                f'fill="{color}"><title>{title}</title></rect>'
            )
            top += height * BAR_HEIGHT
        if number == layer:
            frame = 'fill="none" stroke="currentColor" stroke-width="3" vector-effect="non-scaling-stroke"'
            parts.append(f'<rect x="{left}" y="0" width="{BAR_WIDTH}" height="{BAR_HEIGHT}" {frame}/>')
    box = f"0 0 {len(shares) * BAR_WIDTH} {BAR_HEIGHT}"
    style = f"max-width:{3 * len(shares)}rem"
    return (
        f'<div style="{style}"><svg class="bars" viewBox="{box}" preserveAspectRatio="none" role="img" '
        f'aria-label="Shares of the adapters in each layer">{"".join(parts)}</svg>'
        f'<div class="ends"><span>1</span><span>{len(shares)}</span></div></div>'
    )


def draw_routing(routing: RoutingMap, bank: str, layer: int | None) -> str:
    """
    Draws the adapter at each patch, a legend with the adapters' shares, and the shares in every layer.

    Args:
        routing (`RoutingMap`):
            The routers' choices.
        bank (`str`):
            Bank of adapters to draw, `teacher` or `general`.
        layer (`int`, *optional*):
            Layer to draw, from 1; `None` draws the adapter that acts in most layers, the first of several.

    Returns:
        `str`: HTML.
    """
    chosen, first_color = routing.banks[bank], _first_color(routing, bank)
    shares = chosen.shares()  # (L, N)
    shown = (shares.mean(dim=0) if layer is None else shares[layer - 1]).tolist()
    legend = "".join(
        f'<li><span class="swatch" style="background:{COLORS[(first_color + index) % len(COLORS)]}"></span>'
        f"{escape(name)} <b>{share:.0%}</b></li>"
        for index, (name, share) in enumerate(zip(chosen.names, shown))
    )
    place = f"all {routing.num_layers} layers" if layer is None else f"layer {layer} of {routing.num_layers}"
    return (
        f'<div class="hawaii-map"><svg class="picture" viewBox="0 0 {routing.picture.width} {routing.picture.height}" '
        f'role="img" aria-label="Adapters in {place}">{_image(routing.picture)}'
        f"{_draw_patches(routing, chosen, layer, first_color)}</svg>"
        f"<ul>{legend}</ul><p>Shares of the patches, layer by layer</p>"
        f"{_draw_bars(shares.tolist(), chosen, layer, first_color)}</div>"
    )


def draw_importance(picture: Image.Image, maps: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """
    Draws maps of the patches' importance: important patches are light, others dark, each map on its own scale.

    Args:
        picture (`PIL.Image.Image`):
            The square that the teachers receive, or the whole picture, assembled from its tiles.
        maps (`Mapping[str, Sequence[Sequence[float]]]`):
            For each title a grid of shares, row by row, that covers the picture.

    Returns:
        `str`: HTML.
    """
    image, figures = _image(picture), []
    for title, grid in maps.items():
        shares = [share for row in grid for share in row]
        low, high, mean = min(shares), max(shares), sum(shares) / len(shares)
        width, height = picture.width / len(grid[0]), picture.height / len(grid)
        rectangles = []
        for patch, share in enumerate(shares):
            row, column = divmod(patch, len(grid[0]))
            darkness = 0.85 * (1 - (share - low) / max(high - low, 1e-12))
            rectangles.append(
                f'<rect x="{column * width:g}" y="{row * height:g}" width="{width:g}" height="{height:g}" '
                f'fill-opacity="{darkness:.3f}"><title>{share / mean:.2f} × the mean</title></rect>'
            )
        figures.append(
            f'<figure><svg viewBox="0 0 {picture.width} {picture.height}" role="img" aria-label="{escape(title)}">'
            f"{image}{''.join(rectangles)}</svg><figcaption>{escape(title)}</figcaption></figure>"
        )
    return f'<div class="hawaii-importance">{"".join(figures)}</div>'
