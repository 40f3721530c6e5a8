"""The curves of a training log: loss terms, learning rate, throughput, the routers' load and the accuracy."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite
from typing import Any

from ..training.monitoring.progress import is_loss_term
from .style import LINE_COLORS, LINE_STYLES, PAGE_WIDTH, SETTINGS, matplotlib_or_error


NUM_COLUMNS = 3
PANEL_HEIGHT = 2.2  # inches
MAX_LEGEND = 12
RATES = {
    "samples_per_second": "samples per second",
    "tokens_per_second": "tokens per second",
    "flops_per_second": "FLOP/s of a device",
    "mfu": "MFU",
    "teacher_share": "share of the teachers in the time",
}


def _starts_with(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


# Title and axis of each panel, and the log entries that are its lines; panels without any are left out.
PANELS: list[tuple[str, str, Callable[[str], bool]]] = [
    ("Loss and its terms", "loss", is_loss_term),
    ("Learning rate", "learning rate", _starts_with("learning_rate")),
    ("Norm of the gradient", "norm", lambda name: name == "grad_norm"),
    *((title[0].upper() + title[1:], title, lambda name, key=key: name == key) for key, title in RATES.items()),
    ("Load of teacher-specific adapters", "share of the tokens", _starts_with("load/teacher/")),
    ("Load of general adapters", "share of the tokens", _starts_with("load/general/")),
    ("Evenness of the load", "entropy, 1 is even", _starts_with("load_entropy/")),
    ("Variance of features and targets", "variance", _starts_with("variance/")),
    ("Accuracy", "accuracy", _starts_with("eval_accuracy")),
]


def find_curves(entries: Sequence[Mapping], is_shown: Callable[[str], bool]) -> dict[str, tuple[list, list]]:
    """Returns the steps and the finite values of each entry that a panel shows, by name."""
    curves: dict[str, tuple[list, list]] = {}
    for entry in entries:
        for name, value in entry.items():
            if is_shown(name) and isinstance(value, int | float) and isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
    return curves


def _draw_panel(axis: Any, curves: Mapping[str, tuple[list, list]], title: str, label: str) -> None:
    for number, (name, (steps, values)) in enumerate(curves.items()):
        style = LINE_STYLES[number // len(LINE_COLORS) % len(LINE_STYLES)]
        marker = "o" if len(steps) == 1 else None
        color = LINE_COLORS[number % len(LINE_COLORS)]
        axis.plot(steps, values, style, color=color, linewidth=0.8, marker=marker, markersize=2, label=name)
    axis.set_title(title)
    axis.set_ylabel(label)
    axis.set_xlabel("step")
    axis.grid(linewidth=0.3, alpha=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    lines = [values for _, values in curves.values()]
    positive = [value for values in lines for value in values if value > 0]
    # Terms and variances differ by orders of magnitude.
    if label in ("loss", "variance") and len(lines) > 1 and len(positive) == sum(map(len, lines)):
        axis.set_yscale("log")
    if 1 < len(curves):
        axis.legend(frameon=False, fontsize=5, ncols=ceil(len(curves) / MAX_LEGEND))


def draw_stage(entries: Sequence[Mapping], stage: str) -> tuple[Any, dict]:
    """
    Draws the curves of a stage.

    Args:
        entries (`Sequence[Mapping]`):
            Entries of its log.
        stage (`str`):
            Its name.

    Returns:
        The `matplotlib.figure.Figure`, and the curves as steps and values by title and name.
    """
    matplotlib = matplotlib_or_error()
    panels = [(title, label, find_curves(entries, is_shown)) for title, label, is_shown in PANELS]
    panels = [panel for panel in panels if panel[2]]
    num_rows = max(1, ceil(len(panels) / NUM_COLUMNS))
    with matplotlib.rc_context(SETTINGS):
        size = (PAGE_WIDTH * 1.5, PANEL_HEIGHT * num_rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False).flat
        for axis, (title, label, curves) in zip(axes, panels):
            _draw_panel(axis, curves, title, label)
        for axis in list(axes)[len(panels) :]:
            axis.remove()
        figure.suptitle(stage, fontsize=8)
    return figure, {title: curves for title, _, curves in panels}


def draw_losses(logs: Mapping[str, Sequence[Mapping]]) -> Any:
    """
    Draws the loss and its terms, one panel for each stage.

    Args:
        logs (`Mapping[str, Sequence[Mapping]]`):
            Entries of the log of each stage, in the order of training.

    Returns:
        The `matplotlib.figure.Figure`, or `None` if nothing is logged.
    """
    stages = {stage: find_curves(entries, is_loss_term) for stage, entries in logs.items()}
    stages = {stage: curves for stage, curves in stages.items() if curves}
    if not stages:
        return None
    matplotlib = matplotlib_or_error()
    num_columns = min(NUM_COLUMNS, len(stages))
    num_rows = ceil(len(stages) / num_columns)
    with matplotlib.rc_context(SETTINGS):
        size = (PAGE_WIDTH / 2 * num_columns, PANEL_HEIGHT * num_rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for axis, (stage, curves) in zip(axes, stages.items()):
            _draw_panel(axis, curves, stage, "loss")
        for axis in axes[len(stages) :]:
            axis.remove()
    return figure
