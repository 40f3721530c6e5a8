"""The ten benchmarks of the paper's Table 1: their lmms-eval tasks, data sets and metrics."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """
    One column of Table 1.

    Args:
        column (`str`):
            Column heading in the paper.
        data_set (`str`):
            Name given by its authors.
        packaged (`str`):
            Task file of lmms-eval that `tasks/paper/TASK.yaml` overrides, relative to lmms-eval's folder `tasks`.
        repository (`str`), config (`str`, *optional*), split (`str`):
            Location of the questions on the Hub.
        columns (`tuple[str, ...]`):
            Columns that prompts and scores use.
        metric (`str`):
            Metric of the task that the paper reports.
        metric_type (`str`):
            Type of the metric on the Hub.
        scale (`float`):
            Factor from the value of lmms-eval to that of the paper, such as 100 from a fraction to percent.
    """

    column: str
    data_set: str
    packaged: str
    repository: str
    config: str | None
    split: str
    columns: tuple[str, ...]
    metric: str = "exact_match"
    metric_type: str = "accuracy"
    scale: float = 100


MMMU_COLUMNS = ("id", "question", "options", "question_type", "answer", *(f"image_{n}" for n in range(1, 8)))
MMBENCH_COLUMNS = ("index", "image", "question", "hint", "answer", "category", "source", "L2-category", "split")

# In the order of the paper's columns.
BENCHMARKS = {
    "textvqa_val": Benchmark(
        "VQA-Text",
        "TextVQA",
        "textvqa/textvqa_val.yaml",
        "lmms-lab-encoder/textvqa",
        None,
        "validation",
        ("question_id", "question", "image", "answers", "ocr_tokens"),
    ),
    "vizwiz_vqa_val": Benchmark(
        "VizWiz",
        "VizWiz",
        "vizwiz_vqa/vizwiz_vqa_val.yaml",
        "lmms-lab-encoder/VizWiz-VQA",
        None,
        "val",
        ("question_id", "question", "image", "answers"),
    ),
    "gqa": Benchmark(
        "GQA",
        "GQA",
        "gqa/gqa.yaml",
        "lmms-lab-encoder/GQA",
        "testdev_balanced_instructions",
        "testdev",
        ("imageId", "question", "answer"),
    ),
    "scienceqa_img": Benchmark(
        "SQA",
        "ScienceQA-IMG",
        "scienceqa/scienceqa_img.yaml",
        "lmms-lab-encoder/ScienceQA",
        "ScienceQA-IMG",
        "test",
        ("image", "question", "choices", "answer", "hint"),
    ),
    "pope": Benchmark(
        "POPE",
        "POPE",
        "pope/pope.yaml",
        "lmms-lab-encoder/POPE",
        None,
        "test",
        ("question_id", "question", "answer", "image"),
        metric="pope_f1_score",
        metric_type="f1",
    ),
    "mme": Benchmark(
        "MME",
        "MME",
        "mme/mme.yaml",
        "lmms-lab-encoder/MME",
        None,
        "test",
        ("question_id", "image", "question", "answer", "category"),
        metric="mme_perception_score",
        metric_type="score",
        scale=1,
    ),
    # lmms-eval uses the name gpt_eval_score even without a GPT. The score is already in percent.
    "mmbench_en_dev_static": Benchmark(
        "MMBench",
        "MMBench-EN",
        "mmbench/mmbench_en_dev_static.yaml",
        "lmms-lab-encoder/MMBench",
        "en",
        "dev",
        (*MMBENCH_COLUMNS, "A", "B", "C", "D"),
        metric="gpt_eval_score",
        scale=1,
    ),
    "mmmu_val": Benchmark(
        "MMMU",
        "MMMU",
        "mmmu/mmmu_val.yaml",
        "lmms-lab-encoder/MMMU",
        None,
        "validation",
        MMMU_COLUMNS,
        metric="mmmu_acc",
    ),
    "ai2d": Benchmark(
        "AI2D",
        "AI2D",
        "ai2d/ai2d.yaml",
        "lmms-lab-encoder/ai2d",
        None,
        "test",
        ("question", "options", "answer", "image"),
    ),
    "seedbench": Benchmark(
        "SeedBench-I",
        "SEED-Bench (images)",
        "seedbench/seedbench.yaml",
        "lmms-lab-encoder/SEED-Bench",
        None,
        "test",
        ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_type", "image", "question", "question_id"),
        metric="seed_image",
    ),
}
SUITES = {"paper": tuple(BENCHMARKS)}

# GQA has a separate data set with its images.
GQA_IMAGES = "gqa_images"
GQA_IMAGES_CONFIG = "testdev_balanced_images"

# Repository, configuration and split on the Hub of each data set in a data folder.
DATA_SETS = {name: (each.repository, each.config, each.split) for name, each in BENCHMARKS.items()}
DATA_SETS[GQA_IMAGES] = (BENCHMARKS["gqa"].repository, GQA_IMAGES_CONFIG, BENCHMARKS["gqa"].split)
