"""The tokenizer of words works with what generation needs of a tokenizer."""

import json

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hawaii.example_data.word_tokenizer import build_tokenizer, save_tokenizer
from hawaii.tests.tiny.models import fill
from hawaii.tests.tiny.training import TEXT


TEXTS = {
    "colors": ["what color is it?", "red", "blue-green"],
    "none": [],
    "numbers": ["1 2", "3.5"],
    "drawings": ["😀"],
}


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
def test_generation_stops_at_a_string(texts):
    tokenizer = build_tokenizer(texts)
    model = fill(AutoModelForCausalLM.from_config(AutoConfig.for_model(**TEXT, vocab_size=len(tokenizer)))).eval()
    inputs = tokenizer("user:", return_tensors="pt")
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6, "pad_token_id": tokenizer.pad_token_id}
    answer = model.generate(**inputs, **options)[0]
    words = tokenizer.convert_ids_to_tokens(answer.tolist())[2:]
    stopped = model.generate(**inputs, **options, stop_strings=[words[2]], tokenizer=tokenizer)[0]
    expected = next(index for index, word in enumerate(words) if words[2] in word)
    assert torch.equal(stopped, answer[: 2 + expected + 1])


def test_unknown_words_are_unknown():
    tokenizer = build_tokenizer(TEXTS["colors"])
    assert tokenizer("a yellow one")["input_ids"] == [tokenizer.unk_token_id] * 3
    ids = tokenizer("Blue-green?")["input_ids"]
    assert tokenizer.decode(ids) == "blue - green ?" and tokenizer.unk_token_id not in ids


def test_a_tokenizer_that_was_loaded_is_saved_as_before(tmp_path):
    save_tokenizer(build_tokenizer(TEXTS["colors"]), tmp_path / "first")
    save_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "first"), tmp_path / "second")
    first, second = (
        json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("first", "second")
    )
    assert second == first and not {"is_local", "local_files_only"} & second.keys()


TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is it?"}]},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "what color is it?"},
]


def test_a_systems_text_comes_first_and_other_prompts_have_none():
    tokenizer = build_tokenizer(TEXTS["colors"])
    prompt = "user: <image>\nwhat color is it? assistant: red</s>user: what color is it? assistant:"
    assert tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True) == prompt
    turns = [{"role": "system", "content": "it is red."}, *TURNS]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == f"it is red. {prompt}"
    encoded = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens[:5] == ["it", "is", "red", "<unk>", "user"]
    assert [t for t, is_answer in zip(tokens, encoded["assistant_masks"], strict=True) if is_answer] == ["red", "</s>"]


def test_a_turn_of_another_role_is_refused():
    with pytest.raises(TemplateError, match="turns are of system, user and assistant, and none of tool"):
        build_tokenizer([]).apply_chat_template([*TURNS, {"role": "tool", "content": "7"}], tokenize=False)
