"""Limits of time and memory for chat templates, which are programs that a checkpoint contains."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...files.user_error import UserError
from .rendering import render_or_describe


SECONDS = 2  # of computing; a conversation takes milliseconds
MEGABYTES = 256
CHARACTERS = 1_000_000
STATUS_TOO_LARGE = 3

TEXT = [{"type": "image"}, {"type": "text", "text": "which of them is it?"}]
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "the first"}]}
# Short conversations as in training, chat and evaluation. Most templates take lists or strings, not both.
CONVERSATIONS = (
    [{"role": "user", "content": TEXT}],
    [{"role": "user", "content": TEXT}, ANSWER, {"role": "user", "content": TEXT[1:]}, ANSWER],
    [{"role": "user", "content": [{"type": "text", "text": "which of them is it? " * 100}]}, ANSWER] * 8,
    [{"role": "system", "content": "short answers"}, {"role": "user", "content": "<image>\nwhich of them is it?"}],
    [{"role": "user", "content": "<image>\nwhich of them is it?"}, {"role": "assistant", "content": "the first"}],
)
# Names that templates use; without them they stop with an error before they do anything else.
SPECIAL_TOKENS = {name: f"<{name}>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}


def _limit_this_process() -> None:
    import resource  # where processes cannot fork, there is none

    def limit(kind: int, soft: int, hard: int) -> None:
        present = resource.getrlimit(kind)[1]
        if present != resource.RLIM_INFINITY:  # a limit of the system can only be lowered
            soft, hard = min(soft, present), min(hard, present)
        resource.setrlimit(kind, (soft, hard))

    limit(resource.RLIMIT_CPU, SECONDS, SECONDS + 1)
    memory = Path("/proc/self/statm")
    if memory.is_file():
        used = int(memory.read_text().split()[0]) * resource.getpagesize()
        limit(resource.RLIMIT_AS, used + MEGABYTES * 2**20, used + MEGABYTES * 2**20)


def _render_all(template: str, conversations: Sequence[Any], special_tokens: Mapping[str, str]) -> int:
    """The exit status of the process that renders. Errors of a template are for those who use it."""
    for messages in conversations:
        for add_generation_prompt in (False, True):
            try:
                text = render_or_describe(
                    template,
                    messages,
                    add_generation_prompt=add_generation_prompt,
                    **{**SPECIAL_TOKENS, **special_tokens},
                )
            except MemoryError:
                return STATUS_TOO_LARGE
            if len(text) > CHARACTERS:
                return STATUS_TOO_LARGE
    return 0


def _wait(process: int) -> int:
    """Waits for a process, which the system ends after its seconds of computing; returns its exit status."""
    deadline = time.monotonic() + 30 * SECONDS  # a busy machine computes slowly
    while time.monotonic() < deadline:
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check_rendering(
    template: str,
    special_tokens: Mapping[str, str] | None = None,
    conversations: Sequence[Any] = CONVERSATIONS,
    subject: str = "The chat template",
) -> None:
    """
    Checks that a chat template renders short conversations within limits of time, memory and length. They are rendered
    in a copy of this process, so a template that loops or builds a huge string ends nothing else.

    Args:
        template (`str`):
            Jinja template.
        special_tokens (`Mapping[str, str]`, *optional*):
            The tokenizer's special tokens, such as `bos_token="<s>"`.
        conversations (`Sequence`, *optional*):
            Conversations to render.
        subject (`str`, *optional*):
            Names the template in the error.

    Raises:
        UserError: it exceeds a limit.
    """
    if not hasattr(os, "fork"):
        return
    process = os.fork()
    if process == 0:
        status = STATUS_TOO_LARGE
        try:
            _limit_this_process()
            status = _render_all(template, conversations, special_tokens or {})
        finally:
            os._exit(status)  # without the cleanup that the other process will do
    if _wait(process) != 0:
        raise UserError(
            f"{subject} loops, or builds a huge text: it does not render a short conversation within {SECONDS} "
            f"seconds, {MEGABYTES} MB and {CHARACTERS:,} characters. Correct it, or use another one."
        )


@lru_cache(maxsize=64)
def check_once(template: str, special_tokens: tuple[tuple[str, str], ...]) -> None:
    """[`check_rendering`] for a template that is used several times."""
    check_rendering(template, dict(special_tokens))
