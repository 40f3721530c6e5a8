"""Settings and colours of the figures, and saving them with matplotlib."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


def shorten_title(title: str, length: int) -> str:
    """A title of at most `length` characters."""
    return title if len(title) <= length else f"{title[: length - 1]}…"


def save_figure(figure: Any, results: dict, output_dir: Path, name: str) -> None:
    """Saves a figure as PNG and its numbers as JSON, and prints both paths."""
    write_json(output_dir / f"{name}.json", results)
    with atomic_file(output_dir / f"{name}.png") as incomplete:
        figure.savefig(incomplete, format="png", dpi=300)
    print(f"Figure: {output_dir / name}.png\nNumbers: {output_dir / name}.json")
