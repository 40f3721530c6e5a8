"""A student is built from parts that keep their weights, and only its named parts are trained."""

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import VISION, fill, make_tokenizer
from hawaii.tests.tiny.students import (
    build_from_scratch,
    data_args,
    save_clip_folder,
    save_llava,
    text_tokenizer,
)
from hawaii.tests.tiny.training import (
    TEXT,
    make_image,
    make_module,
    save_tokenizer,
    write_recipe,
)
from hawaii.training.recipes.arguments import ModelArguments
from hawaii.training.students.student import build_student
from hawaii.training.students.trainable import set_trainable
from hawaii.training.train import train


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip_folder(tmp_path_factory.mktemp("clip"))


def save_language_model(folder, tokenizer, tie_word_embeddings=False, dtype=torch.float32):
    """Saves a language model for text alone, with its tokenizer and a generation config."""
    text = {name: value for name, value in TEXT.items() if name != "model_type"}
    config = LlamaConfig(**text, vocab_size=len(tokenizer), tie_word_embeddings=tie_word_embeddings)
    model = fill(LlamaForCausalLM(config)).to(dtype)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("owner", ["config", "generation_config"])
def test_a_student_generates_with_a_cache_whatever_its_language_model_was_saved_with(clip_folder, tmp_path, owner):
    # `Trainer` turns it off in the model that it trains.
    folder = save_language_model(tmp_path / "language_model", text_tokenizer())
    model = AutoModelForCausalLM.from_pretrained(folder)
    getattr(model, owner).use_cache = False
    model.save_pretrained(folder)
    student, _ = build_student(ModelArguments(vision_tower=clip_folder, language_model=folder), data_args(), 2)
    student.save_pretrained(tmp_path / "student")
    loaded = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert loaded.config.text_config.use_cache and loaded.generation_config.use_cache


def test_a_new_student_has_an_adapter_for_each_teacher_and_an_embedding_for_each_token(
    tokenizer_folder,
):
    student, processor = build_from_scratch(tokenizer_folder)
    vision, text = student.config.vision_config, student.config.text_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters) == (2, 3)
    assert text.vocab_size == len(processor.tokenizer) == student.get_input_embeddings().num_embeddings
    assert student.config.image_token_id == processor.image_token_id
    assert text.eos_token_id == processor.tokenizer.eos_token_id


def test_every_tensor_is_initialised(tokenizer_folder):
    student, _ = build_from_scratch(tokenizer_folder)
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        assert tensor.device.type == "cpu" and tensor.isfinite().all(), name


def test_the_projector_is_initialised_like_linear_layers(tokenizer_folder):
    projector = build_from_scratch(tokenizer_folder)[0].model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        bound = layer.in_features**-0.5
        assert bound / 2 < layer.weight.abs().max() <= bound


def test_the_parts_have_the_checkpoints_weights(clip_folder, tmp_path):
    folder = save_language_model(tmp_path, text_tokenizer())
    student, _ = build_student(ModelArguments(vision_tower=clip_folder, language_model=folder), data_args(), 2)
    clip = CLIPVisionModel.from_pretrained(clip_folder).eval()
    pixel_values = torch.randn(2, 3, 16, 16)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        features = student.model.vision_tower(pixel_values).last_hidden_state
        torch.testing.assert_close(features, clip(pixel_values, output_hidden_states=True).hidden_states[-2])
        language_model = AutoModelForCausalLM.from_pretrained(folder)
        # The image token's embedding is new.
        logits = student.eval()(ids).logits[..., : language_model.config.vocab_size]
        torch.testing.assert_close(logits, language_model.eval()(ids).logits)
    assert student.generation_config.max_new_tokens == 7


def test_a_language_model_gets_an_image_token(clip_folder, tmp_path):
    tokenizer = text_tokenizer()
    folder = save_language_model(tmp_path, tokenizer)
    student, processor = build_student(ModelArguments(vision_tower=clip_folder, language_model=folder), data_args(), 2)
    assert processor.image_token_id == len(tokenizer)
    assert len(tokenizer) + 1 < 64  # the next multiple of 64
    assert student.get_input_embeddings().num_embeddings == student.lm_head.out_features == 64
    assert student.config.text_config.vocab_size == 64


def test_fields_of_the_adapters_may_differ_from_the_defaults(clip_folder, tokenizer_folder):
    args = ModelArguments(
        vision_tower=clip_folder, vision_config={"lora_rank": 2}, text_config=TEXT, tokenizer=tokenizer_folder
    )
    student, _ = build_student(args, data_args(), 3)
    assert student.model.vision_tower.layers[0].feed_forward.adapters.down.shape == (6, 2, 32)


CAPPED = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.1)
SCALED = GraniteConfig(**SIZES, logits_scaling=2.0)


@pytest.mark.parametrize("config", [CAPPED, SCALED, CohereConfig(**SIZES)], ids=lambda config: config.model_type)
def test_a_head_that_scales_or_caps_scores_is_refused(config, clip_folder, tmp_path):
    fill(AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    text_tokenizer().save_pretrained(tmp_path)
    problem = r"The head of (Gemma2|Granite|Cohere)ForCausalLM does more than multiply by one matrix and add a bias"
    with pytest.raises(ValueError, match=problem):
        build_student(ModelArguments(vision_tower=clip_folder, language_model=str(tmp_path)), data_args(), 2)


def test_a_head_with_a_cap_is_refused_even_with_random_weights(tokenizer_folder):
    fields = {**{name: value for name, value in SIZES.items() if name != "vocab_size"}, "model_type": "gemma2"}
    with pytest.raises(ValueError, match="does more than multiply by one matrix"):
        build_from_scratch(tokenizer_folder, text_config={**fields, "head_dim": 8})


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_student_is_saved_and_loaded_completely(clip_folder, tmp_path, tie_word_embeddings, dtype):
    folder = save_language_model(tmp_path / "text", text_tokenizer(), tie_word_embeddings, dtype)
    student, processor = build_student(ModelArguments(vision_tower=clip_folder, language_model=folder), data_args(), 2)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert (student.lm_head.weight is student.get_input_embeddings().weight) == tie_word_embeddings
    student.eval().save_pretrained(tmp_path / "student")
    loaded, report = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    image = processor.image_token_id
    ids = torch.tensor([[5, *[image] * 16, 6, 7]])
    pixel_values = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, pixel_values).logits, student(ids, pixel_values).logits)


def test_the_student_has_the_given_precision(tokenizer_folder):
    student, _ = build_from_scratch(tokenizer_folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.config.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("vision_config", "there is no encoder; name a vision_tower, a vision_config or a llava"),
        ("text_config", "there is a tokenizer but no language model; name a language_model or a text_config"),
        ("tokenizer", "there is no tokenizer for the language model of text_config; name a tokenizer"),
    ],
)
def test_a_missing_part_is_an_error(tokenizer_folder, missing, problem):
    with pytest.raises(ValueError, match=problem):
        build_from_scratch(tokenizer_folder, **{missing: None})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"text_config": {"model_type": "lama"}}, "A language model cannot be built from text_config: .*lama"),
        ({"text_config": {**TEXT, "num_attention_heads": 5}}, "A language model cannot be built from text_config: "),
        ({"vision_config": {**VISION, "adapter_placement": "mlp"}}, "vision_config: adapter_placement is 'mlp'"),
    ],
)
def test_a_wrong_configuration_is_an_error_of_the_user(tokenizer_folder, fields, problem):
    with pytest.raises(UserError, match=problem):
        build_from_scratch(tokenizer_folder, **fields)


@pytest.mark.parametrize("is_original", [False, True])
@torch.no_grad()
def test_a_student_from_a_llava_has_its_scores(tmp_path, is_original):
    llava, folder = save_llava(tmp_path / "from", is_original)
    args = ModelArguments(llava=folder, vision_config={"lora_rank": 2})
    student, processor = build_student(args, data_args(chat_template="vicuna_v1"), 2)
    vision = student.config.vision_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters, vision.lora_rank) == (2, 3, 2)
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    inputs = processor(images=make_image(0), text="what color is <image> ?", return_tensors="pt")
    # LLaVA's original format has no token for images: any word can replace it.
    llava.config.image_token_index = 7 if is_original else processor.image_token_id
    llava_ids = inputs["input_ids"].masked_fill(
        inputs["input_ids"] == processor.image_token_id, llava.config.image_token_index
    )
    expected = llava(input_ids=llava_ids, pixel_values=inputs["pixel_values"]).logits
    torch.testing.assert_close(student(**inputs).logits[..., : expected.shape[-1]], expected, rtol=1e-4, atol=1e-4)


def test_a_llava_gets_more_embeddings_if_the_tokenizer_has_more_tokens(tmp_path):
    llava, folder = save_llava(tmp_path / "from")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "more")
    args = ModelArguments(llava=folder, tokenizer=str(tmp_path / "more"))
    student, _ = build_student(args, data_args(chat_template="vicuna_v1"), 2)
    old = llava.config.text_config.vocab_size
    assert old < len(tokenizer) <= student.config.text_config.vocab_size == student.lm_head.out_features == 64
    torch.testing.assert_close(student.lm_head.weight[:old], llava.lm_head.weight)


@torch.no_grad()
def test_a_recipe_from_a_llava_with_learning_rate_0_publishes_its_scores(tmp_path, teacher_folders):
    llava, folder = save_llava(tmp_path / "from")
    path = write_recipe(tmp_path, teacher_folders, llava=folder, learning_rate=0.0, max_steps=1)
    recipe = yaml.safe_load(path.read_text())
    for key in ("text_config", "vision_config", "tokenizer"):
        del recipe[key]
    recipe["stages"]["finetune"]["chat_template"] = "vicuna_v1"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    with torch.enable_grad():
        train(str(path))
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "run" / "hub").eval()
    processor = HawaiiProcessor.from_pretrained(tmp_path / "run" / "hub")
    assert student.config.vision_config.num_teacher_adapters == len(teacher_folders)
    inputs = processor(images=make_image(0), text="what color is <image> ?", return_tensors="pt")
    torch.testing.assert_close(student(**inputs).logits, llava(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["vision_tower", "language_model", "text_config"])
def test_a_llava_and_one_of_its_parts_is_an_error(part):
    with pytest.raises(
        UserError, match=f"llava and {part} are both given, but a llava contains all parts; leave one out"
    ):
        ModelArguments(llava="x", **{part: {} if part == "text_config" else "y"})


PARAMETERS = {
    "projector": "model.multi_modal_projector.linear_1.weight",
    "adapters": "model.vision_tower.layers.0.feed_forward.adapters.down",
    "routers": "model.vision_tower.layers.1.feed_forward.routing.general_router.hidden.bias",
    "vision_tower": "model.vision_tower.layers.0.feed_forward.fc1.weight",
    "language_model": "model.language_model.embed_tokens.weight",
}


@pytest.mark.parametrize(("placement", "adapters"), [("ffn", "adapters"), ("linear", "fc1_adapters")])
@pytest.mark.parametrize("part", PARAMETERS)
def test_only_the_named_part_is_trainable(part, placement, adapters):
    student = make_module(vision={"adapter_placement": placement}).student
    set_trainable(student, [part])
    trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    names = {part: name.replace(".adapters.", f".{adapters}.") for part, name in PARAMETERS.items()}
    assert {name for name in names.values() if name in trainable} == {names[part]}


def test_every_parameter_belongs_to_one_part():
    student = make_module().student
    counts = {name: 0 for name, _ in student.named_parameters()}
    for part in PARAMETERS:
        set_trainable(student, [part])
        for name, parameter in student.named_parameters():
            counts[name] += parameter.requires_grad
    assert set(counts.values()) == {1}


def test_the_parts_of_the_encoder_have_the_expected_parameters():
    student = make_module().student
    names = {}
    for part in ("adapters", "routers", "vision_tower"):
        set_trainable(student, [part])
        names[part] = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in names["adapters"]} == {"down", "up"}
    assert len(names["adapters"]) == 2 * 2 and len(names["routers"]) == 2 * 2 * 4
    assert all("router" in name for name in names["routers"])
    assert all(name.startswith("model.vision_tower.") for name in names["vision_tower"])


def test_the_head_is_trainable_with_the_language_model():
    student = make_module().student
    set_trainable(student, ["language_model"])
    assert student.lm_head.weight.requires_grad
    set_trainable(student, ["projector"])
    assert not student.lm_head.weight.requires_grad
