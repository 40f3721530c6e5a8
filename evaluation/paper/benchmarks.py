"""The ten benchmarks of the paper's Table 1: which task of lmms-eval, which data, which of its numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """
    One column of Table 1.

    Args:
        column (`str`):
            Its heading in the paper.
        data_set (`str`):
            The name that its authors gave it.
        packaged (`str`):
            The file of lmms-eval's that `tasks/paper/TASK.yaml` is laid over, under its folder `tasks`.
        repository (`str`), config (`str`, *optional*), split (`str`):
            Where that file finds the questions on the Hub.
        columns (`tuple[str, ...]`):
            What asking and scoring read of a question.
        metric (`str`):
            Which of the task's numbers the paper shows.
        kind (`str`):
            What the Hub calls such a number.
        scale (`float`):
            What makes the number the paper's: 100 where lmms-eval gives a share and the paper percent.
    """

    column: str
    data_set: str
    packaged: str
    repository: str
    config: str | None
    split: str
    columns: tuple[str, ...]
    metric: str = "exact_match"
    kind: str = "accuracy"
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
        kind="f1",
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
        kind="score",
        scale=1,
    ),
    "mmbench_en_dev_static": Benchmark(
        "MMBench",
        "MMBench-EN",
        "mmbench/mmbench_en_dev_static.yaml",
        "lmms-lab-encoder/MMBench",
        "en",
        "dev",
        (*MMBENCH_COLUMNS, "A", "B", "C", "D"),
        metric="gpt_eval_score",  # as lmms-eval names it also where no GPT reads the answers; in percent already
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

# GQA keeps its images apart from its questions.
GQA_IMAGES = "gqa_images"
GQA_IMAGES_CONFIG = "testdev_balanced_images"

# What to put under which name of a data folder: repository, configuration and split on the Hub.
DATA_SETS = {name: (each.repository, each.config, each.split) for name, each in BENCHMARKS.items()}
DATA_SETS[GQA_IMAGES] = (BENCHMARKS["gqa"].repository, GQA_IMAGES_CONFIG, BENCHMARKS["gqa"].split)
