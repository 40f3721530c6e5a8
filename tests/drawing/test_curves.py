"""The curves of a log are its values; the losses of all stages are one picture."""

from hawaii.drawing.curves import draw_losses, draw_stage, find_curves
from hawaii.tests.training_log import ENTRIES, EVALUATION


def test_the_curves_are_the_values_of_the_log():
    _, curves = draw_stage([*ENTRIES, EVALUATION, {"step": 3, "train_runtime": 5.0}], "pretrain")
    assert curves["Loss and its terms"] == {
        "loss": ([1, 2, 3], [2.0, 1.0, 2 / 3]),
        "text": ([1, 2, 3], [1.0, 0.5, 1 / 3]),
        "fine/vit": ([1, 2, 3], [0.5] * 3),
    }
    assert curves["Accuracy"] == {"eval_accuracy": ([3], [0.5]), "eval_accuracy/color": ([3], [0.75])}
    assert list(curves["Load of teacher-specific adapters"]) == ["load/teacher/vit", "load/teacher/convnext"]
    assert set(curves) >= {"Learning rate", "Samples per second", "Evenness of the load"}
    assert "MFU" not in curves and "Load of general adapters" not in curves


def test_values_that_are_not_finite_are_left_out():
    entries = [*ENTRIES[:1], {"step": 2, "loss": float("nan")}]
    assert find_curves(entries, lambda name: name == "loss") == {"loss": ([1], [2.0])}


def test_the_losses_have_one_panel_for_each_stage_that_has_logged_some():
    figure = draw_losses({"pretrain": ENTRIES, "empty": [EVALUATION], "$x_{1}$": ENTRIES[:1]})
    assert [axis.get_title() for axis in figure.axes] == ["pretrain", "$x_{1}$"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["loss", "text", "fine/vit"]
    figure.savefig("/dev/null", format="png")  # names are no formulas


def test_a_run_that_has_logged_nothing_has_no_picture():
    assert draw_losses({"pretrain": [], "finetune": [EVALUATION]}) is None
