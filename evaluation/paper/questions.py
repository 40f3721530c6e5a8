"""
Prompts and scores of the paper's benchmarks that differ from lmms-eval's.

The files in `tasks/paper` refer to these functions. A document is one row of the data set.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ...files.user_error import UserError
from .benchmarks import DATA_SETS, GQA_IMAGES


# Environment variable with the data folder of a process; without it, the data is loaded from the Hub.
DATA_FOLDER = "HAWAII_DATA_FOLDER"


def is_given(value: str | None) -> bool:
    """Whether a cell of MMBench's table has a value. Empty cells were read as "nan"."""
    return value is not None and str(value).lower() not in ("", "nan", "none")


def mmbench_text(document: dict, lmms_eval_specific_kwargs: dict) -> str:
    """Returns the prompt of LLaVA: the hint, the question and the options, each on a separate line."""
    lines = [document["hint"]] if is_given(document["hint"]) else []
    lines.append(document["question"])
    lines += [f"{letter}. {document[letter]}" for letter in "ABCD" if is_given(document[letter])]
    return lmms_eval_specific_kwargs["pre_prompt"] + "\n".join(lines) + lmms_eval_specific_kwargs["post_prompt"]


def mmbench_result(document: dict, results: list[str]) -> dict:
    """Returns the input of [`mmbench_accuracy`] for one answer, and whether this answer is right."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    names = ("question", "answer", "hint", "source", "split", "category", "L2-category")
    item = {name: document[name] for name in names}
    # A missing option with the value "nan" would be found in "banana".
    item |= {letter: document[letter] if is_given(document[letter]) else None for letter in "ABCD"}
    item |= {"index": int(document["index"]), "prediction": results[0].strip()}
    evaluator = MMBench_Evaluator()
    choices = sorted(evaluator.build_choices(item))
    letter = evaluator.prefetch_answer(item) or extract_mcq_answer(item["prediction"], choices=choices)
    return {"gpt_eval_score": {**item, "score": float(letter == item["answer"])}}


def mmbench_accuracy(results: list[dict]) -> float:
    """Percentage of questions that are answered correctly in every order of their options."""
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    items = [{name: value for name, value in item.items() if name != "score"} for item in results]
    accuracy, _, _ = MMBench_Evaluator().eval_result(items, eval_method="static")
    return 100 * float(accuracy)


def mmmu_result(document: dict, results: list[str]) -> dict:
    """
    Returns lmms-eval's result for one answer, and whether it is right. If lmms-eval draws a random letter, the draw
    depends only on the question, not on earlier questions or on the number of processes.
    """
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu, mmmu_process_results

    state = random.getstate()
    random.seed(document["id"])
    item = mmmu_process_results(document, results)["mmmu_acc"]
    random.setstate(state)
    _, score = evaluate_mmmu([item])
    return {"mmmu_acc": {**item, "score": score["acc"]}}


def seedbench_images(questions):
    """Removes the questions about videos from a `Dataset`."""
    return questions.select([row for row, data_type in enumerate(questions["data_type"]) if data_type == "image"])


def seedbench_result(document: dict, results: list[str]) -> dict:
    """Returns lmms-eval's result for one answer, and whether it is right."""
    from lmms_eval.tasks.seedbench.utils import seed_aggregation_result, seed_process_result

    item = seed_process_result(document, results)["seed_image"]
    return {"seed_image": {**item, "score": seed_aggregation_result([item])}}


def pope_result(document: dict, results: list[str]) -> dict:
    """
    Returns lmms-eval's result for one answer after converting it to yes or no like LLaVA: no if the first sentence
    contains the word "No", "no" or "not", yes otherwise. lmms-eval's F1 ignores other answers.
    """
    from lmms_eval.tasks.pope.utils import pope_process_results

    words = results[0].partition(".")[0].replace(",", "").split(" ")
    return pope_process_results(document, ["no" if {"No", "no", "not"} & {*words} else "yes"])


@contextmanager
def data_from(folder: Path | None) -> Iterator[None]:
    """Context in which this process reads the data of the benchmarks from a folder, or from the Hub without one."""
    before = os.environ.get(DATA_FOLDER)
    os.environ[DATA_FOLDER] = "" if folder is None else str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[DATA_FOLDER]
        else:
            os.environ[DATA_FOLDER] = before


@lru_cache(maxsize=1)
def read_gqa_images(folder: str) -> tuple:
    """Returns GQA's images as a `Dataset` and the row of each name, from the Hub if `folder` is empty."""
    from datasets import DatasetDict, load_dataset

    repository, config, split = DATA_SETS[GQA_IMAGES]
    if folder:
        images = DatasetDict.load_from_disk(Path(folder) / GQA_IMAGES)[split]
    else:
        images = load_dataset(repository, config, split=split)
    return images, {name: row for row, name in enumerate(images["id"])}


def gqa_images() -> tuple:
    """Returns GQA's images from the data folder of this process."""
    return read_gqa_images(os.environ.get(DATA_FOLDER, ""))


def check_gqa_images(questions):
    """Returns a `Dataset` of questions unchanged after checking that their images exist."""
    _, rows = gqa_images()
    if missing := set(questions["imageId"]) - rows.keys():
        raise UserError(
            f"{len(missing)} images of GQA's questions are missing from {GQA_IMAGES}, such as {min(missing)}."
        )
    return questions


def gqa_image(document: dict) -> list:
    """Returns the image of a question."""
    images, rows = gqa_images()
    return [images[rows[document["imageId"]]]["image"].convert("RGB")]
