"""
Compares the CPU seconds that vLLM needs for a request to a HAWAII and to a LLaVA of transformers, both through vLLM's
backend for models of transformers. The LLaVA is converted to the HAWAII, whose new adapters add nothing yet, so both
give the same answers. Two processes, each with one thread and one model, answer the same questions alternately.

    python benchmarks/serving/serving.py --python .venv-vllm/bin/python

LLaVA runs a layer of its encoder that nothing reads. `--feature_layer -1` gives it no such layer.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from hawaii.benchmarks.measuring.command import make_parser, print_comparisons
from hawaii.benchmarks.measuring.comparison import Comparison, run_in_turn
from hawaii.benchmarks.measuring.sizes import ADAPTERS, CLIP_LARGE
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.modeling_hawaii.conversion.llava_checkpoint import read_llava
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.tiny.llava import CLIP, TEXT, randomize
from hawaii.tests.tiny.models import make_tokenizer
from hawaii.training.students.convert import build_llava_processor


# CLIP ViT-L/14 with small images, of whose 24 layers the language model reads the last but one, with few layers of a
# language model; and a tiny size for the test.
SIZES = {
    "wide": (
        {**CLIP_LARGE, "num_hidden_layers": 23, "image_size": 84},
        {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_hidden_layers": 4},
    ),
    "tiny": (
        {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
        | {"image_size": 16, "patch_size": 4},
        {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 2},
    ),
}
# As in the Makefile: glibc gives large tensors back to the system, and getting them again costs some percent of the
# seconds, of one process more than of the other.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_TOP_PAD_": "268435456",
}
WORKER = Path(__file__).with_name("serve_requests.py")


def save_llava(folder: Path, size: str, feature_layer: int) -> None:
    """Saves a LLaVA with random weights. Layers that follow the one of the features have no effect, as in LLaVA."""
    vision, text = SIZES[size]
    tokenizer = make_tokenizer()
    num_layers = vision["num_hidden_layers"] - 1 - feature_layer
    config = LlavaConfig(
        vision_config={**CLIP, **vision, "num_hidden_layers": num_layers},
        text_config={**TEXT, "num_key_value_heads": text["num_attention_heads"], "vocab_size": len(tokenizer), **text}
        | {"max_position_embeddings": 1024},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=feature_layer,
    )
    model = LlavaForConditionalGeneration(config)
    randomize(model)
    model.save_pretrained(folder)
    side = {"height": vision["image_size"], "width": vision["image_size"]}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side["height"]}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=load_chat_template("vicuna_v1"),
    ).save_pretrained(folder)


def save_hawaii(folder: Path, llava: Path) -> None:
    """Converts the LLaVA, with new adapters."""
    model, _ = convert_llava(str(llava), **ADAPTERS)
    model.save_pretrained(folder)
    build_llava_processor(read_llava(str(llava), None)).save_pretrained(folder)


class Worker:
    """A process that answers the questions with one folder, again for each line that it gets."""

    def __init__(self, command: list):
        environment = {**KEEP_MEMORY, **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            list(map(str, command)), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answers = self.read()["answers"]  # of a first round, which is not counted

    def read(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{WORKER.name} ended with status {self.process.wait()}.")
        return json.loads(line)

    def seconds(self) -> float:
        """CPU seconds of all requests."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self.read()["seconds"]


def measure_serving(
    python: str, size: str = "wide", feature_layer: int = -2, requests: int = 8, tokens: int = 16, rounds: int = 10
) -> Iterator[Comparison]:
    """
    Compares the answers to `requests` questions in one batch, each of `tokens` tokens. `python` belongs to an
    environment with vLLM; `size` is one of `SIZES`.

    Raises:
        SystemExit: the answers differ, or a process ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        llava, hawaii = Path(folder) / "llava", Path(folder) / "hawaii"
        save_llava(llava, size, feature_layer)
        save_hawaii(hawaii, llava)
        ours, theirs = (Worker([python, WORKER, path, requests, tokens]) for path in (hawaii, llava))
        with ours.process, theirs.process:  # they end when their input is closed
            if ours.answers != theirs.answers:
                raise SystemExit(f"The answers differ: {ours.answers} of HAWAII, {theirs.answers} of LLaVA.")
            seconds = run_in_turn([ours.seconds, theirs.seconds], rounds)
            pairs = [(1e3 * our / requests, 1e3 * their / requests) for our, their in seconds]
    yield Comparison(f"a request to vLLM, {requests} at a time", "HAWAII", "LLaVA", pairs)


def main() -> None:
    parser = make_parser(
        __doc__, requests=(8, "of one image each, in one batch"), tokens=(16, "of each answer"), rounds=10
    )
    parser.add_argument(
        "--python", default=sys.executable, help="of an environment with vLLM; it needs no other package"
    )
    parser.add_argument("--size", choices=SIZES, default="wide")
    parser.add_argument("--feature_layer", type=int, choices=(-2, -1), default=-2)
    arguments = parser.parse_args()
    print_comparisons(measure_serving(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
