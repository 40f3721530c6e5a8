"""What the figures share: matplotlib where it is installed, its settings, and colours that everyone can tell apart."""

from pathlib import Path
from typing import Any

from ..files.atomic import atomic_file, write_json
from ..files.user_error import UserError


# Okabe and Ito's, which the colour-blind can tell apart, in an order in which neighbours differ in lightness too.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# A page of two columns is 7.2 inches wide; letters as small as its captions'.
PAGE_WIDTH = 7.2
SETTINGS = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
}


def matplotlib_or_error() -> Any:
    """
    The library that draws, imported here alone.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UserError("Figures need matplotlib: pip install matplotlib") from error
    return matplotlib


def save_figure(figure: Any, results: dict, output_dir: Path, name: str) -> None:
    """Writes a PNG for print and the numbers behind it, and says where."""
    write_json(output_dir / f"{name}.json", results)
    with atomic_file(output_dir / f"{name}.png") as incomplete:
        figure.savefig(incomplete, format="png", dpi=300)
    print(f"The figure: {output_dir / name}.png\nThe numbers behind it: {output_dir / name}.json")
