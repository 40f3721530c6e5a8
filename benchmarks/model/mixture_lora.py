"""
Compares the time of the mixture of LoRA adapters with two other ways to compute it: each adapter on all tokens, of
which `torch.where` chooses, as in MoVE-KD's code; and each adapter on the tokens that chose it, a loop like PEFT's
over the adapters of a batch, each on the samples that name it. All three run alternately, after a check that outputs
and gradients are equal.

    python benchmarks/model/mixture_lora.py --size large
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from hawaii import HawaiiVisionConfig
from hawaii.benchmarks.measuring.command import find_device, make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, check_equal, time_ways
from hawaii.modeling_hawaii.mixture_lora_hawaii import StackedLora


# Width and number of tokens of CLIP ViT-B/16 and ViT-L/14-336, and a tiny size for the test of this file.
SIZES = {"base": (768, 197), "large": (1024, 577), "tiny": (32, 17)}
NUM_TEACHER_ADAPTERS = NUM_GENERAL_ADAPTERS = 3
RANK = 16


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
        output.index_put_(chosen, adapted, accumulate=True)
    return output


WAYS: dict[str, Callable] = {
    "torch.where over all adapters": choose_everywhere,
    "each adapter on its tokens": choose_tokens,
}


def measure_mixture(size: str = "large", batch_size: int = 4, rounds: int = 15) -> Iterator[Comparison]:
    """Compares on random tokens; `size` is one of `SIZES`."""
    device = find_device()
    torch.manual_seed(0)
    width, num_tokens = SIZES[size]
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
    hidden_states = torch.randn(batch_size, num_tokens, width, device=device)
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
        gradients = torch.autograd.grad(output.square().sum(), [hidden_states, lora.down, lora.up])
        return [output.detach(), *gradients]

    def scaled(run: Callable, way: Callable) -> list[torch.Tensor]:
        """Results whose largest value is 1: sums over all tokens have larger errors than the values of one token."""
        results = run(way)
        return [result / result.abs().max() for result in (results if isinstance(results, list) else [results])]

    goal = 1.05 if device.type == "cpu" else 1.3
    for name, way in WAYS.items():
        for part, run in (("forward", forward), ("forward and backward", step)):
            functions = {name: partial(way, lora), "HAWAII": lora}
            check_equal({each: partial(scaled, run, function) for each, function in functions.items()}, atol=1e-5)
            yield time_ways(
                f"the mixture of adapters, {part}",
                {each: partial(run, function) for each, function in functions.items()},
                rounds,
                process_clock(device),
                **({"at_least": goal} if way is choose_everywhere else {}),
            )


def main() -> None:
    parser = make_parser(__doc__, batch_size=4, rounds=15)
    parser.add_argument("--size", choices=SIZES, default="large")
    arguments = parser.parse_args()
    print_comparisons(measure_mixture(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
