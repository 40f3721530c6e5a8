"""
Measures the time to tokenize long conversations with a chat template without generation markers, where an answer
begins at the end of its prompt. The time per turn must not grow with the number of turns.

    python benchmarks/training/long_conversations.py
"""

import argparse
import statistics
import time

from hawaii.processing.chat_templates import adapt_chat_template
from hawaii.tests.tiny.language_models import CHATML
from hawaii.tests.tiny.models import make_processor
from hawaii.training.data.conversations import tokenize_conversation
from hawaii.training.sources.record import Message


ENDS = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "<image>"]}


def make_conversation(num_turns: int) -> list[Message]:
    """Questions with text, with an image and text, and with an image alone, and their answers."""
    messages = []
    for number in range(num_turns // 2):
        has_image, has_text = number % 5 == 0, number % 7 != 0
        messages.append(Message("user", f"what {number} ?" if has_text else "", int(has_image or not has_text)))
        messages.append(Message("assistant", f"red {number}"))
    return messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_turns", type=int, nargs="+", default=[1000, 3000, 10000], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    arguments = parser.parse_args()

    processor = make_processor()
    processor.tokenizer.add_special_tokens(ENDS)
    processor.chat_template = adapt_chat_template(CHATML, **processor.tokenizer.special_tokens_map)
    conversations = {num_turns: make_conversation(num_turns) for num_turns in arguments.num_turns}
    seconds: dict[int, list[float]] = {num_turns: [] for num_turns in conversations}
    for _ in range(arguments.rounds):
        for num_turns, messages in conversations.items():
            start = time.perf_counter()
            tokenize_conversation(messages, processor)
            seconds[num_turns].append(time.perf_counter() - start)
    for num_turns, values in seconds.items():
        median = statistics.median(values)
        print(f"{num_turns} turns: {median:.2f} s, {1e6 * median / num_turns:.0f} microseconds per turn")


if __name__ == "__main__":
    main()
