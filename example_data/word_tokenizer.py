"""A tokenizer whose tokens are the words of a small data set, with a chat template in those words."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..processing.processing_hawaii import rewrite_tokenizer_config


SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
# In front of this word, transformers' `stop_strings` looks at what each token becomes in text: it must not be unknown.
PROBE = "abcdef"

# Vicuna's conversation in few words, and without a system's text of its own. The space before an answer is outside
# `generation`: it is not a token, and transformers finds the labels by the token of the span's first character.
CHAT_TEMPLATE = r"""
{%- for message in messages -%}
    {%- set content = message['content'] -%}
    {%- if content is string -%}
        {%- set content = [{'type': 'text', 'text': content}] -%}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- 'user: ' -}}
        {%- for item in content -%}
            {{- '<image>\n' if item['type'] == 'image' else item['text'] -}}
        {%- endfor -%}
        {{- ' ' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'assistant: ' -}}
        {%- generation -%}
        {%- for item in content -%}
            {{- item['text'] -}}
        {%- endfor -%}
        {{- eos_token -}}
        {%- endgeneration -%}
    {%- elif message['role'] == 'system' -%}
        {%- for item in content -%}
            {{- item['text'] -}}
        {%- endfor -%}
        {{- ' ' -}}
    {%- else -%}
        {{- raise_exception('The turns are of system, user and assistant, and none of ' + message['role'] + '.') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'assistant:' -}}
{%- endif -%}
""".strip()


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """
    Builds a lower-case tokenizer with one token for each word and punctuation mark, and `<unk>` for all other words.

    Args:
        texts (`Iterable[str]`):
            Texts whose words, together with those of the chat template and `PROBE`, are the vocabulary.

    Returns:
        `PreTrainedTokenizerFast` that decodes to words with single spaces between them.
    """
    normalizer = normalizers.Lowercase()
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = {
        word
        for text in {"user: assistant:", PROBE, *texts}
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *sorted(words)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves the tokenizer so that `AutoTokenizer` of transformers 4.57 and 5.x loads it."""
    tokenizer.save_pretrained(folder)
    rewrite_tokenizer_config(Path(folder) / "tokenizer_config.json")
