"""
Compares the seconds of a HAWAII with those of transformers' LLaVA with the same weights: of the forward pass of a
prompt with an image (the time to the first token), of one more token after it, and of `generate`. The HAWAII has new
adapters, which add nothing yet. The compared functions run alternately, after a check that their outputs are equal.
On CPUs, seconds are those of this process.

    python benchmarks/model/generation.py --size base

LLaVA runs a layer of its encoder that nothing reads, as LLaVA-1.5 does. `--feature_layer -1` gives it no such layer.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hawaii.benchmarks.measuring.command import find_device, make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, check_equal, time_ways
from hawaii.benchmarks.measuring.sizes import ADAPTERS, CLIP_BASE, CLIP_LARGE, LLAMA_1B
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.tiny.llava import make_llava


# CLIP ViT-L with a Llama of a billion parameters; an encoder with the depth of ViT-L and the widths of ViT-B, whose
# adapters are a larger part of it, with a language model as wide; and a tiny size for the test of this file.
SIZES = {
    "1b": (CLIP_LARGE, LLAMA_1B),
    "base": (
        {**CLIP_BASE, "patch_size": 14, "num_hidden_layers": 24},
        {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 12}
        | {"num_hidden_layers": 12, "vocab_size": 8000, "max_position_embeddings": 1024},
    ),
    "tiny": ({"num_hidden_layers": 3}, {}),
}
WORDS = 32  # tokens of a prompt without those of its image


@torch.no_grad()
def measure_generation(
    size: str = "base", feature_layer: int = -2, new_tokens: int = 16, rounds: int = 9
) -> Iterator[Comparison]:
    """Compares on a random image; `size` is one of `SIZES`, `new_tokens` the length of an answer."""
    device = find_device()
    torch.manual_seed(0)
    vision, text = SIZES[size]
    layers = vision["num_hidden_layers"] - 2 - feature_layer
    theirs: Any = make_llava({**vision, "num_hidden_layers": layers}, text, vision_feature_layer=feature_layer)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours: Any = convert_llava(folder, **ADAPTERS).model
    models = {"HAWAII": ours.to(device), "LLaVA": theirs.to(device)}
    config = ours.config
    input_ids = torch.randint(3, 20, (1, config.vision_config.num_patches + WORDS), device=device)
    input_ids[:, 1 : 1 + config.vision_config.num_patches] = config.image_token_id
    side = config.vision_config.image_size
    prompt = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    prompt["pixel_values"] = torch.randn(1, 3, side, side, device=device)

    def prefill(model: Any) -> torch.Tensor:
        return model(**prompt, logits_to_keep=1).logits

    tokens = torch.randint(3, 20, (new_tokens, 1, 1), device=device)
    caches: dict[int, Any] = {}

    def decode(model: Any) -> torch.Tensor:
        cache = caches[id(model)]
        logits = torch.cat([model(input_ids=token, past_key_values=cache).logits for token in tokens])
        cache.crop(-new_tokens)
        return logits

    def generate(model: Any) -> torch.Tensor:
        options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return model.generate(**prompt, **options)

    parts: dict[str, tuple[Callable, dict[str, float]]] = {
        "prompt with an image, to the first token": (prefill, {"at_most": 1.0}),
        f"{new_tokens} further tokens": (decode, {"at_most": 1.01}),
        f"generate with {new_tokens} tokens": (generate, {}),
    }

    def fill_caches() -> None:
        for model in models.values():
            caches[id(model)] = model(**prompt, logits_to_keep=1).past_key_values

    def ways_of(function: Callable) -> dict[str, Callable]:
        return {name: partial(function, model) for name, model in models.items()}

    fill_caches()
    for function, _ in parts.values():
        check_equal(ways_of(function))
    if device.type == "cuda":  # equal in float32, and timed in bfloat16, which rounds each model differently
        prompt["pixel_values"] = prompt["pixel_values"].bfloat16()
        for model in models.values():
            model.bfloat16()
        fill_caches()
    for part, (function, goal) in parts.items():
        yield time_ways(part, ways_of(function), rounds, process_clock(device), **goal)


def main() -> None:
    parser = make_parser(__doc__, new_tokens=(16, "tokens of an answer"), rounds=9)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--feature_layer", type=int, choices=(-2, -1), default=-2)
    arguments = parser.parse_args()
    print_comparisons(measure_generation(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
