"""The complete model without generation: merging of images and text, refused inputs, execution and saving."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hawaii import HawaiiForConditionalGeneration, HawaiiModel
from hawaii.tests.tiny.models import make_config, make_model


IMAGE = [4] * 16  # The image token, once for each of the 4 x 4 patches.
NUM_PATCHES = len(IMAGE)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 16, 16)


def prompt(*parts):
    return torch.tensor([[2, *(token for part in parts for token in part)]])


@torch.no_grad()
def logits(model, input_ids, pixel_values=None, **kwargs):
    return model(input_ids=input_ids, pixel_values=pixel_values, **kwargs).logits


TWO_IMAGES = prompt(IMAGE, [5, 6, 7], IMAGE, [8, 9])


def test_the_kth_feature_replaces_the_kth_image_token(model):
    input_ids = torch.tensor([[5, 4, 6, 4], [4, 7, 8, 9]])
    width = model.config.text_config.hidden_size
    image_features = torch.arange(1.0, 5.0)[:, None].expand(4, width).reshape(2, 2, width)  # 1, 2, then 3, 4
    embedded = model.get_input_embeddings()(input_ids)
    for is_image in (model.model.find_image_tokens(input_ids, None), model.model.find_image_tokens(None, embedded)):
        assert torch.equal(is_image, input_ids == 4)
    merged = model.model.merge_image_features(is_image, embedded, image_features)
    assert merged[input_ids == 4][:, 0].tolist() == [1, 2, 3]
    assert torch.equal(merged[input_ids != 4], embedded[input_ids != 4])


def test_a_surplus_feature_gets_a_gradient_of_zero(model):
    image_features = torch.ones(1, NUM_PATCHES, 32, requires_grad=True)
    embedded = model.get_input_embeddings()(prompt([5, 6]))
    model.model.merge_image_features(
        torch.zeros(embedded.shape[:2], dtype=torch.bool), embedded, image_features
    ).sum().backward()
    assert not image_features.grad.any()


def test_image_features_are_the_projected_patches_without_the_class_token(model, pixel_values):
    outputs = model.get_image_features(pixel_values, output_routing=True)
    features = model.model.vision_tower(pixel_values).last_hidden_state
    assert features.shape == (2, 1 + NUM_PATCHES, 32)
    assert torch.equal(outputs.pooler_output, model.model.multi_modal_projector(features[:, 1:]))
    assert outputs.router_probabilities.shape == (2, 2, 1 + NUM_PATCHES, 6)
    assert torch.equal(model(TWO_IMAGES, pixel_values).image_hidden_states, outputs.pooler_output)


def test_all_tokens_of_an_encoder_without_class_token_are_projected(pixel_values):
    model = make_model(vision={"has_class_token": False, "has_pre_layer_norm": False, "has_patch_bias": True})
    features = model.model.vision_tower(pixel_values).last_hidden_state
    assert features.shape == (2, NUM_PATCHES, 32)
    assert torch.equal(
        model.get_image_features(pixel_values).pooler_output, model.model.multi_modal_projector(features)
    )
    assert logits(model, TWO_IMAGES, pixel_values).isfinite().all()


def test_a_head_with_a_bias_adds_it(model, pixel_values, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    biased = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "plain", head_bias=True).eval()
    assert not biased.lm_head.bias.any()
    torch.nn.init.normal_(biased.lm_head.bias)
    expected = logits(model, TWO_IMAGES, pixel_values) + biased.lm_head.bias
    torch.testing.assert_close(logits(biased, TWO_IMAGES, pixel_values), expected)
    biased.save_pretrained(tmp_path / "biased")
    again, report = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "biased", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again.eval(), TWO_IMAGES, pixel_values), logits(biased, TWO_IMAGES, pixel_values))
    # Listed as unexpected: vLLM, which loads the base model, would drop a head that this class says to ignore.
    base, report = HawaiiModel.from_pretrained(tmp_path / "biased", output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"lm_head.weight", "lm_head.bias"} and not report["missing_keys"]


def test_the_order_of_the_images_is_the_order_of_their_tokens(model, pixel_values):
    swapped = logits(model, TWO_IMAGES, pixel_values.flip(0))
    assert (swapped - logits(model, TWO_IMAGES, pixel_values)).abs().max() > 0.1
    # The text before the second image depends only on the first.
    first = prompt(IMAGE, [5, 6, 7])
    torch.testing.assert_close(
        logits(model, TWO_IMAGES, pixel_values)[:, : first.shape[1]], logits(model, first, pixel_values[:1])
    )


def test_text_without_images_gets_the_language_models_logits(model):
    text = prompt([5, 6, 7])
    language_model = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    language_model.model.load_state_dict(model.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(model.lm_head.state_dict())
    assert torch.equal(logits(model, text), logits(language_model, text))


@pytest.mark.parametrize(("num_images", "num_features"), [(1, 16), (3, 48)])
def test_different_numbers_of_image_tokens_and_features_are_refused(model, num_images, num_features):
    pixel_values = torch.zeros(num_images, 3, 16, 16)
    message = rf"32 image tokens in the text but {num_features} image features \({num_images} images of 16 patches\)"
    with pytest.raises(ValueError, match=message):
        model(input_ids=TWO_IMAGES, pixel_values=pixel_values)
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=TWO_IMAGES, pixel_values=pixel_values, max_new_tokens=1)


def test_exactly_one_of_input_ids_and_inputs_embeds_is_required(model):
    embedded = model.get_input_embeddings()(TWO_IMAGES)
    for arguments in ({}, {"input_ids": TWO_IMAGES, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**arguments)


def test_images_go_where_an_embedding_is_that_of_the_image_token(model, pixel_values):
    embedded = model.get_input_embeddings()(TWO_IMAGES)
    expected = model(TWO_IMAGES, pixel_values).logits
    torch.testing.assert_close(model(inputs_embeds=embedded, pixel_values=pixel_values).logits, expected)
    # Soft prompts before the text shift the images.
    soft = torch.cat([torch.randn(1, 3, embedded.shape[-1]), embedded], dim=1)
    features = model.get_image_features(pixel_values).pooler_output.flatten(0, 1)
    merged = soft.clone()
    merged[:, 3:][TWO_IMAGES == 4] = features
    shifted = model(inputs_embeds=soft, pixel_values=pixel_values).logits
    torch.testing.assert_close(shifted, model(inputs_embeds=merged).logits)


def test_another_number_of_image_embeddings_than_features_is_an_error(model, pixel_values):
    embedded = model.get_input_embeddings()(TWO_IMAGES[:, :-10])
    with pytest.raises(ValueError, match=r"image tokens in the text but 32 image features \(2 images"):
        model(inputs_embeds=embedded, pixel_values=pixel_values)


def test_images_without_a_text_are_an_error(model, pixel_values):
    with pytest.raises(ValueError, match="Give either input_ids or inputs_embeds"):
        model(pixel_values=pixel_values)
    with pytest.raises(ValueError, match="pixel_values need input_ids or inputs_embeds"):
        model.generate(pixel_values=pixel_values)


@pytest.mark.parametrize("return_dict", [True, False, None])
def test_return_dict_is_that_of_the_call_or_of_the_configuration(model, pixel_values, return_dict):
    for default in (True, False):
        model.config.return_dict = model.model.config.return_dict = default
        is_dict = default if return_dict is None else return_dict
        options = {} if return_dict is None else {"return_dict": return_dict}
        outputs = model.get_image_features(pixel_values, **options), model(TWO_IMAGES, pixel_values, **options)
        assert [isinstance(output, tuple) for output in outputs] == [not is_dict] * 2


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("is_trained", [False, True])
def test_an_untied_head_is_saved_and_loaded_with_equal_logits(tmp_path, pixel_values, is_trained, is_given):
    model = make_model(text={"tie_word_embeddings": True})
    assert model.lm_head.weight is model.get_input_embeddings().weight
    if is_trained:  # as after PEFT's merge of a trained head, which leaves the configuration as it was
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    else:
        model.config.tie_word_embeddings = False
    expected = logits(model, TWO_IMAGES, pixel_values)
    head, is_tied = model.lm_head.weight, model.config.tie_word_embeddings
    model.save_pretrained(tmp_path, **({"state_dict": model.state_dict()} if is_given else {}))
    assert model.lm_head.weight is head and model.config.tie_word_embeddings is is_tied  # an optimizer may hold it
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["tie_word_embeddings"] is values["text_config"]["tie_word_embeddings"] is False
    again = HawaiiForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, TWO_IMAGES, pixel_values), expected)


def test_a_tied_head_stays_tied(tmp_path, pixel_values):
    model = make_model(text={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    again = HawaiiForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.config.tie_word_embeddings and again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(logits(again, TWO_IMAGES, pixel_values), logits(model, TWO_IMAGES, pixel_values))


def test_a_left_padded_batch_equals_each_sample_alone(model):
    pixel_values = torch.randn(3, 3, 16, 16)
    samples = [(TWO_IMAGES, pixel_values[:2]), (prompt(IMAGE, [5]), pixel_values[2:]), (prompt([9, 8]), None)]
    length = TWO_IMAGES.shape[1]
    input_ids = torch.cat([F.pad(text, (length - text.shape[1], 0)) for text, _ in samples])
    mask = torch.cat([F.pad(torch.ones_like(text), (length - text.shape[1], 0)) for text, _ in samples])
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    together = logits(model, input_ids, pixel_values, attention_mask=mask, position_ids=position_ids)
    alone = torch.cat([logits(model, *sample)[:, -1] for sample in samples])
    torch.testing.assert_close(together[:, -1], alone, rtol=0, atol=1e-4)


def test_the_loss_is_the_mean_cross_entropy_of_the_next_labelled_token(model, pixel_values):
    labels = TWO_IMAGES.clone()
    labels[:, :-2] = -100
    with torch.no_grad():
        outputs = model(input_ids=TWO_IMAGES, pixel_values=pixel_values, labels=labels)
    log_probabilities = outputs.logits[0].log_softmax(dim=-1)
    # The labelled tokens 8 and 9 are the last two; each is predicted at the position before it.
    torch.testing.assert_close(outputs.loss, -(log_probabilities[-3, 8] + log_probabilities[-2, 9]) / 2)


def test_logits_to_keep_are_the_last_ones(model, pixel_values):
    expected = logits(model, TWO_IMAGES, pixel_values)
    torch.testing.assert_close(logits(model, TWO_IMAGES, pixel_values, logits_to_keep=2), expected[:, -2:])


def test_the_tuple_equals_the_output(model, pixel_values):
    expected = logits(model, TWO_IMAGES, pixel_values)
    assert torch.equal(model(TWO_IMAGES, pixel_values, return_dict=False)[0], expected)


def test_sdpa_equals_eager_and_parts_may_differ(model, pixel_values, tmp_path):
    model.save_pretrained(tmp_path)
    expected = logits(model, TWO_IMAGES, pixel_values)
    for vision, text in (("eager", "eager"), ("eager", "sdpa"), ("sdpa", "eager")):
        chosen = {"vision_config": vision, "text_config": text}
        loaded = HawaiiForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=chosen).eval()
        switched = copy.deepcopy(model)
        switched.set_attn_implementation(chosen)
        for other in (loaded, switched):
            assert other.model.vision_tower.config._attn_implementation == vision
            assert other.model.language_model.config._attn_implementation == text
            torch.testing.assert_close(logits(other, TWO_IMAGES, pixel_values), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_weights_accept_float32_images(model, pixel_values):
    scores = logits(model.bfloat16(), TWO_IMAGES, pixel_values)
    assert scores.dtype == torch.bfloat16
    assert scores.isfinite().all()


def test_gradient_checkpointing_gives_the_same_gradients(model, pixel_values):
    plain, checkpointed = model.train(), copy.deepcopy(model).train()
    checkpointed.gradient_checkpointing_enable()
    for student in (plain, checkpointed):
        student(input_ids=TWO_IMAGES, pixel_values=pixel_values, labels=TWO_IMAGES, use_cache=False).loss.backward()
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_the_task_reaches_every_parameter(model):
    model.train()
    for _ in range(4):  # Enough images that each adapter of each layer is chosen somewhere.
        model(input_ids=TWO_IMAGES, pixel_values=torch.randn(2, 3, 16, 16), labels=TWO_IMAGES).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_the_complete_model_compiles_as_one_graph(model, pixel_values):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = logits(model, TWO_IMAGES, pixel_values, use_cache=False)
    torch.testing.assert_close(logits(compiled, TWO_IMAGES, pixel_values, use_cache=False), expected)


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "llama"},
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "gemma3_text", "head_dim": 8, "tie_word_embeddings": True},
        {"model_type": "gpt2", "tie_word_embeddings": True},  # Its embeddings have another name.
    ],
    ids=lambda text: text["model_type"],
)
def test_tensor_names_in_the_file_are_those_of_the_model(tmp_path, pixel_values, text):
    model = make_model(text=text)
    model.save_pretrained(tmp_path)
    loaded, report = HawaiiForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    is_tied = loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert is_tied == text.get("tie_word_embeddings", False)
    names = set(model.state_dict()) - ({"lm_head.weight"} if is_tied else set())
    assert set(load_file(tmp_path / "model.safetensors")) == names
    assert torch.equal(logits(loaded.eval(), TWO_IMAGES, pixel_values), logits(model, TWO_IMAGES, pixel_values))


def test_the_base_model_loads_from_the_complete_model(model, pixel_values, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, report = HawaiiModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        hidden_states = loaded.eval()(TWO_IMAGES, pixel_values).last_hidden_state
        assert torch.equal(model.lm_head(hidden_states), logits(model, TWO_IMAGES, pixel_values))


def test_new_tokens_may_be_added(model, pixel_values):
    model.resize_token_embeddings(80, mean_resizing=False)
    assert model.config.text_config.vocab_size == 80
    assert logits(model, TWO_IMAGES, pixel_values, labels=TWO_IMAGES).shape[-1] == 80


def test_a_new_model_is_fully_initialised():
    model = HawaiiForConditionalGeneration(make_config()).eval()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert logits(model, TWO_IMAGES, torch.randn(2, 3, 16, 16)).isfinite().all()


def test_a_class_of_a_notebook_is_saved_with_the_code(tmp_path):
    model = make_model()
    model.__class__ = type("Mine", (HawaiiForConditionalGeneration,), {"__module__": "__main__"})
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_hawaii.py").is_file() and (tmp_path / "vision_hawaii.py").is_file()
