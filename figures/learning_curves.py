"""Learning curves: accuracy during training against steps and seconds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..drawing.style import LINE_COLORS, LINE_STYLES, SETTINGS, matplotlib_or_error, save_figure


AXES = {"steps": "training steps", "seconds": "seconds of training, without evaluations"}
MARKERS = "os^Dv<>pX"
SIZE = (6.0, 3.2)  # inches


def summarize_curves(runs: Sequence[Mapping]) -> list[dict]:
    """
    Averages the curves of several seeds.

    Args:
        runs (`Sequence[Mapping]`):
            Runs of one row, each with a `curve`; see [`read_curve`].

    Returns:
        `list[dict]`: For each evaluated step: `steps`, mean `seconds`, and the `mean`, `lowest` and `highest` accuracy
        of the runs in percent.
    """
    points = defaultdict(list)
    for run in runs:
        for point in run["curve"]:
            points[point["step"]].append(point)
    curve = []
    for step, measured in sorted(points.items()):
        accuracies = [100 * point["accuracy"] for point in measured]
        curve.append(
            {
                "steps": step,
                "seconds": sum(point["seconds"] for point in measured) / len(measured),
                "mean": sum(accuracies) / len(accuracies),
                "lowest": min(accuracies),
                "highest": max(accuracies),
                "num_seeds": len(measured),
            }
        )
    return curve


def draw_curves(curves: Mapping[str, Sequence[Mapping]], folder: Path) -> None:
    """
    Writes `accuracy_against_steps.png`, `accuracy_against_seconds.png` and their numbers.

    Args:
        curves (`Mapping[str, Sequence[Mapping]]`):
            Results of [`summarize_curves`] by the label of the row. The mean is drawn as a line and the range of the
            seeds as a band.
        folder (`Path`):
            Output folder.
    """
    matplotlib = matplotlib_or_error()
    for unit, axis in AXES.items():
        with matplotlib.rc_context(SETTINGS):
            figure = matplotlib.figure.Figure(figsize=SIZE, layout="constrained")
            axes = figure.add_subplot()
            for number, (label, curve) in enumerate(curves.items()):
                color = LINE_COLORS[number % len(LINE_COLORS)]
                style = LINE_STYLES[number // len(LINE_COLORS) % len(LINE_STYLES)]
                x = [point[unit] for point in curve]
                lowest, highest = ([point[name] for point in curve] for name in ("lowest", "highest"))
                axes.fill_between(x, lowest, highest, color=color, alpha=0.12, linewidth=0)
                means, marker = [point["mean"] for point in curve], MARKERS[number % len(MARKERS)]
                axes.plot(x, means, style, color=color, linewidth=1.2, marker=marker, markersize=3, label=label)
            axes.set_xlabel(axis)
            axes.set_ylabel("accuracy (%)")
            axes.grid(linewidth=0.3, alpha=0.5)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
            save_figure(figure, {"x": unit, "rows": dict(curves)}, folder, f"accuracy_against_{unit}")
