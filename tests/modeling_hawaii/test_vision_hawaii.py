"""The encoder: adapters that act, outputs, cost and execution."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from hawaii import HawaiiVisionConfig, HawaiiVisionModel
from hawaii.tests.tiny.models import VISION, fill


NUM_TEACHERS, NUM_GENERALS, NUM_LAYERS = 3, 2, 2


def make_model(**kwargs):
    return fill(HawaiiVisionModel(HawaiiVisionConfig(**{**VISION, "num_general_adapters": NUM_GENERALS, **kwargs})))


@pytest.fixture
def pixel_values():
    return torch.randn(4, 3, 16, 16)


@torch.no_grad()
def features(model, pixel_values, adapters=None):
    if adapters is not None:
        adapters = torch.tensor(adapters)
    return model(pixel_values, adapters=adapters).last_hidden_state


def perturb(model, adapter=None, routers=False):
    """A copy of the model with other values in one adapter, or in all routers."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if routers and "_router." in name:
            torch.nn.init.normal_(parameter)
        if adapter is not None and "adapters." in name:
            torch.nn.init.normal_(parameter[adapter])
    return model


@pytest.mark.parametrize("placement", ["ffn", "linear"])
@pytest.mark.parametrize("forced", range(NUM_TEACHERS))
def test_a_forced_adapter_acts_alone(pixel_values, placement, forced):
    model = make_model(adapter_placement=placement)
    forced_everywhere = [forced] * 4
    expected = features(model, pixel_values, forced_everywhere)
    for other in range(NUM_TEACHERS + NUM_GENERALS):
        is_equal = torch.equal(features(perturb(model, other), pixel_values, forced_everywhere), expected)
        assert is_equal == (other != forced), other
    assert torch.equal(features(perturb(model, routers=True), pixel_values, forced_everywhere), expected)


def test_routed_features_depend_on_every_adapter_and_on_the_routers(pixel_values):
    model = make_model()
    expected = features(model, pixel_values)
    for adapter in range(NUM_TEACHERS + NUM_GENERALS):
        assert not torch.equal(features(perturb(model, adapter), pixel_values), expected)
    assert not torch.equal(features(perturb(model, routers=True), pixel_values), expected)


@pytest.mark.parametrize("placement", ["ffn", "linear"])
def test_a_batch_of_forced_and_routed_images_equals_each_alone(pixel_values, placement):
    model = make_model(adapter_placement=placement).double()
    pixel_values = pixel_values.double()
    together = features(model, pixel_values, [1, -1, 0, 2])
    alone = [features(model, image[None], [adapter]) for image, adapter in zip(pixel_values, (1, -1, 0, 2))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[1], features(model, pixel_values)[1], rtol=0, atol=1e-6)


def test_routed_samples_equal_those_of_a_batch_without_forced_adapters(pixel_values):
    model = make_model()
    assert torch.equal(features(model, pixel_values, [-1] * 4), features(model, pixel_values))


def test_forced_samples_give_the_routers_no_gradient(pixel_values):
    model = make_model()
    model(pixel_values, adapters=torch.tensor([0, 1, 2, 0])).last_hidden_state.square().sum().backward()
    for name, parameter in model.named_parameters():
        if "_router." in name:
            assert not parameter.grad.any()
        if "adapters.up" in name:
            assert all(parameter.grad[adapter].any() == (adapter < NUM_TEACHERS) for adapter in range(5))


def test_routing_has_one_distribution_per_bank_layer_image_and_token(pixel_values):
    probabilities = make_model()(pixel_values, output_routing=True).router_probabilities
    assert probabilities.shape == (NUM_LAYERS, 4, 17, NUM_TEACHERS + NUM_GENERALS)
    ones = torch.ones(NUM_LAYERS, 4, 17)
    torch.testing.assert_close(probabilities[..., :NUM_TEACHERS].sum(dim=-1), ones)
    torch.testing.assert_close(probabilities[..., NUM_TEACHERS:].sum(dim=-1), ones)


def test_only_requested_outputs_are_returned(pixel_values):
    model = make_model()
    assert set(model(pixel_values)) == {"last_hidden_state"}
    outputs = model(pixel_values, output_hidden_states=True)
    assert len(outputs.hidden_states) == 1 + NUM_LAYERS
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert torch.equal(model(pixel_values, return_dict=False)[0], outputs.last_hidden_state)


def test_adapters_need_one_entry_per_image(pixel_values):
    with pytest.raises(ValueError, match=r"adapters has shape \(3,\); one entry for each of 4 images"):
        make_model()(pixel_values, adapters=torch.tensor([0, 1, 2]))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="12 x 20 pixels but this encoder sees 16 x 16"):
        make_model()(torch.zeros(1, 3, 12, 20))


@pytest.mark.parametrize("adapters", [None, [0, -1, 2, 1]])
def test_sdpa_equals_eager(pixel_values, adapters):
    model = make_model()
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    with_sdpa = features(model, pixel_values, adapters)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(features(model, pixel_values, adapters), with_sdpa, rtol=0, atol=1e-5)


def test_bfloat16_is_close_to_float32(pixel_values):
    # Forced, because rounding may change the routing.
    model = make_model()
    expected = features(model, pixel_values, [0, 1, 2, 0])
    rounded = features(model.bfloat16(), pixel_values, [0, 1, 2, 0])
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0, atol=0.03 * float(expected.abs().max()))
    assert features(model, pixel_values).isfinite().all()


@pytest.mark.parametrize("adapters", [None, [0, -1, 2, 1]])
def test_gradient_checkpointing_gives_the_same_gradients(pixel_values, adapters):
    adapters = None if adapters is None else torch.tensor(adapters)
    plain = make_model().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    runs = []
    checkpointed.layers[0].feed_forward.register_forward_pre_hook(lambda *args: runs.append(1))
    for model in (plain, checkpointed):
        outputs = model(pixel_values, adapters=adapters, output_routing=True)
        (outputs.last_hidden_state.square().sum() + outputs.router_probabilities.square().sum()).backward()
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters()):
        assert torch.equal(parameter.grad, expected.grad), name
    assert len(runs) == 2, "the layer ran forward and, for its gradient, once more"


SIGLIP = {"has_class_token": False, "has_pre_layer_norm": False, "has_patch_bias": True}


def test_only_configured_parts_are_built():
    names = {name for name, _ in make_model(lora_bias=True, **SIGLIP).named_parameters()}
    others = {name for name, _ in make_model().named_parameters()}
    embeddings = {"embeddings.class_embedding", "pre_layer_norm.weight", "pre_layer_norm.bias"}
    assert others - names == embeddings
    biases = {f"layers.{layer}.feed_forward.adapters.{half}_bias" for layer in range(2) for half in ("down", "up")}
    assert names - others == {"embeddings.patch_embedding.bias", *biases}


def test_an_encoder_without_class_token_has_one_token_per_patch(pixel_values):
    model = make_model(**SIGLIP)
    outputs = model(pixel_values, output_hidden_states=True, output_routing=True)
    assert outputs.last_hidden_state.shape == (4, 16, 32)
    assert outputs.router_probabilities.shape[2] == 16
    embedded = torch.nn.functional.conv2d(
        pixel_values, model.embeddings.patch_embedding.weight, model.embeddings.patch_embedding.bias, stride=4
    )
    expected = embedded.flatten(2).transpose(1, 2) + model.embeddings.position_embedding
    torch.testing.assert_close(outputs.hidden_states[0], expected)


def test_pixels_outside_complete_patches_are_ignored():
    model = make_model(image_size=18)
    pixel_values = torch.randn(1, 3, 18, 18)
    expected = features(model, pixel_values)
    assert expected.shape == (1, 17, 32)
    pixel_values[..., 16:, :], pixel_values[..., :, 16:] = 5, 5
    assert torch.equal(features(model, pixel_values), expected)


@pytest.mark.parametrize("is_forced", [False, True])
def test_a_siglip_with_biased_adapters_compiles_as_one_graph_and_saves(pixel_values, tmp_path, is_forced):
    model = make_model(adapter_placement="linear", router_hidden_size=None, lora_bias=True, **SIGLIP)
    adapters = torch.tensor([0, -1, 2, 1]) if is_forced else None
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    model.save_pretrained(tmp_path)
    loaded, report = HawaiiVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = model(pixel_values, adapters=adapters).last_hidden_state
        assert torch.equal(loaded.eval()(pixel_values, adapters=adapters).last_hidden_state, expected)
        torch.testing.assert_close(compiled(pixel_values, adapters=adapters).last_hidden_state, expected)


@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_encoder_compiles_as_one_graph(pixel_values, implementation, is_forced):
    model = make_model()
    model.set_attn_implementation(implementation)
    adapters = torch.tensor([0, -1, 2, 1]) if is_forced else None
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        outputs = compiled(pixel_values, adapters=adapters, output_routing=True)
        expected = model(pixel_values, adapters=adapters, output_routing=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(outputs.router_probabilities, expected.router_probabilities)


def test_saving_and_loading_changes_nothing(pixel_values, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded, report = HawaiiVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(features(loaded.eval(), pixel_values), features(model, pixel_values))


def test_a_new_encoder_is_fully_initialised_and_its_adapters_add_nothing(pixel_values):
    model = HawaiiVisionModel(HawaiiVisionConfig(**VISION)).eval()
    routed = features(model, pixel_values)
    assert routed.isfinite().all()
    assert all(torch.equal(features(model, pixel_values, [adapter] * 4), routed) for adapter in range(NUM_TEACHERS))


@torch.no_grad()
def count_flops(make_encoder, **inputs):
    """
    Operations for one image at full size. Tensors on the meta device have no values: an encoder that runs there reads
    none, so on an accelerator it does not synchronise.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        make_encoder().eval()(torch.empty(1, 3, 336, 336), **inputs)
    return counter.get_total_flops()


def make_clip_large():
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return CLIPVisionModel(config)


@pytest.mark.parametrize("is_forced", [False, True])
def test_the_encoder_costs_2_percent_more_than_without_adapters_and_less_than_clip(is_forced):
    adapters = torch.zeros(1, dtype=torch.long, device="meta") if is_forced else None
    hawaii = count_flops(lambda: HawaiiVisionModel(HawaiiVisionConfig()), adapters=adapters)
    plain = count_flops(lambda: HawaiiVisionModel(HawaiiVisionConfig(num_teacher_adapters=0, num_general_adapters=0)))
    clip = count_flops(make_clip_large)
    assert hawaii / plain == pytest.approx(1.0238, abs=1e-4)  # 374.7 and 366.0 GFLOP
    assert hawaii / clip == pytest.approx(0.9812, abs=1e-4)  # 381.9 GFLOP


def test_attentions_are_those_of_every_layer_with_any_kernel(pixel_values):
    model = make_model()
    assert model.config._attn_implementation == "sdpa"
    expected = features(model, pixel_values)
    output = model(pixel_values, output_attentions=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(4, 4, 17, 17)] * NUM_LAYERS
    torch.testing.assert_close(output.attentions[0].sum(dim=-1), torch.ones(4, 4, 17))
    torch.testing.assert_close(output.last_hidden_state, expected)
    eager = HawaiiVisionModel._from_config(model.config, attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    torch.testing.assert_close(eager.eval()(pixel_values, output_attentions=True).attentions, output.attentions)
    assert model(pixel_values).attentions is None


@pytest.mark.parametrize("name", ["hidden_states", "attentions"])
def test_the_configuration_can_request_outputs(pixel_values, name):
    model = make_model(attn_implementation="eager")
    setattr(model.config, f"output_{name}", True)
    assert len(getattr(model(pixel_values), name)) == NUM_LAYERS + (name == "hidden_states")
    assert getattr(model(pixel_values, **{f"output_{name}": False}), name) is None
