"""
Compares the peak memory and the time of a training step's text loss with scores at label positions only, as in
training, and with scores at every position, as a language model computes them if it receives `labels`. Both run
alternately, after a check that their losses and gradients are equal. The memory is that of all tensors in use at the
same time, without the weights.

    python benchmarks/training/text_loss.py --vocabulary 32000
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration
from hawaii.benchmarks.measuring.command import make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, compare
from hawaii.training.objectives.encoder_passes import routed_pass
from hawaii.training.objectives.text_loss import text_loss


MIB = 2**20


class PeakMemory(TorchDispatchMode):
    """Measures the peak number of bytes of tensors that are created inside the block and still in use."""

    def __init__(self):
        super().__init__()
        self._alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        result = func(*args, **(kwargs or {}))
        for tensor in (each for each in tree_leaves(result) if torch.is_tensor(each)):
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address and address not in known and address not in self._alive:
                self._alive[address] = storage.nbytes()
                finalize(storage, self._alive.pop, address, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def loss_of_every_position(student: Any, features: torch.Tensor, batch: dict) -> torch.Tensor:
    """The same loss with a score of each token of the vocabulary at each position."""
    model: Any = student.model
    is_image = model.find_image_tokens(batch["input_ids"], None)
    words = model.get_input_embeddings()(batch["input_ids"])
    embeddings = model.merge_image_features(is_image, words, model.multi_modal_projector(features))
    hidden_states = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False)
    logits = student.lm_head(hidden_states.last_hidden_state).float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def make_batch(vocabulary: int, shape: tuple[int, int], answer: int, num_patches: int) -> dict[str, torch.Tensor]:
    """A batch of one image each, a question and an answer; its shape is its size and the length of its samples."""
    input_ids = torch.randint(1, vocabulary, shape)
    input_ids[:, :num_patches] = 0
    labels = torch.full(shape, -100)
    labels[:, -answer:] = input_ids[:, -answer:]
    index = (labels.flatten() != -100).nonzero().squeeze(-1)
    batch = {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}
    return {**batch, "label_index": index, "num_label_tokens": torch.tensor(len(index))}


def measure_text_loss(
    vocabulary: int = 32_000,
    batch_size: int = 4,
    image_size: int = 96,
    length: int = 640,
    answer: int = 32,
    rounds: int = 3,
) -> Iterator[Comparison]:
    """
    Compares on random tokens, of which the last `answer` of each sample are labels. Its first are those of an image of
    `image_size` pixels, in patches of four.
    """
    torch.manual_seed(0)
    vision = {"patch_size": 4, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = HawaiiConfig(
        vision_config={**vision, "image_size": image_size, "intermediate_size": 64},
        text_config={"model_type": "llama", "vocab_size": vocabulary, **text},
        image_token_index=0,
    )
    student = HawaiiForConditionalGeneration(config)
    batch = make_batch(vocabulary, (batch_size, length), answer, config.vision_config.num_patches)
    with torch.no_grad():
        features, _ = routed_pass(student, torch.randn(batch_size, 3, image_size, image_size))

    def step(loss_function: Callable) -> list[torch.Tensor]:
        student.zero_grad(set_to_none=True)
        loss = loss_function(student, features, batch)
        loss.backward()
        return [loss.detach(), *(each.grad for each in student.parameters() if each.grad is not None)]

    functions = {"scores at labels": text_loss, "scores at every position": loss_of_every_position}
    steps = {name: partial(step, function) for name, function in functions.items()}
    yield compare("the text loss and its gradients", steps, rounds, process_clock(student.device), atol=1e-6)
    peaks = []
    for run in steps.values():
        student.zero_grad(set_to_none=True)
        with PeakMemory() as memory:
            run()
        peaks.append(memory.peak / MIB)
    first, second = steps
    yield Comparison("the peak memory of the text loss", first, second, [(peaks[0], peaks[1])], "MiB")


def main() -> None:
    arguments = make_parser(
        __doc__,
        vocabulary=32_000,
        batch_size=4,
        image_size=(96, "pixels of an image, in patches of four"),
        length=(640, "tokens of a sample"),
        answer=(32, "tokens of a sample that are labels"),
        rounds=3,
    ).parse_args()
    print_comparisons(measure_text_loss(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
