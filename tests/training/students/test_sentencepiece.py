"""Vicuna's and LLaVA's tokenizers are in sentencepiece's format; they are read and published like any other."""

import json
import subprocess
import sys

import pytest
import sentencepiece
from transformers import LlamaConfig, LlamaForCausalLM

from hawaii.tests.tiny.models import VISION, WORDS
from hawaii.tests.tiny.students import data_args
from hawaii.tests.tiny.training import make_messages
from hawaii.training.data.conversations import tokenize_conversation
from hawaii.training.recipes.arguments import ModelArguments
from hawaii.training.students.student import build_student
from hawaii.training.students.tokenizer import load_tokenizer


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def vicuna_folder(tmp_path_factory):
    """A language model with the files that Vicuna's repository has: no tokenizer.json, no chat template."""
    folder = tmp_path_factory.mktemp("vicuna")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    values = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "special_tokens_map.json").write_text(json.dumps({**SPECIAL, "pad_token": "<unk>"}))
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=330)).save_pretrained(folder)
    return folder


def test_the_image_token_is_the_first_after_the_vocabulary(vicuna_folder):
    num_tokens = sentencepiece.SentencePieceProcessor(str(vicuna_folder / "tokenizer.model")).vocab_size()
    tokenizer = load_tokenizer(ModelArguments(language_model=str(vicuna_folder), vision_config=VISION))
    assert tokenizer.convert_tokens_to_ids("<image>") == num_tokens


def test_the_answer_and_its_end_token_are_learned(vicuna_folder):
    args = ModelArguments(language_model=str(vicuna_folder), vision_config=VISION)
    _, processor = build_student(args, data_args(chat_template="vicuna_v1"), 2)
    conversation = tokenize_conversation(make_messages("<image>\nwhat color is the shape?", "red"), processor)
    ids, tokenizer = conversation.input_ids, processor.tokenizer
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    learned = [token for token, is_answer in zip(ids, conversation.is_answer) if is_answer]
    assert tokenizer.decode(learned).strip() == "red</s>"
    prompt = [token for token, is_prompt in zip(ids, conversation.is_prompt) if is_prompt]
    assert tokenizer.decode(prompt).strip() == "what color is the shape?"


READ = """
import sys
sys.modules["sentencepiece"] = sys.modules["hawaii"] = None
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(processor.tokenizer("what color is the shape?")["input_ids"])
"""


def test_a_published_folder_needs_no_sentencepiece(vicuna_folder, tmp_path):
    args = ModelArguments(language_model=str(vicuna_folder), vision_config=VISION)
    _, processor = build_student(args, data_args(chat_template="vicuna_v1"), 2)
    processor.save_pretrained(tmp_path)
    read = subprocess.run([sys.executable, "-c", READ, tmp_path], capture_output=True, text=True, timeout=300)
    ids = processor.tokenizer("what color is the shape?")["input_ids"]
    assert read.stdout.splitlines()[-1:] == [str(ids)], read.stderr
