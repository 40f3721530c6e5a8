"""Answers stream: their pieces are the text of `generate`, and whoever stops reading ends generation."""

import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from hawaii.hub_cards.space.hawaii_space.conversation import leave_out_image_words, stream_answer
from hawaii.tests.tiny.models import make_model, make_processor


SECONDS = 60  # after which a thread that waits for this test gives up


@pytest.fixture(scope="module")
def hawaii():
    torch.manual_seed(0)
    return make_model(), make_processor()


def question(text, *colors):
    images = [{"type": "image", "image": Image.new("RGB", (20, 10), color)} for color in colors]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def answer(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.mark.parametrize(
    "messages",
    [
        [question("what color is the shape ?", "red")],
        [question("what color is the shape ?")],
        [question("what is in there ?", "red", "blue"), answer("a circle"), question("is it blue ?", "blue")],
    ],
    ids=["image", "text", "turns"],
)
def test_the_pieces_are_the_text_of_generate(hawaii, messages):
    model, processor = hawaii
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    pieces = list(stream_answer(model, processor, messages, max_new_tokens=20))
    assert "".join(pieces) == processor.decode(tokens, skip_special_tokens=True)
    assert len(pieces) > 5
    assert "" not in pieces


class ScriptedModel:
    """Generates given tokens, and calls `before_step` with the number of each step before it."""

    device, dtype = "cpu", torch.float32

    def __init__(self, tokens, num_positions=1000, before_step=lambda step: None):
        self.tokens = tokens
        self.before_step = before_step
        self.num_steps = 0
        text_config = SimpleNamespace(max_position_embeddings=num_positions)
        self.config = SimpleNamespace(get_text_config=lambda: text_config)

    def generate(self, input_ids, do_sample, num_beams, max_new_tokens, stopping_criteria):
        for step, token in enumerate(self.tokens[:max_new_tokens]):
            self.before_step(step)
            input_ids = torch.cat([input_ids, torch.tensor([[token]])], dim=1)
            self.num_steps += 1
            if stopping_criteria[0](input_ids, None).all():
                break
        return input_ids


class FixedPrompt:
    """A processor whose prompts are three tokens."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.decode = tokenizer.decode

    def apply_chat_template(self, messages, **options):
        return Prompt(input_ids=torch.zeros(1, 3, dtype=torch.long))


class Prompt(BatchEncoding):
    def __init__(self, **tensors):
        super().__init__(tensors)

    def to(self, device, dtype):
        return self


def make_tokenizer(model, decoder, **options):
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **options)


def numbered(*words):
    return {word: number for number, word in enumerate(["</s>", "<unk>", *words])}


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENIZERS = {
    "bytes": make_tokenizer(
        models.BPE(numbered(*sorted(pre_tokenizers.ByteLevel.alphabet())), []), decoders.ByteLevel()
    ),
    "sentencepiece": make_tokenizer(
        models.BPE(numbered(*BYTES, "▁", "▁a", "b", "é"), [], byte_fallback=True),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    ),
    "cleaned words": make_tokenizer(
        models.WordLevel(numbered("do", "n't", "not", "'", "'s", ".", "?", "a"), "<unk>"),
        decoders.WordPiece(cleanup=False),
        clean_up_tokenization_spaces=True,
    ),
}


def characters_of(name, text):
    if name == "sentencepiece":
        return [BYTES[byte] for byte in text.encode()]
    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return "".join(word for word, _ in words)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_later_token_changes_a_piece(name):
    """Random tokens: incomplete characters, spaces at the start, spaces that cleaning removes."""
    tokenizer = TOKENIZERS[name]
    generator = torch.Generator().manual_seed(0)
    num_pieces = 0
    for _ in range(300):
        tokens = torch.randint(len(tokenizer), (8,), generator=generator).tolist()
        if name != "cleaned words" and tokens[0] % 2:
            tokens[2:6] = [tokenizer.convert_tokens_to_ids(token) for token in characters_of(name, "😀")]
        pieces = list(stream_answer(ScriptedModel(tokens), FixedPrompt(tokenizer), []))
        assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)
        num_pieces += len(pieces)
    assert num_pieces > 300


def test_a_character_of_several_tokens_is_one_piece():
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer.convert_tokens_to_ids(list(characters_of("bytes", "é😀!")))
    assert len(tokens) == 7
    assert list(stream_answer(ScriptedModel(tokens), FixedPrompt(tokenizer), [])) == ["é", "😀", "!"]


def test_a_piece_arrives_before_the_next_step():
    tokenizer = TOKENIZERS["bytes"]
    is_read = [threading.Event() for _ in range(3)]

    def before_step(step):
        assert step == 0 or is_read[step - 1].wait(SECONDS)

    tokens = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    pieces = stream_answer(ScriptedModel(tokens, before_step=before_step), FixedPrompt(tokenizer), [])
    for piece, event in zip(pieces, is_read, strict=True):
        assert piece in "abc"
        event.set()


def test_closing_stops_generation_and_its_thread():
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer.convert_tokens_to_ids(["a"] * 50_000)
    model = ScriptedModel(tokens, num_positions=100_000)
    before = set(threading.enumerate())
    pieces = stream_answer(model, FixedPrompt(tokenizer), [], max_new_tokens=50_000)
    assert next(pieces) == "a"
    pieces.close()
    assert model.num_steps < 50_000
    assert set(threading.enumerate()) <= before


def test_an_error_of_generation_is_raised_after_the_pieces_before_it():
    tokenizer = TOKENIZERS["bytes"]

    def before_step(step):
        if step == 1:
            raise RuntimeError("the device is out of memory")

    tokens = tokenizer.convert_tokens_to_ids(["a", "b"])
    pieces = stream_answer(ScriptedModel(tokens, before_step=before_step), FixedPrompt(tokenizer), [])
    assert next(pieces) == "a"
    with pytest.raises(RuntimeError, match="out of memory"):
        next(pieces)


def test_an_answer_ends_at_the_last_position():
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer.convert_tokens_to_ids(["a"] * 9)
    assert list(stream_answer(ScriptedModel(tokens, num_positions=5), FixedPrompt(tokenizer), [])) == ["a", "a"]


def test_a_conversation_without_a_free_position_is_an_error():
    pieces = stream_answer(ScriptedModel([], num_positions=3), FixedPrompt(TOKENIZERS["bytes"]), [])
    with pytest.raises(ValueError, match="has 3 tokens, images included, but the model has 3 positions"):
        next(pieces)


def test_what_is_left_of_a_text_is_no_image_word_either():
    processor = SimpleNamespace(image_token="<image>")
    text = "what is <im<im<image>age>age> or <image>?"
    assert leave_out_image_words(processor, text) == "what is  or ?"
    assert leave_out_image_words(SimpleNamespace(), text) == text
