"""Squaring and normalising images, expanding image tokens, and rendering conversations."""

import json

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaImageProcessor, PreTrainedTokenizerFast

from hawaii import HawaiiProcessor
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.tiny.models import make_processor, make_tokenizer


MEAN_COLOUR = (122, 116, 104)  # CLIP's mean (0.48145466, 0.4578275, 0.40821073) times 255, rounded down.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
CONVERSATION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the circle ?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    {"role": "user", "content": "is there a square ?"},
    {"role": "assistant", "content": "no"},
]


def columns(*reds):
    """An image of one row with these red values."""
    return Image.fromarray(np.array([[[red, 0, 0] for red in reds]], dtype=np.uint8))


def reds(image):
    return np.asarray(image)[..., 0].tolist()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_padding_centres_the_image_on_the_mean_colour():
    square = make_processor().square_image(columns(1, 2, 3))
    assert reds(square) == [[122, 122, 122], [1, 2, 3], [122, 122, 122]]
    assert square.getpixel((0, 0)) == MEAN_COLOUR


def test_padding_leaves_the_odd_pixel_after_the_image():
    assert reds(make_processor().square_image(columns(1, 2))) == [[1, 2], [122, 122]]
    assert reds(make_processor().square_image(columns(1, 2).transpose(Image.Transpose.ROTATE_270))) == [
        [1, 122],
        [2, 122],
    ]


@pytest.mark.parametrize("size", [(2, 5), (5, 2), (3, 4), (4, 3), (1, 6), (6, 1), (7, 6)])
def test_the_first_margin_is_half_of_the_padding_rounded_down(size):
    image, (width, height) = noise(*size), size
    side = max(size)
    expected = np.full((side, side, 3), MEAN_COLOUR, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    expected[top : top + height, left : left + width] = np.asarray(image)
    assert np.array_equal(np.asarray(make_processor().square_image(image)), expected)


def test_cropping_keeps_the_centre():
    processor = make_processor(image_aspect_ratio="crop")
    assert reds(processor.square_image(columns(1, 2, 3))) == [[2]]
    assert reds(processor.square_image(columns(1, 2, 3, 4))) == [[2]]
    assert reds(processor.square_image(columns(1, 2, 3).transpose(Image.Transpose.ROTATE_90))) == [[2]]


@pytest.mark.parametrize("ratio", ["pad", "crop"])
def test_a_square_image_is_unchanged(ratio):
    image = noise(5, 5)
    assert make_processor(image_aspect_ratio=ratio).square_image(image).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(30, 21), (9, 40), (16, 16)])
def test_padded_images_equal_llavas(size):
    square = {"height": 16, "width": 16}
    llava = LlavaImageProcessor(do_pad=True, size={"shortest_edge": 16}, crop_size=square)
    expected = llava(noise(*size), return_tensors="pt")["pixel_values"]
    pixel_values = make_processor()(images=noise(*size), text="<image>", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, expected)


@pytest.mark.parametrize("size", [(25, 16), (16, 20)])
def test_cropped_images_equal_clips(size):
    # The shorter side is not resized, so that CLIP, which crops after resizing, crops the same pixels.
    clip = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    expected = clip(noise(*size), return_tensors="pt")["pixel_values"]
    processor = make_processor(image_aspect_ratio="crop")
    pixel_values = processor(images=noise(*size), text="<image>", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values, expected)


@pytest.mark.parametrize(
    ("tag", "upright"),
    [
        (1, [[1, 2], [3, 4]]),
        (2, [[2, 1], [4, 3]]),
        (3, [[4, 3], [2, 1]]),
        (4, [[3, 4], [1, 2]]),
        (5, [[1, 3], [2, 4]]),
        (6, [[3, 1], [4, 2]]),
        (7, [[4, 2], [3, 1]]),
        (8, [[2, 4], [1, 3]]),
    ],
)
def test_every_orientation_is_turned_upright(tmp_path, tag, upright):
    exif = Image.Exif()
    exif[0x0112] = tag
    pixels = [[[red, 0, 0] for red in row] for row in ([1, 2], [3, 4])]
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(tmp_path / "turned.png", exif=exif)
    assert reds(make_processor().square_image(tmp_path / "turned.png")) == upright


def test_orientation_tags_are_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn clockwise by a quarter to view.
    columns(1, 2).save(tmp_path / "turned.png", exif=exif)
    upright = [[1, 122], [2, 122]]
    for image in (Image.open(tmp_path / "turned.png"), tmp_path / "turned.png", str(tmp_path / "turned.png")):
        assert reds(make_processor().square_image(image)) == upright


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_images_are_scaled_and_not_clipped(mode):
    values = np.array([[0, 256, 128 * 256, 65535]])
    image = Image.fromarray(values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "i4"}[mode]))
    assert image.mode == mode
    assert reds(make_processor().square_image(image))[1] == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", 76), ("LA", 76), ("1", 0), ("P", 255), ("RGBA", 255), ("CMYK", 255)]
)
def test_every_mode_is_converted_to_rgb(mode, expected):
    red = Image.new("RGB", (4, 4), "red").convert(mode, dither=Image.Dither.NONE)
    square = make_processor().square_image(red)
    assert square.mode == "RGB" and reds(square) == [[expected] * 4] * 4


CLEAR_RED = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
RED_PALETTE = Image.new("RGB", (4, 4), "red").quantize(2)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (CLEAR_RED, {}, 255),
        (CLEAR_RED.convert("LA"), {}, 76),
        (RED_PALETTE, {"transparency": 0}, 255),
        (RED_PALETTE, {"transparency": bytes(2)}, 255),
    ],
    ids=["RGBA", "LA", "one colour of a palette", "all colours of a palette"],
)
def test_transparent_pixels_keep_their_colour(tmp_path, image, options, expected):
    """As in LLaVA, which drops the alpha channel."""
    image.save(tmp_path / "clear.png", **options)
    assert Image.open(tmp_path / "clear.png").has_transparency_data
    assert reds(make_processor().square_image(tmp_path / "clear.png")) == [[expected] * 4] * 4


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_files_of_other_modes_are_converted(tmp_path, mode):
    Image.new("RGB", (16, 16), (200, 100, 50)).convert(mode).save(tmp_path / "file.jpg", quality=95)
    expected = {"L": (124, 124, 124), "CMYK": (200, 100, 50)}[mode]
    pixel = make_processor().square_image(tmp_path / "file.jpg").getpixel((8, 8))
    assert np.abs(np.subtract(pixel, expected)).max() <= 4


@pytest.mark.parametrize("ratio", ["pad", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_an_image_may_be_one_pixel_wide(size, ratio):
    processor = make_processor(image_aspect_ratio=ratio)
    assert processor.square_image(noise(*size)).size == ((max(size),) * 2 if ratio == "pad" else (1, 1))
    assert processor(images=noise(*size), text="<image>")["pixel_values"][0].shape == (3, 16, 16)


def test_arrays_and_tensors_are_accepted():
    image = noise(20, 16)
    processor = make_processor()
    expected = processor.square_image(image).tobytes()
    array = np.asarray(image)
    assert processor.square_image(array).tobytes() == expected
    assert processor.square_image(torch.from_numpy(array.copy()).permute(2, 0, 1)).tobytes() == expected


def test_an_array_without_channels_is_a_grey_image():
    array = np.full((16, 16), 9, dtype=np.uint8)
    assert make_processor()(images=array, text="<image>")["pixel_values"][0].shape == (3, 16, 16)


def test_a_16_bit_file_is_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, dtype="<u2")).save(tmp_path / "deep.png")
    assert reds(make_processor().square_image(tmp_path / "deep.png")) == [[128] * 4] * 4


def test_a_truncated_file_is_named(tmp_path):
    noise(40, 40).save(tmp_path / "complete.png")
    content = (tmp_path / "complete.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.png is no image that Pillow can read \(image file is truncated\)"):
        make_processor().square_image(tmp_path / "cut.png")


def test_a_file_that_is_not_an_image_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.txt is no image that Pillow can read"):
        make_processor().square_image(tmp_path / "notes.txt")


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"There is no image /there/is/no/image\.png\."):
        make_processor()(images="/there/is/no/image.png", text="<image>")


def test_each_image_has_one_token_per_patch():
    processor = make_processor(image_size=16, patch_size=4)
    inputs = processor(images=[noise(5, 7), noise(20, 8)], text="<image> a <image> red", return_tensors="pt")
    image, a, red = processor.tokenizer.convert_tokens_to_ids(["<image>", "a", "red"])
    assert inputs["input_ids"].tolist() == [[image] * 16 + [a] + [image] * 16 + [red]]
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}


def test_a_prompt_with_a_bos_token_gets_no_second_one():
    """The chat templates of Llama 3, Gemma and Mistral write the BOS token that their tokenizers add to any text."""
    processor = make_processor()
    bos_token, bos_token_id = processor.tokenizer.bos_token, processor.tokenizer.bos_token_id
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos_token} $A", special_tokens=[(bos_token, bos_token_id)]
    )
    with_bos, without = processor(text=f"{bos_token} a red"), processor(text="a red")
    assert with_bos["input_ids"] == without["input_ids"]
    assert without["input_ids"][0][0] == bos_token_id
    assert processor(text=f"{bos_token} a", add_special_tokens=True)["input_ids"][0][:2] == [bos_token_id] * 2


def test_text_without_images_has_no_pixel_values():
    assert set(make_processor()(text=["a", "red"], return_tensors="pt")) == {"input_ids", "attention_mask"}


def test_images_may_be_one_list_or_one_list_per_prompt():
    text = ["<image> a <image>", "red <image>"]
    first, second, third = noise(4, 5), noise(6, 5), noise(7, 5)
    processor = make_processor()
    flat = processor(images=[first, second, third], text=text, padding=True, return_tensors="pt")
    nested = processor(images=[[first, second], [third]], text=text, padding=True, return_tensors="pt")
    assert all(torch.equal(flat[name], nested[name]) for name in flat)


@pytest.mark.parametrize(("num_tokens", "num_images"), [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_different_numbers_of_image_tokens_and_images_are_refused(num_tokens, num_images):
    with pytest.raises(ValueError, match=f"{num_tokens} <image> in the text but {num_images} images"):
        make_processor()(images=[noise(4, 4)] * num_images, text="<image> " * num_tokens + "a")


def test_a_call_without_images_and_text_is_refused():
    with pytest.raises(ValueError, match="Give images, text or both"):
        make_processor()()


def test_engines_can_read_the_number_of_tokens_per_image():
    counts = make_processor()._get_num_multimodal_tokens(image_sizes=[(100, 20), (16, 16)])
    assert counts.num_image_tokens == [16, 16]
    assert counts.num_image_patches == [1, 1]


def test_a_tokenizer_without_the_image_token_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(ValueError, match=r"no token '<image>'; add it with `tokenizer\.add_special_tokens"):
        HawaiiProcessor(CLIPImageProcessor(), tokenizer)


def test_an_image_has_one_token_per_complete_patch():
    processor = make_processor(image_size=18)
    assert processor.num_image_tokens == 16
    inputs = processor(images=Image.new("RGB", (20, 30)), text="<image>", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 18, 18)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16


def test_an_image_processor_that_does_not_make_squares_is_refused():
    size = {"height": 16, "width": 20}
    with pytest.raises(ValueError, match="makes images of 16 x 20 pixels; the encoder needs a square"):
        HawaiiProcessor(CLIPImageProcessor(size=size, crop_size=size), make_tokenizer())


def test_an_unknown_image_aspect_ratio_is_refused():
    with pytest.raises(ValueError, match="image_aspect_ratio is 'stretch'; it must be one of pad, crop"):
        make_processor(image_aspect_ratio="stretch")


def test_saving_and_loading_changes_nothing(tmp_path):
    processor = make_processor(image_aspect_ratio="crop")
    processor.save_pretrained(tmp_path)
    loaded = HawaiiProcessor.from_pretrained(tmp_path)
    expected = processor(images=noise(9, 5), text="<image> red", return_tensors="pt")
    inputs = loaded(images=noise(9, 5), text="<image> red", return_tensors="pt")
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert loaded.chat_template == processor.chat_template
    assert loaded.image_aspect_ratio == "crop"


def test_the_saved_tokenizer_has_names_that_transformers_4_knows(tmp_path):
    make_processor().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["additional_special_tokens"] == ["<image>"]
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == make_tokenizer().get_vocab()


def test_the_saved_tokenizer_does_not_say_how_it_was_loaded(tmp_path):
    make_processor().save_pretrained(tmp_path / "first")
    processor = HawaiiProcessor.from_pretrained(tmp_path / "first", local_files_only=True)
    processor.save_pretrained(tmp_path / "second")
    first, second = (
        json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("first", "second")
    )
    assert second == first
    assert not {"is_local", "local_files_only"} & second.keys()


def test_vicuna_v1_renders_the_conversation_of_llava():
    rendered = make_processor().apply_chat_template(CONVERSATION)
    assert rendered == (
        f"{SYSTEM} USER: <image>\nwhat color is the circle ? ASSISTANT: red</s>"
        "USER: is there a square ? ASSISTANT: no</s>"
    )


def test_vicuna_v1_renders_a_generation_prompt_and_another_system_text():
    messages = [{"role": "system", "content": "Be short."}, CONVERSATION[2]]
    rendered = make_processor().apply_chat_template(messages, add_generation_prompt=True)
    assert rendered == "Be short. USER: is there a square ? ASSISTANT:"


def test_vicuna_v1_accepts_a_system_text_in_parts():
    system = [{"type": "text", "text": "Be short. "}, {"type": "text", "text": "Be kind."}]
    messages = [{"role": "system", "content": system}, CONVERSATION[2]]
    assert make_processor().apply_chat_template(messages) == "Be short. Be kind. USER: is there a square ? "


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "tool", "content": "4"}, "takes turns of user and assistant, .* and none of tool"),
        ({"role": "system", "content": "Be short."}, "none of system"),
        ({"role": "user", "content": [{"type": "video"}]}, "takes images and text, and not video"),
    ],
)
def test_vicuna_v1_refuses_unknown_roles_and_content(message, problem):
    with pytest.raises(TemplateError, match=problem):
        make_processor().apply_chat_template([*CONVERSATION, message])


def test_plain_renders_the_image_its_caption_and_a_newline():
    processor = make_processor(chat_template="plain")
    assert processor.apply_chat_template(CONVERSATION[:2]) == "<image>red\n"
    assert processor.apply_chat_template(CONVERSATION[:1], add_generation_prompt=True) == "<image>"


def test_an_unknown_chat_template_is_refused():
    with pytest.raises(ValueError, match="no chat template 'vicuna'. Known by name: plain, vicuna_v1"):
        load_chat_template("vicuna")


def test_labels_are_the_answers_and_their_end_tokens():
    processor = make_processor()
    messages = json.loads(json.dumps(CONVERSATION))
    messages[0]["content"][0]["image"] = noise(5, 5)
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    labelled = inputs["input_ids"][inputs["assistant_masks"].bool()]
    assert processor.tokenizer.convert_ids_to_tokens(labelled) == ["red", "</s>", "no", "</s>"]


def test_the_space_before_an_answer_belongs_to_it():
    # As in Llama's tokenizer, where the space is part of the first word: labels start right after "ASSISTANT:".
    text = make_processor().apply_chat_template(CONVERSATION).replace("</s>", " ").replace("<image>\n", "<image> \n")
    words = dict.fromkeys(["<unk>", "</s>", "<image>", *(f"▁{word}" for word in text.split(" ")), "USER:", "\nwhat"])
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", additional_special_tokens=["<image>"]
    )
    inputs = tokenizer.apply_chat_template(
        CONVERSATION,
        chat_template=load_chat_template("vicuna_v1"),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"])
    labelled = [token for token, is_label in zip(tokens, inputs["assistant_masks"]) if is_label]
    assert labelled == ["▁red", "</s>", "▁no", "</s>"]
    assert "<unk>" not in tokens
