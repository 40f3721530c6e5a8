"""A student's processor uses the image processor, tokenizer and chat template of its parts."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hawaii import HawaiiProcessor
from hawaii.files.user_error import UserError
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.tiny.language_models import FAMILIES, text_config
from hawaii.tests.tiny.language_models import make_tokenizer as make_family_tokenizer
from hawaii.tests.tiny.models import VISION, fill, make_tokenizer
from hawaii.tests.tiny.students import CLIP, build_from_scratch, data_args, save_clip_folder
from hawaii.tests.tiny.training import TEXT, make_image, save_tokenizer
from hawaii.training.recipes.arguments import ModelArguments
from hawaii.training.students.processor import adapt_processor
from hawaii.training.students.student import build_student, stop_where_answers_end
from hawaii.training.students.tokenizer import read_tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    """A SigLIP whose last pixels do not fill a patch, with another resampling filter than CLIP's."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    fill(SiglipVisionModel(SiglipVisionConfig(**{**CLIP, "image_size": 18}))).save_pretrained(folder)
    size = {"height": 18, "width": 18}
    SiglipImageProcessor(size=size, resample=Image.Resampling.BILINEAR).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
@pytest.mark.parametrize("side", [16, 18, 31, 7])
def test_squares_are_prepared_as_by_the_encoders_image_processor(request, tokenizer_folder, encoder, side):
    folder = request.getfixturevalue(f"{encoder}_folder")
    args = ModelArguments(vision_tower=folder, text_config=TEXT, tokenizer=tokenizer_folder)
    student, processor = build_student(args, data_args(), 2)
    image = make_image(0, side, side)
    expected = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    inputs = processor(images=image, text="<image>", return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], expected, rtol=0, atol=1e-6)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == student.config.vision_config.num_patches == 16
    assert student(**inputs).image_hidden_states.shape == (1, 16, 32)


def test_the_padding_colour_is_siglips_mean(siglip_folder, tokenizer_folder):
    args = ModelArguments(vision_tower=siglip_folder, text_config=TEXT, tokenizer=tokenizer_folder)
    _, processor = build_student(args, data_args(), 2)
    assert processor.square_image(make_image(0, 3, 1)).getpixel((0, 0)) == (127, 127, 127)


def test_the_processor_normalises_like_the_clip(clip_folder, tokenizer_folder):
    args = ModelArguments(vision_tower=clip_folder, text_config=TEXT, tokenizer=tokenizer_folder)
    _, processor = build_student(args, data_args(image_aspect_ratio="crop"), 2)
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_processor.image_std) == [0.4, 0.5, 0.6]
    assert processor.num_image_tokens == 16
    assert processor.image_aspect_ratio == "crop"


def test_a_stage_without_a_template_uses_the_tokenizers(tokenizer_folder, tmp_path):
    model_args = ModelArguments(vision_config=VISION, text_config=TEXT, tokenizer=tokenizer_folder)
    original = AutoTokenizer.from_pretrained(tokenizer_folder).chat_template
    _, processor = build_student(model_args, data_args(chat_template="plain"), 2)
    assert processor.chat_template == load_chat_template("plain")
    processor.save_pretrained(tmp_path)
    later = adapt_processor(HawaiiProcessor.from_pretrained(tmp_path), model_args, data_args())
    assert later.chat_template == original == load_chat_template("vicuna_v1")


def test_a_tokenizer_without_a_template_is_an_error(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no chat template. Name one with chat_template, such as vicuna_v1"):
        build_from_scratch(str(tmp_path))


def test_a_later_stage_with_another_template_stops_at_its_end_token(tmp_path):
    """The end token of a base model is not the one that its tokenizer's template adds after answers."""
    family = FAMILIES["qwen2"]
    make_family_tokenizer(family).save_pretrained(tmp_path)
    model_args = ModelArguments(vision_config=VISION, text_config=text_config(family), tokenizer=str(tmp_path))
    student, processor = build_student(model_args, data_args(chat_template="plain"), 2)
    end, end_of_turn = processor.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert student.generation_config.eos_token_id == end
    processor = adapt_processor(processor, model_args, data_args())
    for _ in range(2):
        stop_where_answers_end(student, processor)
        assert student.generation_config.eos_token_id == [end, end_of_turn]


def test_a_tokenizer_with_several_templates_gives_the_default_one(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": load_chat_template("vicuna_v1"), "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    _, processor = build_from_scratch(str(tmp_path / "tokenizer"))
    processor.save_pretrained(tmp_path / "student")
    loaded = HawaiiProcessor.from_pretrained(tmp_path / "student")
    assert loaded.chat_template == loaded.tokenizer.chat_template == load_chat_template("vicuna_v1")


@pytest.mark.parametrize("is_file", [False, True])
def test_a_template_for_strings_is_adapted_to_images(tmp_path, is_file):
    """The tokenizer's template, or one in a file that the recipe names."""
    template = "{% for turn in messages %}{{ turn['content'] + eos_token }}{% endfor %}"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None if is_file else template
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "template.jinja").write_text(template)
    model_args = ModelArguments(vision_config=VISION, text_config=TEXT, tokenizer=str(tmp_path))
    chosen = data_args(chat_template=str(tmp_path / "template.jinja") if is_file else None)
    student, processor = build_student(model_args, chosen, 2)
    content = [{"type": "image"}, {"type": "text", "text": "a circle ?"}]
    assert processor.apply_chat_template([{"role": "user", "content": content}]) == "<image>\na circle ?</s>"
    assert student.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_a_template_without_an_end_token_is_an_error_before_training(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="puts no special token of the tokenizer after an answer"):
        build_from_scratch(str(tmp_path))


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.chat_template = load_chat_template("vicuna_v1")
    tokenizer.save_pretrained(tmp_path)
    student, processor = build_from_scratch(str(tmp_path))
    inputs = processor(text=["a", "a red circle"], padding=True, return_tensors="pt")
    assert inputs["input_ids"][0, 0] == processor.tokenizer.eos_token_id
    assert inputs["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert student.get_input_embeddings().padding_idx is None  # or the end token would get no gradient


def plain_word_tokenizer():
    """Makes a tokenizer whose `<image>` is a plain word: two of them in a row are an unknown word."""
    backend = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "<image>": 2, "red": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def test_an_image_token_that_is_a_plain_word_becomes_a_special_token(tmp_path):
    tokenizer = plain_word_tokenizer()
    assert tokenizer("<image><image>red")["input_ids"] == [0]
    tokenizer.save_pretrained(tmp_path)
    loaded = read_tokenizer(str(tmp_path))
    assert loaded("<image><image>red")["input_ids"] == [2, 2, 3]
    assert len(loaded) == len(tokenizer)


def test_a_tokenizer_without_token_positions_is_an_error(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(ByT5Tokenizer\) is written in Python.* one that has a tokenizer\.json"):
        read_tokenizer(str(tmp_path))


def test_a_tokenizer_that_cannot_pad_is_an_error(tmp_path):
    tokenizer = plain_word_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has neither a padding token nor an end token"):
        read_tokenizer(str(tmp_path))
