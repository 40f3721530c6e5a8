"""What `bench.py` measures, with the sizes for a CPU and for a GPU, and how the page describes it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hawaii.benchmarks.measuring.comparison import Comparison
from hawaii.benchmarks.model.generation import measure_generation
from hawaii.benchmarks.model.mixture_lora import measure_mixture
from hawaii.benchmarks.model.tiles import measure_tiles
from hawaii.benchmarks.model.vision_tower import measure_passes, measure_tower
from hawaii.benchmarks.serving.serving import measure_serving
from hawaii.benchmarks.training.data_loader import measure_loader
from hawaii.benchmarks.training.monitoring import measure_monitoring
from hawaii.benchmarks.training.step_flops import measure_flops
from hawaii.benchmarks.training.teacher_cache import measure_cache
from hawaii.benchmarks.training.text_loss import measure_text_loss
from hawaii.benchmarks.training.training_step import measure_step


@dataclass(frozen=True)
class Measurement:
    """
    One section of the page.

    Args:
        title, note (`str`):
            Its title, and sentences about what is compared.
        function (`Callable`):
            Yields the comparisons.
        on_cpu, on_gpu (`dict`):
            Arguments of the function on each kind of device.
    """

    title: str
    note: str
    function: Callable[..., Iterable[Comparison]]
    on_cpu: dict
    on_gpu: dict


VLLM = "vllm"
# By the names of their results. vLLM is measured only if there is an environment with it.
MEASUREMENTS = {
    "encoder": Measurement(
        "Encoder",
        "CLIP ViT-L/14-336. The student has the layers whose features LLaVA reads, and adapters; CLIP has one layer "
        "more. On a GPU in bfloat16.",
        measure_tower,
        {"rounds": 5},
        {"batch_size": 16, "rounds": 15},
    ),
    "passes": Measurement(
        "Passes of the encoder in training",
        "CLIP ViT-B/16 on a CPU, ViT-L/14-336 on a GPU, in float32 and without gradients; with them, see the seconds "
        "of a training step.",
        measure_passes,
        {"rounds": 5},
        {"size": "large", "batch_size": 8, "rounds": 15},
    ),
    "adapters": Measurement(
        "Mixture of adapters",
        "Three teachers' and three general adapters of rank 16, on the tokens of CLIP ViT-L/14-336, in float32. "
        "MoVE-KD's code chooses with `torch.where`; PEFT loops over the adapters of a batch, each on its samples, "
        "here on its tokens.",
        measure_mixture,
        {"batch_size": 2, "rounds": 25},
        {"batch_size": 16, "rounds": 25},
    ),
    "generation": Measurement(
        "Answers",
        "The same weights in transformers' LLaVA, and new adapters. On a CPU an encoder of CLIP ViT-L's 24 layers and "
        "ViT-B's widths, whose adapters are a larger part of it, and a Llama of 12 layers of width 768; on a GPU CLIP "
        "ViT-L/14-336 and a Llama of a billion parameters, in bfloat16. LLaVA runs the last layer of its encoder, "
        "which nothing reads.",
        measure_generation,
        {"rounds": 9},
        {"size": "1b", "rounds": 15},
    ),
    "tiles": Measurement(
        "Answers about tiles",
        "The same weights in transformers' LLaVA-NeXT, and new adapters, in float32: CLIP ViT-L/14 with tiles of 56 "
        "pixels and a Llama of 2 layers of width 512. LLaVA-NeXT runs the last layer of its encoder, which nothing "
        "reads.",
        measure_tiles,
        {"rounds": 5},
        {"rounds": 15},
    ),
    VLLM: Measurement(
        "vLLM",
        "CPU milliseconds of two processes, with vLLM's backend for models of transformers: CLIP ViT-L/14 with images "
        "of 84 pixels and a Llama of 4 layers of width 1024. LLaVA runs the last layer of its encoder, which nothing "
        "reads.",
        measure_serving,
        {"rounds": 5},
        {"rounds": 5},
    ),
    "operations": Measurement(
        "Operations of a training step",
        "CLIP ViT-L/14-336 and Vicuna 7B with the paper's three teachers: counted on modules without weights, not "
        "timed. The goals are for images of 320 and 448 pixels for ConvNeXt and EVA-02; the presets have 768 and 448. "
        "A sample is an image of 576 tokens and 64 of text: with more text all ratios are lower.",
        measure_flops,
        {},
        {},
    ),
    "step": Measurement(
        "Seconds of a training step",
        "Students with the same weights, whose text losses are equal. HAWAII's runs its encoder once for each teacher "
        "and once routed. A step has no optimizer. On a CPU the encoder has 7 layers of width 256 and the Llama 8 of "
        "width 768; on a GPU they are CLIP ViT-L/14-336 and a Llama of a billion parameters, in bfloat16. A DINOv2 of "
        "the same size stands for EVA-02.",
        measure_step,
        {"batch_size": 2, "rounds": 4},
        {"size": "1b", "batch_size": 8, "rounds": 15},
    ),
    "text_loss": Measurement(
        "Text loss",
        "Scores of the vocabulary at labels only, as in training, and at every position; on the CPU.",
        measure_text_loss,
        {},
        {},
    ),
    "monitoring": Measurement(
        "Monitoring",
        "Throughput, operations and the load of the adapters, which are logged after ten steps; an encoder and a "
        "Llama of 6 layers of width 256.",
        measure_monitoring,
        {"rounds": 5},
        {"rounds": 15},
    ),
    "data_loader": Measurement(
        "Data loader",
        "A worker's sample, and the same in plain Pillow and transformers; on the CPU.",
        measure_loader,
        {"rounds": 15},
        {"rounds": 15},
    ),
    "cache": Measurement(
        "Cache of the teachers' features",
        "A forward pass of one teacher, CLIP ViT-B/16, and reading its features, with the hash of the image; on the "
        "CPU.",
        measure_cache,
        {"rounds": 5},
        {"rounds": 5},
    ),
}
