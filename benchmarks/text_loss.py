"""
Compares the peak memory and the time of a training step's text loss with scores at label positions only, as in
training, and with scores at every position, as a language model computes them if it receives `labels`. Both run
alternately, after a check that their losses and gradients are equal. The memory is that of all tensors in use at the
same time, without the weights.

    python benchmarks/text_loss.py --vocabulary 32000
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration
from hawaii.benchmarks.alternating import compare, measure
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


def make_batch(arguments: argparse.Namespace, num_patches: int) -> dict[str, torch.Tensor]:
    """A batch of one image each, a question and an answer."""
    shape = (arguments.batch_size, arguments.length)
    input_ids = torch.randint(1, arguments.vocabulary, shape)
    input_ids[:, :num_patches] = 0
    labels = torch.full(shape, -100)
    labels[:, -arguments.answer :] = input_ids[:, -arguments.answer :]
    index = (labels.flatten() != -100).nonzero().squeeze(-1)
    batch = {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}
    return {**batch, "label_index": index, "num_label_tokens": torch.tensor(len(index))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000, metavar="N")
    parser.add_argument("--batch_size", type=int, default=4, metavar="N")
    parser.add_argument("--length", type=int, default=640, metavar="N", help="tokens of a sample")
    parser.add_argument("--answer", type=int, default=32, metavar="N", help="tokens of a sample that are labels")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    vision = {"image_size": 96, "patch_size": 4, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    if arguments.length < 640:
        vision["image_size"] = 16
    text = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = HawaiiConfig(
        vision_config={**vision, "intermediate_size": 64},
        text_config={"model_type": "llama", "vocab_size": arguments.vocabulary, **text},
        image_token_index=0,
    )
    student = HawaiiForConditionalGeneration(config)
    batch = make_batch(arguments, config.vision_config.num_patches)
    size = config.vision_config.image_size
    with torch.no_grad():
        features, _ = routed_pass(student, torch.randn(arguments.batch_size, 3, size, size))

    def step(loss_function: Callable) -> tuple[torch.Tensor, list[torch.Tensor]]:
        student.zero_grad(set_to_none=True)
        loss = loss_function(student, features, batch)
        loss.backward()
        return loss.detach(), [each.grad for each in student.parameters() if each.grad is not None]

    functions = {"at labels": text_loss, "at every position": loss_of_every_position}
    results = [step(function) for function in functions.values()]
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-6)
    peaks = {}
    for name, function in functions.items():
        student.zero_grad(set_to_none=True)
        with PeakMemory() as memory:
            step(function)
        peaks[name] = memory.peak
    pairs = measure([partial(step, function) for function in functions.values()], arguments.rounds)
    for name, peak in peaks.items():
        print(f"peak memory, scores {name}: {peak / MIB:.1f} MiB")
    print(f"time: {compare(pairs)[0]:.3f} (of {arguments.rounds} pairs)")


if __name__ == "__main__":
    main()
