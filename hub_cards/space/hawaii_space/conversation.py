"""
Answers that appear while they are generated. A Space runs this file without the package: it imports the standard
library, torch, transformers and its neighbours only.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import torch
from transformers import StoppingCriteria

from .visitor_error import VisitorError


# One byte of a character that is not in the vocabulary, in tokenizers that come from sentencepiece.
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class _Progress(StoppingCriteria):
    """Passes on the tokens of each step, and ends generation once it `is_stopped`."""

    def __init__(self, prompt_length: int):
        self.num_passed = prompt_length
        self.steps = SimpleQueue()
        self.is_stopped = False

    def __call__(self, input_ids, scores, **kwargs):
        self.steps.put(input_ids[0, self.num_passed :].tolist())
        self.num_passed = input_ids.shape[1]
        return torch.full((len(input_ids),), self.is_stopped, device=input_ids.device)


def replace_half_characters(text: str) -> str:
    """Returns a text with a question mark for each half of a character, which no server and no file can hold."""
    return text.encode(errors="replace").decode()


def leave_out_image_words(processor: Any, text: str) -> str:
    """
    Returns a text without the word that stands for an image in a prompt, such as `<image>`, also where the rest would
    be that word again. In a question or an earlier answer it would stand for an image that is not there.
    """
    word = getattr(processor, "image_token", None)  # some processors of transformers have none
    if not word or word not in text:
        return text
    kept = []  # in one pass: words in words in words would take minutes
    for character in text:
        kept.append(character)
        if character == word[-1] and kept[-len(word) :] == list(word):
            del kept[-len(word) :]
    return "".join(kept)


def _settled_text(processor: Any, tokens: list[int]) -> str:
    """The beginning of an answer that no further token can change."""
    tokenizer = processor.tokenizer
    names, special = tokenizer.convert_ids_to_tokens(tokens), tokenizer.all_special_tokens
    # An incomplete character makes all bytes next to it unreadable. Special tokens between them are left out.
    while names and (BYTE_TOKEN.fullmatch(str(names[-1])) or names[-1] in special):
        names.pop()
    text = processor.decode(tokens[: len(names)], skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
    if tokenizer.clean_up_tokenization_spaces:  # the next word may remove the space before it
        text = text.rstrip().rpartition(" ")[0].rstrip()
    return text


def stream_answer(model: Any, processor: Any, messages: list[dict], max_new_tokens: int = 256) -> Iterator[str]:
    """
    Answers the last question of a conversation with greedy decoding, piece by piece.

    Generation runs in a thread. Closing the iterator stops it after the current step and waits for the thread's end;
    so does an exception, such as `KeyboardInterrupt`, while the caller waits for a piece.

    Args:
        model (`PreTrainedModel`):
            A model that generates text from images and text.
        processor (`ProcessorMixin`):
            Its processor, with a chat template.
        messages (`list[dict]`):
            The conversation in transformers' format; an image is `{"type": "image", "image": PIL.Image.Image}`. Texts
            contain no image words, see [`leave_out_image_words`].
        max_new_tokens (`int`, *optional*, defaults to 256):
            Maximum length of the answer. It is also limited by the model's positions.

    Yields:
        `str`: Pieces of text, none of them empty. Joined, they are the tokens of `generate`, decoded without special
        tokens.

    Raises:
        VisitorError: The prompt is empty, or fills all positions of the language model.
        Exception: Any error of the chat template, the processor or the model.
    """
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    prompt_length = inputs["input_ids"].shape[1]
    if not prompt_length:
        raise VisitorError("The chat template leaves out the question, and there is no image; add one.")
    num_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if num_positions is not None:
        if prompt_length >= num_positions:
            raise VisitorError(
                f"The conversation has {prompt_length} tokens, images included, but the model has {num_positions} "
                "positions for questions and answers; start a new conversation, or ask about fewer images."
            )
        max_new_tokens = min(max_new_tokens, num_positions - prompt_length)
    progress = _Progress(prompt_length)
    tokens, sent = [], ""
    with ThreadPoolExecutor(max_workers=1) as threads:
        generation = threads.submit(
            model.generate,
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            stopping_criteria=[progress],
        )
        generation.add_done_callback(lambda _: progress.steps.put(None))
        try:
            for step in iter(progress.steps.get, None):
                tokens += step
                text = _settled_text(processor, tokens)
                if len(text) > len(sent):
                    yield text[len(sent) :]
                    sent = text
        finally:
            progress.is_stopped = True
    text = processor.decode(generation.result()[0, prompt_length:], skip_special_tokens=True)
    if len(text) > len(sent):
        yield text[len(sent) :]
