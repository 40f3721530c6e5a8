"""A student is put together from parts that stay what they were, and learns in the parts that are named."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.tiny import VISION, fill, make_tokenizer
from hawaii.tests.tiny_training import TEXT, make_module, save_image_processor, save_tokenizer
from hawaii.training.arguments import DataArguments, ModelArguments
from hawaii.training.students import adapt_processor, build_student, load_tokenizer, set_trainable


CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}

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
    """A CLIP whose images are normalised in a way of its own."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    fill(CLIPVisionModel(CLIPVisionConfig(**CLIP))).save_pretrained(folder)
    save_image_processor(folder, 16, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    return str(folder)


def save_language_model(folder, tokenizer, tie_word_embeddings=False, dtype=torch.float32):
    """A language model that knows nothing of images, with its tokenizer and a way of generating."""
    text = {name: value for name, value in TEXT.items() if name != "model_type"}
    config = LlamaConfig(**text, vocab_size=len(tokenizer), tie_word_embeddings=tie_word_embeddings)
    model = fill(LlamaForCausalLM(config)).to(dtype)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def text_tokenizer():
    """Without an image token."""
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer.to_str().replace("<image>", "picture")
    tokenizer = type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(backend), eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = load_chat_template("vicuna_v1")
    return tokenizer


def data_args(**kwargs):
    return DataArguments(**{"data_path": "x", "image_folder": "x", **kwargs})


def from_scratch(tokenizer_folder, **kwargs):
    fields = {"vision_config": VISION, "text_config": TEXT, "tokenizer": tokenizer_folder, **kwargs}
    return build_student(ModelArguments(**fields), data_args(), num_teachers=2)


def test_a_student_from_scratch_has_an_adapter_for_each_teacher_and_a_row_for_each_word(tokenizer_folder):
    student, processor = from_scratch(tokenizer_folder)
    vision, text = student.config.vision_config, student.config.text_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters) == (2, 3)
    assert text.vocab_size == len(processor.tokenizer) == student.get_input_embeddings().num_embeddings
    assert student.config.image_token_id == processor.image_token_id
    assert text.eos_token_id == processor.tokenizer.eos_token_id


def test_nothing_is_left_empty(tokenizer_folder):
    student, _ = from_scratch(tokenizer_folder)
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        assert tensor.device.type == "cpu" and tensor.isfinite().all(), name


def test_the_projector_starts_as_linear_layers_do(tokenizer_folder):
    projector = from_scratch(tokenizer_folder)[0].model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        bound = layer.in_features**-0.5
        assert bound / 2 < layer.weight.abs().max() <= bound


def test_the_parts_are_the_checkpoints(clip_folder, tmp_path):
    folder = save_language_model(tmp_path, text_tokenizer())
    student, _ = build_student(ModelArguments(vision_tower=clip_folder, language_model=folder), data_args(), 2)
    clip = CLIPVisionModel.from_pretrained(clip_folder).eval()
    pixel_values = torch.randn(2, 3, 16, 16)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        features = student.model.vision_tower(pixel_values).last_hidden_state
        torch.testing.assert_close(features, clip(pixel_values, output_hidden_states=True).hidden_states[-2])
        language_model = AutoModelForCausalLM.from_pretrained(folder)
        # The image token's row is new.
        logits = student.eval()(ids).logits[..., : language_model.config.vocab_size]
        torch.testing.assert_close(logits, language_model.eval()(ids).logits)
    assert student.generation_config.max_new_tokens == 7


def test_a_language_model_gets_a_token_for_images(clip_folder, tmp_path):
    tokenizer = text_tokenizer()
    folder = save_language_model(tmp_path, tokenizer)
    student, processor = build_student(ModelArguments(vision_tower=clip_folder, language_model=folder), data_args(), 2)
    assert processor.image_token_id == len(tokenizer)
    assert student.get_input_embeddings().num_embeddings == student.lm_head.out_features == len(tokenizer) + 1
    assert student.config.text_config.vocab_size == len(tokenizer) + 1


def test_the_processor_normalises_as_the_clip_did(clip_folder, tokenizer_folder):
    args = ModelArguments(vision_tower=clip_folder, text_config=TEXT, tokenizer=tokenizer_folder)
    _, processor = build_student(args, data_args(image_aspect_ratio="crop"), 2)
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_processor.image_std) == [0.4, 0.5, 0.6]
    assert processor.num_image_tokens == 16
    assert processor.image_aspect_ratio == "crop"


def test_fields_of_the_adapters_may_differ_from_the_defaults(clip_folder, tokenizer_folder):
    args = ModelArguments(
        vision_tower=clip_folder, vision_config={"lora_rank": 2}, text_config=TEXT, tokenizer=tokenizer_folder
    )
    student, _ = build_student(args, data_args(), 3)
    assert student.model.vision_tower.layers[0].feed_forward.adapters.lora_A.shape == (6, 2, 32)


@pytest.mark.parametrize(
    "config", [PhiConfig(**SIZES), Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.1)]
)
def test_a_head_that_is_more_than_a_matrix_is_refused(config, clip_folder, tmp_path):
    fill(AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    text_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"The head of (Phi|Gemma2)ForCausalLM does more than multiply by one matrix"):
        build_student(ModelArguments(vision_tower=clip_folder, language_model=str(tmp_path)), data_args(), 2)


@pytest.mark.parametrize("text", [{"model_type": "phi"}, {"model_type": "gemma2", "head_dim": 8}], ids=str)
def test_a_fresh_head_is_refused_although_it_does_no_more_yet(tokenizer_folder, text):
    fields = {**{name: value for name, value in SIZES.items() if name != "vocab_size"}, **text}
    with pytest.raises(ValueError, match="does more than multiply by one matrix"):
        from_scratch(tokenizer_folder, text_config=fields)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_student_is_saved_and_loaded_whole(clip_folder, tmp_path, tie_word_embeddings, dtype):
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


def test_the_student_has_the_precision_that_is_named(tokenizer_folder):
    student, _ = from_scratch(tokenizer_folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.config.dtype == torch.bfloat16


def test_a_stage_that_names_no_template_has_the_tokenizers_own(tokenizer_folder, tmp_path):
    model_args = ModelArguments(vision_config=VISION, text_config=TEXT, tokenizer=tokenizer_folder)
    own = AutoTokenizer.from_pretrained(tokenizer_folder).chat_template
    _, processor = build_student(model_args, data_args(chat_template="plain"), 2)
    assert processor.chat_template == load_chat_template("plain")
    processor.save_pretrained(tmp_path)
    later = adapt_processor(HawaiiProcessor.from_pretrained(tmp_path), model_args, data_args())
    assert later.chat_template == own == load_chat_template("vicuna_v1")


def test_a_tokenizer_without_a_template_is_an_error(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="no chat template of its own; name one with chat_template, such as vicuna_v1"
    ):
        from_scratch(str(tmp_path))


def plain_word_tokenizer():
    """Its `<image>` is a word like any other: two of them side by side are an unknown word."""
    backend = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "<image>": 2, "red": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def test_an_image_token_that_is_a_plain_word_becomes_one_token_wherever_it_stands(tmp_path):
    tokenizer = plain_word_tokenizer()
    assert tokenizer("<image><image>red")["input_ids"] == [0]
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelArguments(tokenizer=str(tmp_path)))
    assert loaded("<image><image>red")["input_ids"] == [2, 2, 3]
    assert len(loaded) == len(tokenizer)


def test_a_tokenizer_that_does_not_know_where_its_tokens_stand_is_an_error(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(ByT5Tokenizer\) is written in Python.* one that has a tokenizer\.json"):
        load_tokenizer(ModelArguments(tokenizer=str(tmp_path)))


def test_a_tokenizer_that_cannot_pad_is_an_error(tmp_path):
    tokenizer = plain_word_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has neither a padding token nor an end token"):
        load_tokenizer(ModelArguments(tokenizer=str(tmp_path)))


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("vision_config", "names neither a vision_tower nor a vision_config"),
        ("text_config", "names neither a language_model nor a text_config"),
        ("tokenizer", "names no tokenizer and no language_model that would bring one"),
    ],
)
def test_a_part_that_is_not_named_is_an_error(tokenizer_folder, missing, problem):
    with pytest.raises(ValueError, match=problem):
        from_scratch(tokenizer_folder, **{missing: None})


PARTS = {
    "projector": "model.multi_modal_projector.linear_1.weight",
    "adapters": "model.vision_tower.layers.0.feed_forward.adapters.lora_A",
    "routers": "model.vision_tower.layers.1.feed_forward.routing.general_router.hidden.bias",
    "vision_tower": "model.vision_tower.layers.0.feed_forward.fc1.weight",
    "language_model": "model.language_model.embed_tokens.weight",
}


@pytest.mark.parametrize(("placement", "adapters"), [("ffn", "adapters"), ("linear", "fc1_adapters")])
@pytest.mark.parametrize("part", PARTS)
def test_the_named_part_alone_learns(part, placement, adapters):
    student = make_module(vision={"adapter_placement": placement}).student
    set_trainable(student, [part])
    learns = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    names = {part: name.replace(".adapters.", f".{adapters}.") for part, name in PARTS.items()}
    assert {name for name in names.values() if name in learns} == {names[part]}


def test_every_parameter_is_of_one_part():
    student = make_module().student
    counts = {name: 0 for name, _ in student.named_parameters()}
    for part in PARTS:
        set_trainable(student, [part])
        for name, parameter in student.named_parameters():
            counts[name] += parameter.requires_grad
    assert set(counts.values()) == {1}


def test_parts_of_the_encoder():
    student = make_module().student
    names = {}
    for part in ("adapters", "routers", "vision_tower"):
        set_trainable(student, [part])
        names[part] = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in names["adapters"]} == {"lora_A", "lora_B"}
    assert len(names["adapters"]) == 2 * 2 and len(names["routers"]) == 2 * 2 * 4
    assert all("router" in name for name in names["routers"])
    assert all(name.startswith("model.vision_tower.") for name in names["vision_tower"])


def test_the_head_learns_with_the_language_model():
    student = make_module().student
    set_trainable(student, ["language_model"])
    assert student.lm_head.weight.requires_grad
    set_trainable(student, ["projector"])
    assert not student.lm_head.weight.requires_grad
