"""Each term's gradient reaches the parameters that the term trains, and no others."""

import pytest
import torch

from hawaii.tests.tiny.training import gradients, make_module, reached, without_labels
from hawaii.training.objectives import hawaii as hawaii_objective


def keep_only(monkeypatch, teacher=None):
    """Removes all distillation losses except the fine-grained loss of one teacher, if given."""
    fine = hawaii_objective.fine_grained_loss
    keep = torch.tensor([float(index == teacher) for index in range(2)])
    monkeypatch.setattr(hawaii_objective, "fine_grained_loss", lambda *args: fine(*args) * keep)
    monkeypatch.setattr(hawaii_objective, "coarse_grained_loss", lambda student, _: torch.zeros(len(student)))


@pytest.mark.parametrize("sequential_passes", [False, True])
@pytest.mark.parametrize("teacher", [0, 1])
def test_a_forced_pass_trains_its_adapter_and_no_router(batch, run, monkeypatch, teacher, sequential_passes):
    module = make_module(lambda_2=0.0, sequential_passes=sequential_passes)
    keep_only(monkeypatch, teacher)
    loss, _ = run(module, without_labels(batch))
    found = gradients(module, loss)
    assert reached(found, "routing") == set()
    for name in ("adapters.down", "adapters.up"):
        of_layers = [gradient for full_name, gradient in found.items() if name in full_name]
        assert len(of_layers) == 2
        for gradient in of_layers:
            assert gradient.flatten(1).any(dim=1).tolist() == [index == teacher for index in range(5)]
    assert reached(found, "fine_projections") == reached(found, f"fine_projections.{teacher}_") != set()
    assert reached(found, "coarse_projection") == set()


def test_coarse_distillation_trains_both_banks_of_adapters_and_the_routers(batch, run, monkeypatch):
    module = make_module(lambda_2=0.0)
    monkeypatch.setattr(hawaii_objective, "fine_grained_loss", lambda student, *args: torch.zeros(student.shape[:2]))
    found = gradients(module, run(module, without_labels(batch))[0])
    assert (
        reached(found, "teacher_router") and reached(found, "general_router") and reached(found, "coarse_projection")
    )
    touched = torch.stack(
        [gradient.flatten(1).any(dim=1) for name, gradient in found.items() if "adapters.up" in name]
    )
    assert touched[:, :2].any() and touched[:, 2:].any()


@pytest.mark.parametrize("router_gradient", ["straight_through", "switch", "none"])
def test_the_text_loss_trains_the_routers_unless_router_gradient_is_none(batch, run, router_gradient):
    module = make_module(vision={"router_gradient": router_gradient}, lambda_1=0.0, lambda_2=0.0)
    found = gradients(module, run(module, batch)[0])
    routers = {name for name in found if "routing" in name}
    assert reached(found, "routing") == (set() if router_gradient == "none" else routers)
    assert reached(found, "adapters.")


def test_the_balance_loss_trains_the_routers_even_if_no_other_loss_does(batch, run):
    module = make_module(vision={"router_gradient": "none"}, lambda_1=0.0)
    found = gradients(module, run(module, without_labels(batch))[0])
    assert reached(found, "routing") == {name for name in found if "routing" in name}


def test_the_score_gradient_trains_the_configured_projections(batch, run, monkeypatch):
    # With equal weights and data, `none` is the gradient through the errors only.
    found = {}
    for score_gradient in ("none", "text", "full"):
        torch.manual_seed(0)
        module = make_module(score_gradient=score_gradient)
        with monkeypatch.context() as patch:
            patch.setattr(hawaii_objective, "coarse_grained_loss", lambda student, _: torch.zeros(len(student)))
            found[score_gradient] = gradients(module, run(module, without_labels(batch))[0])
    assert not any("text_projection" in name for name in found["none"])
    text = {name for name in found["text"] if "text_projection" in name}
    assert reached(found["text"], "text_projection") == reached(found["full"], "text_projection") == text != set()
    fine = {name for name in found["text"] if "fine_projections" in name}
    for name in fine:
        torch.testing.assert_close(found["text"][name], found["none"][name])
        assert (found["full"][name] - found["none"][name]).abs().max() > 1e-5 * found["none"][name].abs().max(), name
    for name in found["none"].keys() - fine:
        torch.testing.assert_close(found["full"][name], found["none"][name])


def test_the_instruction_does_not_train_the_embeddings(batch, run):
    module = make_module()
    found = gradients(module, run(module, without_labels(batch))[0])
    assert reached(found, "language_model") == set()
    assert reached(found, "text_projection")


@pytest.mark.parametrize(
    ("arguments", "learns"),
    [
        ({}, True),
        ({"score_gradient": "full"}, True),
        ({"score_gradient": "none"}, False),
        ({"token_scoring": False}, False),
    ],
)
def test_the_projection_of_the_instruction_is_trainable_only_with_a_score_gradient(arguments, learns):
    parameters = make_module(**arguments).objective.text_projection.parameters()
    assert {parameter.requires_grad for parameter in parameters} == {learns}


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate", "learned"])
def test_every_grid_matching_trains(batch, run, grid_matching):
    module = make_module(grid_matching=grid_matching)
    loss, _ = run(module, batch)
    of_objective = {name: g for name, g in gradients(module, loss).items() if name.startswith("objective.")}
    assert reached(of_objective, "") == set(of_objective)
    assert any("token_projections" in name for name in of_objective) == (grid_matching == "learned")
