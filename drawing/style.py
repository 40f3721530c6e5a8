"""Settings and colours of the figures, and saving them with matplotlib."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files.atomic import atomic_file, write_json
from ..files.user_error import UserError


# The colour-blind-safe palette of Okabe and Ito, ordered so that neighbours also differ in lightness.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# Yellow is too light for a line on white.
LINE_COLORS = ["#000000", *(color for color in COLORS if color != "#F0E442")]
LINE_STYLES = ("-", "--", ":")
# Width in inches of a page with two columns. The font size is that of its captions.
PAGE_WIDTH = 7.2
SETTINGS = {
    "font.size": 7,
    "text.parse_math": False,  # names are no formulas
    "axes.titlesize": 7,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
}


def has_matplotlib() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def matplotlib_or_error() -> Any:
    """
    Imports matplotlib.

    Raises:
        UserError: It is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UserError("Figures need matplotlib: pip install matplotlib") from error
    return matplotlib


def draw_map(axis: Any, square: Image.Image, weights: np.ndarray, covered: float = 1.0) -> None:
    """
    Draws the weights of patches over an image, and below it their range relative to the mean weight.

    Args:
        axis (`matplotlib.axes.Axes`):
            Panel to draw in.
        square (`PIL.Image.Image`):
            Square image.
        weights (`np.ndarray` of shape `(side, side)`):
            A weight for each patch, row by row.
        covered (`float`, *optional*, defaults to 1.0):
            Share of the image's side that the patches cover from the upper left corner.
    """
    relative = weights / weights.mean()
    height = (relative - relative.min()) / max(np.ptp(relative), 1e-6)
    axis.imshow(square.convert("L"), cmap="gray", extent=(0, 1, 0, 1), vmin=-64, vmax=255)
    # Small weights are more transparent, so that the image remains visible.
    extent = (0, covered, 1 - covered, 1)
    axis.imshow(height, cmap="inferno", alpha=0.4 + 0.5 * height, extent=extent, interpolation="nearest")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel(f"{relative.min():.1f} to {relative.max():.1f} × mean", labelpad=2)


def save_figure(figure: Any, results: dict, output_dir: Path, name: str) -> None:
    """Saves a figure as PNG and its numbers as JSON, and prints both paths."""
    write_json(output_dir / f"{name}.json", results)
    with atomic_file(output_dir / f"{name}.png") as incomplete:
        figure.savefig(incomplete, format="png", dpi=300)
    print(f"Figure: {output_dir / name}.png\nNumbers: {output_dir / name}.json")
