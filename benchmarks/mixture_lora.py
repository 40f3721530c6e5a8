"""
Compares the time of the mixture of LoRA adapters with two other ways to compute it: each adapter on all tokens, of
which `torch.where` chooses, as in MoVE-KD's code; and each adapter on the tokens that chose it, as PEFT computes
several adapters in one batch. All three run alternately, after a check that outputs and gradients are equal.

    python benchmarks/mixture_lora.py --size large
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from hawaii import HawaiiVisionConfig
from hawaii.benchmarks.alternating import compare, measure
from hawaii.modeling_hawaii.mixture_lora_hawaii import StackedLora


# Width and number of tokens of CLIP ViT-B/16 and ViT-L/14-336, and a tiny size for the test of this file.
SIZES = {"base": (768, 197), "large": (1024, 577), "tiny": (32, 17)}
NUM_TEACHER_ADAPTERS = NUM_GENERAL_ADAPTERS = 3
RANK = 32


def choose_everywhere(lora: StackedLora, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Each adapter on all tokens; `torch.where` keeps the outputs of those that chose it."""
    output = torch.zeros_like(hidden_states)
    for down, up, weight in zip(lora.down, lora.up, gate.unbind(dim=-1)):
        weight = weight.unsqueeze(-1)
        adapted = hidden_states @ down.T @ up * (weight * lora.scaling)
        output = torch.where(weight != 0, output + adapted, output)
    return output


def choose_tokens(lora: StackedLora, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Each adapter on the tokens that chose it."""
    output = torch.zeros_like(hidden_states)
    for down, up, weight in zip(lora.down, lora.up, gate.unbind(dim=-1)):
        chosen = weight.nonzero(as_tuple=True)  # waits for the device
        adapted = hidden_states[chosen] @ down.T @ up * (weight[chosen].unsqueeze(-1) * lora.scaling)
        output = output.index_put(chosen, adapted, accumulate=True)
    return output


WAYS: dict[str, Callable] = {"torch.where": choose_everywhere, "chosen tokens": choose_tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--batch_size", type=int, default=4, metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    width, num_tokens = SIZES[arguments.size]
    config = HawaiiVisionConfig(
        hidden_size=width,
        num_teacher_adapters=NUM_TEACHER_ADAPTERS,
        num_general_adapters=NUM_GENERAL_ADAPTERS,
        lora_rank=RANK,
        lora_alpha=RANK,
    )
    lora = StackedLora(config, width, width).to(device)
    torch.nn.init.normal_(lora.down, std=width**-0.5)
    torch.nn.init.normal_(lora.up, std=RANK**-0.5)
    hidden_states = torch.randn(arguments.batch_size, num_tokens, width, device=device)
    # One adapter of each bank, as the routers choose.
    numbers = (NUM_TEACHER_ADAPTERS, NUM_GENERAL_ADAPTERS)
    chosen = [torch.randint(number, hidden_states.shape[:2], device=device) for number in numbers]
    gate = torch.cat([F.one_hot(*pair) for pair in zip(chosen, numbers)], dim=-1).to(hidden_states.dtype)
    hidden_states.requires_grad_()

    @torch.no_grad()
    def forward(way: Callable) -> torch.Tensor:
        return way(hidden_states, gate)

    def step(way: Callable) -> list[torch.Tensor]:
        output = way(hidden_states, gate)
        gradients = torch.autograd.grad(output.square().mean(), [hidden_states, lora.down, lora.up])
        return [output.detach(), *gradients]

    print(f"{arguments.size}, {arguments.batch_size} images, {device}, {torch.get_num_threads()} threads")
    for name, way in WAYS.items():
        other = partial(way, lora)
        torch.testing.assert_close(step(lora), step(other), rtol=1e-3, atol=1e-5)
        for part, run in (("forward", forward), ("forward and backward", step)):
            ratio, least, largest = compare(measure([partial(run, other), partial(run, lora)], arguments.rounds))
            print(f"{name} / HAWAII, {part}: {ratio:.3f} (of {arguments.rounds} pairs {least:.3f} to {largest:.3f})")


if __name__ == "__main__":
    main()
