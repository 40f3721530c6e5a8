"""
How the benchmarks of the paper are asked and scored where lmms-eval's own functions will not do.

The files in `tasks/paper` name these functions. A document is one row of the data set.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ...files.user_error import UserError
from .benchmarks import DATA_SETS, GQA_IMAGES


# Says to a process of lmms-eval where data lies that it would otherwise get from the Hub.
DATA_FOLDER = "HAWAII_DATA_FOLDER"


def is_given(value: str | None) -> bool:
    """Whether MMBench's table has something there; an empty cell was read as "nan"."""
    return value is not None and str(value).lower() not in ("", "nan", "none")


def mmbench_text(document: dict, lmms_eval_specific_kwargs: dict) -> str:
    """The hint, the question and the options, each on a line of its own, as LLaVA asks."""
    lines = [document["hint"]] if is_given(document["hint"]) else []
    lines.append(document["question"])
    lines += [f"{letter}. {document[letter]}" for letter in "ABCD" if is_given(document[letter])]
    return lmms_eval_specific_kwargs["pre_prompt"] + "\n".join(lines) + lmms_eval_specific_kwargs["post_prompt"]


def mmbench_result(document: dict, results: list[str]) -> dict:
    """What [`mmbench_accuracy`] reads of one answer, and whether this answer alone is right."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    names = ("question", "answer", "hint", "source", "split", "category", "L2-category")
    item = {name: document[name] for name in names}
    # As "nan", an option that is not there would be found in "banana".
    item |= {letter: document[letter] if is_given(document[letter]) else None for letter in "ABCD"}
    item |= {"index": int(document["index"]), "prediction": results[0].strip()}
    evaluator = MMBench_Evaluator()
    choices = sorted(evaluator.build_choices(item))
    said = evaluator.prefetch_answer(item) or extract_mcq_answer(item["prediction"], choices=choices)
    return {"gpt_eval_score": {**item, "score": float(said == item["answer"])}}


def mmbench_accuracy(results: list[dict]) -> float:
    """Percent of the questions that are answered rightly in every order of their options."""
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    items = [{name: value for name, value in item.items() if name != "score"} for item in results]
    accuracy, _, _ = MMBench_Evaluator().eval_result(items, eval_method="static")
    return 100 * float(accuracy)


def mmmu_result(document: dict, results: list[str]) -> dict:
    """
    What lmms-eval makes of one answer, and whether it is right; where it draws a letter, the draw depends on the
    question alone: not on those before it, nor on how many processes share them.
    """
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu, mmmu_process_results

    state = random.getstate()
    random.seed(document["id"])
    item = mmmu_process_results(document, results)["mmmu_acc"]
    random.setstate(state)
    _, score = evaluate_mmmu([item])
    return {"mmmu_acc": {**item, "score": score["acc"]}}


def seedbench_images(questions):
    """Leaves the questions about videos out of a `Dataset`."""
    return questions.select([row for row, kind in enumerate(questions["data_type"]) if kind == "image"])


def seedbench_result(document: dict, results: list[str]) -> dict:
    """What lmms-eval makes of one answer, and whether it is right."""
    from lmms_eval.tasks.seedbench.utils import seed_aggregation_result, seed_process_result

    item = seed_process_result(document, results)["seed_image"]
    return {"seed_image": {**item, "score": seed_aggregation_result([item])}}


def pope_result(document: dict, results: list[str]) -> dict:
    """
    What lmms-eval makes of one answer once that is a yes or a no, as LLaVA reads it: no, where "No", "no" or "not" is
    a word of its first sentence, and yes otherwise. In lmms-eval's F1 an answer that is neither would not count.
    """
    from lmms_eval.tasks.pope.utils import pope_process_results

    words = results[0].partition(".")[0].replace(",", "").split(" ")
    return pope_process_results(document, ["no" if {"No", "no", "not"} & {*words} else "yes"])


@contextmanager
def data_from(folder: Path | None) -> Iterator[None]:
    """Lets the questions that are read in this process meanwhile have their data from a folder, or from the Hub."""
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
    """GQA's images as a `Dataset`, and the row of each name; the Hub's, where no folder is named."""
    from datasets import DatasetDict, load_dataset

    repository, config, split = DATA_SETS[GQA_IMAGES]
    if folder:
        images = DatasetDict.load_from_disk(Path(folder) / GQA_IMAGES)[split]
    else:
        images = load_dataset(repository, config, split=split)
    return images, {name: row for row, name in enumerate(images["id"])}


def gqa_images() -> tuple:
    """Those of where this process has its data from."""
    return read_gqa_images(os.environ.get(DATA_FOLDER, ""))


def check_gqa_images(questions):
    """Returns a `Dataset` of questions as it is."""
    _, rows = gqa_images()
    if missing := set(questions["imageId"]) - rows.keys():
        raise UserError(f"{GQA_IMAGES} lacks {len(missing)} images of GQA's questions, among them {min(missing)}.")
    return questions


def gqa_image(document: dict) -> list:
    """The one image of a question."""
    images, rows = gqa_images()
    return [images[rows[document["imageId"]]]["image"].convert("RGB")]
