"""MoLA equals its equation, F*(h) = F(h) + a_T(h) + a_G(h) (eq. 2), computed by token and adapter."""

import pytest
import torch
import torch.nn.functional as F

from hawaii import HawaiiVisionConfig
from hawaii.modeling_hawaii.mixture_lora_hawaii import (
    AdapterRouter,
    MixtureOfLoraRouting,
    StackedLora,
    forced_adapter_gate,
)
from hawaii.modeling_hawaii.vision_hawaii import HawaiiVisionFeedForward
from hawaii.tests.tiny.models import VISION, fill


def make_config(**kwargs):
    return HawaiiVisionConfig(**{**VISION, "num_teacher_adapters": 3, "num_general_adapters": 2, **kwargs})


def make_feed_forward(**kwargs):
    """A feed-forward layer with random parameters, including the adapters."""
    feed_forward = HawaiiVisionFeedForward(make_config(**kwargs))
    for parameter in feed_forward.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return feed_forward


def naive_probabilities(router, token):
    if router.hidden is not None:
        token = F.gelu(router.hidden.weight @ token + router.hidden.bias)
    return (router.score.weight @ token + router.score.bias).softmax(dim=0)


def naive_adapter(lora, index, token):
    """a(h) = (alpha / r) B A h of one adapter at one token, with biases if there are any."""
    down = lora.down[index] @ token
    if lora.down_bias is None:
        return lora.scaling * (lora.up[index].T @ down)
    return lora.scaling * (lora.up[index].T @ (down + lora.down_bias[index]) + lora.up_bias[index])


def naive_feed_forward(layer, token):
    """Eq. 2 at one token: the most likely adapter of each bank acts, weighted by its probability with `switch`."""
    num_teachers = len(layer.routing.teacher_router.score.weight)
    teacher = naive_probabilities(layer.routing.teacher_router, token)
    general = naive_probabilities(layer.routing.general_router, token)
    choices = [(int(teacher.argmax()), teacher.max()), (num_teachers + int(general.argmax()), general.max())]
    if layer.routing.router_gradient != "switch":
        choices = [(index, 1.0) for index, _ in choices]
    if not layer.is_placed_beside_linears:
        output = layer.fc2(layer.activation(layer.fc1(token)))
        return output + sum(weight * naive_adapter(layer.adapters, index, token) for index, weight in choices)
    inner = layer.fc1(token) + sum(
        weight * naive_adapter(layer.fc1_adapters, index, token) for index, weight in choices
    )
    inner = layer.activation(inner)
    return layer.fc2(inner) + sum(
        weight * naive_adapter(layer.fc2_adapters, index, inner) for index, weight in choices
    )


def test_each_adapter_is_b_times_a_scaled_by_alpha_over_rank():
    config = make_config(num_teacher_adapters=1, num_general_adapters=1, lora_rank=1, lora_alpha=2)
    lora = StackedLora(config, 2, 2)
    lora.down.data = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    lora.up.data = torch.tensor([[[10.0, 0.0]], [[0.0, 100.0]]])
    token = torch.tensor([[[3.0, 5.0]]])
    first, second, both = (lora(token, torch.tensor([[gate]])) for gate in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]))
    assert first.tolist() == [[[2 * 10 * 3, 0]]]
    assert second.tolist() == [[[0, 2 * 100 * 5]]]
    assert both.tolist() == [[[60, 1000]]]


def test_biases_act_with_their_adapter_and_are_scaled_with_it():
    config = make_config(num_teacher_adapters=1, num_general_adapters=1, lora_rank=1, lora_alpha=2, lora_bias=True)
    lora = StackedLora(config, 2, 2)
    lora.down.data = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    lora.up.data = torch.tensor([[[10.0, 0.0]], [[0.0, 100.0]]])
    lora.down_bias.data = torch.tensor([[7.0], [0.0]])
    lora.up_bias.data = torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    token = torch.tensor([[[3.0, 5.0]]])
    first, second, neither = (lora(token, torch.tensor([[gate]])) for gate in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]))
    assert first.tolist() == [[[2 * 10 * (3 + 7), 2 * 1]]]
    assert second.tolist() == [[[2 * 4, 2 * 100 * 5]]]
    assert not neither.any()


@pytest.mark.parametrize("lora_bias", [False, True])
def test_a_new_adapter_adds_nothing(lora_bias):
    lora = StackedLora(make_config(lora_bias=lora_bias), 16, 8)
    lora.reset_parameters()
    assert not lora.up.any()
    assert lora.down.abs().max() <= 1 / 4  # Kaiming-uniform of 16 inputs, as nn.Linear: 1 / sqrt(16).
    assert lora.down.std() > 0.1
    assert not lora(torch.randn(1, 3, 16), torch.ones(1, 3, 5)).any()


@pytest.mark.parametrize("placement", ["ffn", "linear"])
@pytest.mark.parametrize("router_gradient", ["straight_through", "none", "switch"])
@pytest.mark.parametrize(("router_hidden_size", "lora_bias"), [(8, False), (None, True)])
def test_the_layer_equals_a_loop_over_tokens_and_adapters(placement, router_gradient, router_hidden_size, lora_bias):
    layer = make_feed_forward(
        adapter_placement=placement,
        router_gradient=router_gradient,
        router_hidden_size=router_hidden_size,
        lora_bias=lora_bias,
        lora_alpha=6,
    ).double()
    hidden_states = torch.randn(2, 7, 32, dtype=torch.float64)
    output, _ = layer(hidden_states, None, None)
    expected = torch.stack(
        [torch.stack([naive_feed_forward(layer, token) for token in sample]) for sample in hidden_states]
    )
    # The routers' probabilities are float32 and scale the adapters only with `switch`.
    tolerance = 1e-6 if router_gradient == "switch" else 1e-12
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("placement", ["ffn", "linear"])
def test_the_straight_through_forward_is_bitwise_equal_to_hard_selection(placement):
    layer = make_feed_forward(adapter_placement=placement)
    hidden_states = torch.randn(4, 9, 32)
    straight_through, _ = layer(hidden_states, None, None)
    layer.routing.router_gradient = "none"
    assert torch.equal(straight_through, layer(hidden_states, None, None)[0])


@pytest.mark.parametrize("placement", ["ffn", "linear"])
@pytest.mark.parametrize(
    ("router_gradient", "learns"), [("straight_through", True), ("switch", True), ("none", False)]
)
def test_the_routers_learn_from_the_task_as_configured(placement, router_gradient, learns):
    layer = make_feed_forward(adapter_placement=placement, router_gradient=router_gradient)
    layer(torch.randn(2, 5, 32), None, None)[0].square().sum().backward()
    for router in (layer.routing.teacher_router, layer.routing.general_router):
        for name, parameter in router.named_parameters():
            assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name


def make_router_of_two(router_gradient, logits):
    """A bank of two adapters whose router has `logits` at every token, as its biases."""
    config = make_config(num_teacher_adapters=2, num_general_adapters=0, router_gradient=router_gradient)
    routing = fill(MixtureOfLoraRouting(config))
    torch.nn.init.zeros_(routing.teacher_router.score.weight)
    routing.teacher_router.score.bias.data = torch.tensor(logits)
    return routing


@pytest.mark.parametrize(
    ("router_gradient", "value", "gradient"),
    [
        # With probabilities (1/4, 3/4) the second acts; d p_2 / d (logit_1, logit_2) = p_1 p_2 (-1, 1) = 3/16 (-1, 1).
        ("straight_through", 1.0, 3 / 16),
        ("switch", 3 / 4, 3 / 16),
        ("none", 1.0, None),
    ],
)
def test_gate_and_gradient_of_two_adapters_equal_hand_computed_values(router_gradient, value, gradient):
    routing = make_router_of_two(router_gradient, [0.0, float(torch.tensor(3.0).log())])
    gate, probabilities = routing(torch.randn(1, 1, 32), None, None)
    torch.testing.assert_close(probabilities, torch.tensor([[[1 / 4, 3 / 4]]]))
    torch.testing.assert_close(gate, torch.tensor([[[0.0, value]]]))
    assert gate.requires_grad == (gradient is not None)
    if gradient is not None:
        gate.sum().backward()
        expected = torch.tensor([-gradient, gradient])
        torch.testing.assert_close(routing.teacher_router.score.bias.grad, expected)


def test_each_bank_chooses_one_adapter_per_token():
    config = make_config()
    gate, probabilities = fill(MixtureOfLoraRouting(config))(torch.randn(2, 50, 32), None, None)
    teachers, generals = gate.split([3, 2], dim=-1)
    assert torch.equal(teachers.sum(dim=-1), torch.ones(2, 50))
    assert torch.equal(generals.sum(dim=-1), torch.ones(2, 50))
    assert torch.equal(teachers.argmax(dim=-1), probabilities[..., :3].argmax(dim=-1))
    assert torch.equal(generals.argmax(dim=-1), probabilities[..., 3:].argmax(dim=-1))
    assert teachers.any(dim=1).all(), "the random router leaves no adapter unused, so each was tested"


def test_each_banks_probabilities_sum_to_one_in_float32():
    routing = fill(MixtureOfLoraRouting(make_config())).bfloat16()
    gate, probabilities = routing(torch.randn(2, 5, 32, dtype=torch.bfloat16), None, None)
    assert gate.dtype == torch.bfloat16
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities[..., :3].sum(dim=-1), torch.ones(2, 5))
    torch.testing.assert_close(probabilities[..., 3:].sum(dim=-1), torch.ones(2, 5))


@pytest.mark.parametrize(("num_teachers", "num_generals"), [(3, 0), (0, 2)])
def test_each_bank_may_be_absent(num_teachers, num_generals):
    layer = make_feed_forward(num_teacher_adapters=num_teachers, num_general_adapters=num_generals)
    _, probabilities = layer(torch.randn(1, 4, 32), None, None)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(1, 4))
    assert probabilities.shape == (1, 4, num_teachers + num_generals)


def test_a_layer_without_adapters_equals_clips():
    layer = make_feed_forward(num_teacher_adapters=0, num_general_adapters=0)
    assert {name.split(".")[0] for name, _ in layer.named_parameters()} == {"fc1", "fc2"}
    hidden_states = torch.randn(1, 4, 32)
    output, probabilities = layer(hidden_states, None, None)
    assert torch.equal(output, layer.fc2(layer.activation(layer.fc1(hidden_states))))
    assert probabilities is None


def test_a_router_of_one_layer_has_one_layer():
    router = AdapterRouter(make_config(router_hidden_size=None), 3)
    assert {name: tuple(value.shape) for name, value in router.named_parameters()} == {
        "score.weight": (3, 32),
        "score.bias": (3,),
    }


def test_a_forced_adapter_acts_alone_and_general_adapters_cannot_be_forced():
    gate = forced_adapter_gate(torch.tensor([-1, 0, 2, 3]), make_config(), torch.float32)
    assert gate.squeeze(1).tolist() == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
