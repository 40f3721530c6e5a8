"""The language model learns to answer from captions, and is trained again if its data or settings change."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hawaii.example_data import language_model
from hawaii.example_data.language_model import (
    ConversationDataset,
    caption_conversations,
    predict_next_tokens,
    prepare_language_model,
    train_language_model,
)
from hawaii.example_data.llava_rows import make_row
from hawaii.example_data.word_tokenizer import build_tokenizer


COLORS = ("red", "blue", "green", "teal")
CAPTIONS = [make_row(f"{color}.png", 0, [("", f"{color} circle")]) for color in COLORS]
ROWS = [
    make_row(f"{color}.png", 0, [("what color is it?", color), ("what shape?", "circle")]) for color in COLORS
] * 10
WORDS = [*COLORS, "what color is it?", "what shape? circle"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS)


@pytest.fixture
def tiny(monkeypatch):
    """A language model that learns in seconds."""
    monkeypatch.setattr(
        language_model, "CONFIG", {**language_model.CONFIG, "hidden_size": 32, "intermediate_size": 64}
    )


def test_captions_replace_images_and_rows_without_a_caption_are_omitted():
    rows = [make_row("a.png", 0, [("what is it?", "a cat")]), make_row("b.png", 0, [("what is it?", "a dog")])]
    assert caption_conversations(rows, [make_row("a.png", 0, [("", "cat, sun")])]) == [
        [{"role": "user", "content": "cat, sun\nwhat is it?"}, {"role": "assistant", "content": "a cat"}]
    ]


def test_the_labels_are_the_answers_and_their_end_tokens(tokenizer):
    sample = ConversationDataset(caption_conversations(ROWS[:1], CAPTIONS), tokenizer)[0]
    learned = [token for token in sample["labels"] if token != -100]
    assert tokenizer.decode(learned) == "red </s> circle </s>"
    assert tokenizer.decode(sample["input_ids"]).startswith("user : red circle what color is it ?")


def test_a_token_is_predicted_by_the_logits_before_it():
    logits = torch.nn.functional.one_hot(torch.tensor([[3, 1, 2]]))
    assert predict_next_tokens(logits, None).tolist() == [[-1, 3, 1]]


def test_the_model_learns_to_answer_from_captions_and_the_same_call_gives_the_same_weights(tokenizer, tiny):
    conversations = caption_conversations(ROWS, CAPTIONS)
    model, accuracy = train_language_model(conversations, tokenizer, num_steps=60)
    assert accuracy == 1.0
    again, _ = train_language_model(conversations, tokenizer, num_steps=60)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name


def test_a_model_is_kept_unless_its_data_or_settings_change(tokenizer, tiny, tmp_path, capsys):
    folder = tmp_path / "language_model"
    prepare_language_model(ROWS, CAPTIONS, tokenizer, folder, num_steps=1)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.vocab_size == len(tokenizer) == len(AutoTokenizer.from_pretrained(folder))
    assert loaded.config.use_cache  # unlike in training
    before = (folder / "model.safetensors").stat().st_mtime_ns
    prepare_language_model(ROWS, CAPTIONS, tokenizer, folder, num_steps=1)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "already exists" in capsys.readouterr().out
    prepare_language_model(ROWS, CAPTIONS, tokenizer, folder, num_steps=2)
    assert (folder / "model.safetensors").stat().st_mtime_ns != before
    words = build_tokenizer([*WORDS, "another word"])
    prepare_language_model(ROWS, CAPTIONS, words, folder, num_steps=2)
    assert "already exists" not in capsys.readouterr().out
    assert len(AutoTokenizer.from_pretrained(folder)) == len(words)
    prepare_language_model(ROWS[1:], CAPTIONS, words, folder, num_steps=2)
    assert "already exists" not in capsys.readouterr().out
