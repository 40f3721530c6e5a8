"""A student that starts from a LLaVA gives the same answers."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlavaForConditionalGeneration

from hawaii import HawaiiForConditionalGeneration
from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.tiny.llava import (
    IMAGE_TOKEN,
    SIGLIP,
    make_llava,
    randomize,
    save_as_transformers_4,
    save_clip,
    save_original,
)


IMAGE = [IMAGE_TOKEN] * 16
TEXTS = {
    "llama": {},
    "llama 3's scaling": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "gemma 3, two types of layers": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "phi 3": {"model_type": "phi3"},
    "opt": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 64, "num_hidden_layers": 2},
    "gpt2": {"model_type": "gpt2", "n_positions": 256},
}


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 16, 16)


def prompt(*parts):
    return torch.tensor([[1, *(token for part in parts for token in part)]])


TWO_IMAGES = prompt([5, 6], IMAGE, [7, 8, 9], IMAGE, [10, 11, 12])


@torch.no_grad()
def logits(model, input_ids, pixel_values):
    return model(input_ids=input_ids, pixel_values=pixel_values).logits


def buffers(model):
    return {name: buffer for name, buffer in model.named_buffers() if "vision_tower" not in name}


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return folder


def change_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_logits_equal_the_llavas_for_each_language_model(tmp_path, pixel_values, text, num_files):
    saved = make_llava(text=TEXTS[text])
    if num_files == 1:
        saved.save_pretrained(tmp_path)
    else:
        saved.save_pretrained(tmp_path, save_original_format=False, max_shard_size="120KB")
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    student, unused = convert_llava(tmp_path)
    expected = logits(llava, TWO_IMAGES, pixel_values)
    torch.testing.assert_close(logits(student, TWO_IMAGES, pixel_values), expected, rtol=1e-6, atol=1e-5)
    # Buffers that are computed and never saved, such as rotary frequencies.
    expected_buffers = buffers(llava)
    assert expected_buffers.keys() == buffers(student).keys()
    for name, buffer in buffers(student).items():
        assert torch.equal(buffer, expected_buffers[name]), name
    assert not student.training
    assert not any("vision_tower" not in name for name in unused)
    options = {"max_new_tokens": 8, "do_sample": False, "pixel_values": pixel_values}
    assert torch.equal(student.generate(TWO_IMAGES, **options), llava.generate(TWO_IMAGES, **options))


def test_logits_in_bfloat16_are_bitwise_equal_to_the_llavas(tmp_path, pixel_values):
    make_llava().to(torch.bfloat16).save_pretrained(tmp_path)
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype="auto").eval()
    student = convert_llava(tmp_path).model
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.config.dtype == student.config.text_config.dtype == torch.bfloat16
    pixel_values = pixel_values.bfloat16()
    assert torch.equal(logits(student, TWO_IMAGES, pixel_values), logits(llava, TWO_IMAGES, pixel_values))
    assert convert_llava(tmp_path, dtype=torch.float32).model.dtype == torch.float32


@pytest.mark.parametrize("num_files", [1, 2])
def test_the_tensor_names_of_transformers_4_convert_the_same(tmp_path, pixel_values, num_files):
    llava = make_llava(vision_feature_layer=-3, projector_hidden_act="relu", multimodal_projector_bias=False)
    student, unused = convert_llava(save_as_transformers_4(llava, tmp_path, num_files))
    assert len(student.model.vision_tower.layers) == 2
    assert student.config.image_token_index == IMAGE_TOKEN
    expected = logits(llava, TWO_IMAGES, pixel_values)
    torch.testing.assert_close(logits(student, TWO_IMAGES, pixel_values), expected, rtol=1e-6, atol=1e-5)
    layers = {f"vision_tower.vision_model.encoder.layers.{layer}." for layer in (2, 3)}
    pooling = "vision_tower.vision_model.post_layernorm."
    assert all(name.startswith((*layers, pooling)) for name in unused)
    assert len(unused) == 2 * 16 + 2


@pytest.mark.parametrize(("layer", "num_layers"), [(-1, 4), (4, 4), (1, 1)])
def test_the_feature_layer_may_be_any_counted_from_either_end(tmp_path, pixel_values, layer, num_layers):
    llava = make_llava(vision_feature_layer=layer)
    llava.save_pretrained(tmp_path)
    student = convert_llava(tmp_path).model
    assert len(student.model.vision_tower.layers) == num_layers
    expected = logits(llava, TWO_IMAGES, pixel_values)
    torch.testing.assert_close(logits(student, TWO_IMAGES, pixel_values), expected, rtol=1e-6, atol=1e-5)


def test_a_llava_with_a_siglip_converts(tmp_path):
    llava = make_llava(vision=SIGLIP, vision_feature_layer=-1)
    llava.save_pretrained(tmp_path)
    student = convert_llava(tmp_path).model
    assert student.config.vision_feature_select_strategy == "full"
    pixel_values = torch.randn(2, 3, 18, 18)
    expected = logits(llava, TWO_IMAGES, pixel_values)
    torch.testing.assert_close(logits(student, TWO_IMAGES, pixel_values), expected, rtol=1e-6, atol=1e-5)


def test_the_bias_of_a_head_is_converted(tmp_path, pixel_values):
    # In transformers 4 a LLaVA contains a language model with its head; in 5 the LLaVA has the head, without a bias.
    text = {"model_type": "phi"}
    llava = make_llava(text=text)
    phi = randomize(AutoModelForCausalLM.from_config(llava.config.text_config))
    llava.config.save_pretrained(tmp_path)
    tensors = {
        f"vision_tower.vision_model.{name}": tensor for name, tensor in llava.model.vision_tower.state_dict().items()
    }
    tensors |= {
        f"multi_modal_projector.{name}": tensor
        for name, tensor in llava.model.multi_modal_projector.state_dict().items()
    }
    tensors |= {f"language_model.{name}": tensor for name, tensor in phi.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    student = convert_llava(tmp_path).model
    assert student.config.head_bias
    text_alone = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(logits(student, text_alone, None), logits(phi, text_alone, None))


@pytest.mark.parametrize("has_tower", [False, True])
@pytest.mark.parametrize("is_named", [False, True])
def test_llavas_own_form_gives_the_same_logits_and_gets_an_image_token(tmp_path, pixel_values, has_tower, is_named):
    llava = make_llava()
    tower = save_clip(tmp_path / "clip", None if has_tower else llava)
    named = "/there/is/none" if is_named else tower
    folder = save_original(llava, tmp_path / "llava", named, has_tower=has_tower, num_files=2)
    student, unused = convert_llava(folder, vision_tower=tower if is_named else None)
    assert (student.config.image_token_index, student.config.text_config.vocab_size) == (40, 64)
    # The same text with the new image token; in transformers' LLaVA the image token is part of the vocabulary.
    own = torch.where(TWO_IMAGES == IMAGE_TOKEN, 40, TWO_IMAGES)
    expected = logits(llava, TWO_IMAGES, pixel_values)
    found = logits(student, own, pixel_values)
    torch.testing.assert_close(found[..., :40], expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found[..., 40:], expected.mean(-1, keepdim=True).expand(-1, -1, 24))
    embeddings = student.get_input_embeddings().weight
    torch.testing.assert_close(embeddings[40:], embeddings[:40].mean(0).expand(24, -1))
    assert all(("vision_tower" in name) for name in unused)
    assert bool(unused) == has_tower
    assert student.num_parameters() == sum(p.numel() for p in llava.parameters()) + 2 * 24 * 64 - sum(
        p.numel()
        for module in (llava.model.vision_tower.encoder.layers[-1], llava.model.vision_tower.post_layernorm)
        for p in module.parameters()
    )


def test_only_language_model_fields_of_llavas_own_configuration_are_kept(tmp_path):
    text = {"rms_norm_eps": 1e-3, "num_key_value_heads": 2}
    folder = save_original(
        make_llava(text=text), tmp_path / "llava", save_clip(tmp_path / "clip"), rope_theta=5e3, freeze_mm_mlp=False
    )
    config = convert_llava(folder).model.config.text_config
    assert (config.rms_norm_eps, config.num_key_value_heads) == (1e-3, 2)
    assert config.rope_parameters["rope_theta"] == 5e3
    assert not [name for name in config.to_dict() if "mm_" in name or name == "image_aspect_ratio"]


def test_a_tower_of_another_type_is_converted_to_the_language_models(tmp_path):
    folder = save_original(make_llava().half(), tmp_path / "llava", save_clip(tmp_path / "clip"))
    assert {parameter.dtype for parameter in convert_llava(folder).model.parameters()} == {torch.float16}


def test_adapters_add_nothing_yet(tmp_path, pixel_values):
    llava = make_llava()
    llava.save_pretrained(tmp_path)
    student = convert_llava(tmp_path, num_teacher_adapters=2, num_general_adapters=1, lora_rank=2).model
    assert student.model.vision_tower.layers[0].feed_forward.adapters.down.shape == (3, 2, 64)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    expected = logits(convert_llava(tmp_path).model, TWO_IMAGES, pixel_values)
    assert torch.equal(logits(student, TWO_IMAGES, pixel_values), expected)


def test_a_converted_model_saves_and_loads(tmp_path, pixel_values):
    save_as_transformers_4(make_llava(text={"tie_word_embeddings": True}), tmp_path)
    student, unused = convert_llava(tmp_path)
    assert "language_model.lm_head.weight" in unused  # a copy of the embeddings
    student.save_pretrained(tmp_path / "student")
    loaded, report = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded.eval(), TWO_IMAGES, pixel_values), logits(student, TWO_IMAGES, pixel_values))


def test_a_head_that_only_the_outer_configuration_ties_is_tied(tmp_path, pixel_values):
    save_as_transformers_4(make_llava(text={"tie_word_embeddings": True}), tmp_path)
    change_config(tmp_path, lambda values: values["text_config"].pop("tie_word_embeddings"))
    change_tensors(tmp_path, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    student = convert_llava(tmp_path).model
    assert student.lm_head.weight is student.get_input_embeddings().weight
    expected = logits(llava, TWO_IMAGES, pixel_values)
    torch.testing.assert_close(logits(student, TWO_IMAGES, pixel_values), expected, rtol=1e-6, atol=1e-5)


def test_a_tied_head_that_differs_from_the_embeddings_is_refused(tmp_path):
    save_as_transformers_4(make_llava(text={"tie_word_embeddings": True}), tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors["language_model.lm_head.weight"][39].add_(1))
    with pytest.raises(UserError, match=r"The language_model\.lm_head\.weight of .* differs from the embeddings"):
        convert_llava(tmp_path)


def test_an_image_token_beyond_the_vocabulary_gets_a_row(tmp_path, pixel_values):
    llava = make_llava()
    llava.config.image_token_index = 70
    llava.save_pretrained(tmp_path)
    student = convert_llava(tmp_path).model
    assert student.get_input_embeddings().num_embeddings == student.config.text_config.vocab_size == 128
    found = logits(student, torch.where(TWO_IMAGES == IMAGE_TOKEN, 70, TWO_IMAGES), pixel_values)
    llava.config.image_token_index = IMAGE_TOKEN
    torch.testing.assert_close(found[..., :40], logits(llava, TWO_IMAGES, pixel_values), rtol=1e-6, atol=1e-5)


def test_token_ids_are_kept_and_sampling_options_are_not(tmp_path):
    make_llava().save_pretrained(tmp_path)
    values = {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": 3, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    student = convert_llava(tmp_path).model
    kept = GenerationConfig(eos_token_id=[2, 7], bos_token_id=1, pad_token_id=3)
    assert student.generation_config.to_diff_dict() == kept.to_diff_dict()
    student.save_pretrained(tmp_path / "student")


def test_a_damaged_generation_config_is_named(tmp_path):
    make_llava().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json is damaged"):
        convert_llava(tmp_path)


def test_a_converted_model_does_not_share_memory_with_the_files(tmp_path, pixel_values):
    save_as_transformers_4(make_llava(), tmp_path)
    student = convert_llava(tmp_path).model
    before = copy.deepcopy(student.state_dict())
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))  # in place: a view of the file would change
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("language_model.model.layers.1.mlp.up_proj.weight"),
            r"lacks: model\.language_model\.layers\.1\.mlp\.up_proj\.weight",
        ),
        (
            lambda tensors: tensors.pop("vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"),
            r"lacks: model\.vision_tower\.layers\.0\.feed_forward\.fc1\.bias",
        ),
        (
            lambda tensors: tensors.update({"image_newline": torch.zeros(64)}),
            r"has tensors that a LLaVA with its config\.json does not have: image_newline",
        ),
        (
            lambda tensors: tensors.update({"multi_modal_projector.linear_1.bias": torch.zeros(63)}),
            r"of unexpected shapes: multi_modal_projector\.linear_1\.bias \[63\] instead of \[64\]",
        ),
        (
            lambda tensors: tensors.update(
                {"language_model.lm_head.weight": torch.zeros(40, 64, dtype=torch.int8)},
            ),
            r"contains language_model\.lm_head\.weight as I8: it is quantized",
        ),
    ],
    ids=["text", "encoder", "unknown", "shape", "quantized"],
)
def test_an_invalid_tensor_is_named(tmp_path, change, message):
    folder = change_tensors(save_as_transformers_4(make_llava(), tmp_path), change)
    with pytest.raises(UserError, match=message):
        convert_llava(folder)


def test_saved_rotary_frequencies_are_listed_as_unused(tmp_path, pixel_values):
    llava = make_llava()
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = change_tensors(
        save_as_transformers_4(llava, tmp_path), lambda tensors: tensors.update({name: torch.zeros(16)})
    )
    student, unused = convert_llava(folder)
    assert name in unused
    expected = logits(llava, TWO_IMAGES, pixel_values)
    torch.testing.assert_close(logits(student, TWO_IMAGES, pixel_values), expected, rtol=1e-6, atol=1e-5)


def test_a_move_kd_is_refused(tmp_path):
    folder = save_original(
        make_llava(), tmp_path / "llava", save_clip(tmp_path / "clip"), model_type="move_llava_llama"
    )
    with pytest.raises(UserError, match="is a MoVE-KD, .* convert it as move_kd"):
        convert_llava(folder)
