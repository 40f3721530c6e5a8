"""Tests of prompts and scores that differ from lmms-eval's."""

import random

import pytest
from datasets import Dataset, load_from_disk

from hawaii.evaluation.paper import questions as paper_questions
from hawaii.evaluation.paper.questions import (
    DATA_FOLDER,
    check_gqa_images,
    gqa_image,
    mmbench_accuracy,
    mmbench_result,
    mmbench_text,
    mmmu_result,
    pope_result,
    seedbench_images,
    seedbench_result,
)
from hawaii.tests.evaluation.stand_ins import image, questions, save_data


PROMPT = {"pre_prompt": "", "post_prompt": "\nAnswer."}


def mmbench(index=0, answer="A", **fields):
    return {**questions("mmbench_en_dev_static")[0], "index": index, "answer": answer, **fields}


@pytest.fixture
def gqa_data(tmp_path, monkeypatch):
    """A data folder with only GQA's images."""
    save_data(tmp_path, "gqa_images", [{"id": color, "image": image(color)} for color in ("red", "blue")])
    monkeypatch.setenv(DATA_FOLDER, str(tmp_path))
    paper_questions.read_gqa_images.cache_clear()
    yield tmp_path
    paper_questions.read_gqa_images.cache_clear()


@pytest.mark.parametrize("nothing", ["nan", "", None, "None"])
def test_mmbench_omits_empty_cells_from_the_prompt(nothing):
    document = mmbench(hint=nothing, D=nothing)
    assert mmbench_text(document, PROMPT) == "What is in it, 0?\nA. a dog\nB. a cat\nC. an ox\nAnswer."


def test_mmbench_puts_the_hint_first():
    assert mmbench_text(mmbench(hint="A hint."), PROMPT).startswith("A hint.\nWhat is in it, 0?\nA. a dog\n")


def test_mmbench_counts_questions_that_are_right_in_every_order_of_their_options():
    first = [mmbench_result(mmbench(0), ["A"]), mmbench_result(mmbench(1_000_000, answer="B"), ["B"])]
    second = [mmbench_result(mmbench(1), ["A. a dog"]), mmbench_result(mmbench(1_000_001, answer="C"), ["A"])]
    results = [result["gpt_eval_score"] for result in first + second]
    assert [result["score"] for result in results] == [1, 1, 1, 0]
    assert mmbench_accuracy(results) == 50


def test_mmbench_reads_an_index_that_was_saved_as_text():
    assert mmbench_accuracy([mmbench_result(mmbench("3"), ["A"])["gpt_eval_score"]]) == 100


def test_a_missing_option_is_not_found_in_an_answer():
    # "banana" holds "nan", the word for an empty cell.
    result = mmbench_result(mmbench(B="banana", C="nan", D="nan", answer="B"), ["banana"])
    assert result["gpt_eval_score"]["score"] == 1


def test_a_random_letter_depends_only_on_the_question():
    documents = [{**document, "answer": "B"} for document in questions("mmmu_val")[:3]]

    def draw(documents):
        return {document["id"]: mmmu_result(document, ["?"])["mmmu_acc"]["parsed_pred"] for document in documents}

    alone = {}
    for document in documents:
        random.seed()
        alone.update(draw([document]))
    assert alone == draw(documents) == draw(documents[::-1])


def test_a_random_letter_does_not_change_the_random_state():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    mmmu_result({**questions("mmmu_val")[0], "answer": "B"}, ["?"])
    assert random.random() == expected


@pytest.mark.parametrize(("answer", "score"), [("B", 1), ("(B)", 1), ("A", 0)])
def test_mmmu_scores_each_question(answer, score):
    assert mmmu_result({**questions("mmmu_val")[0], "answer": "B"}, [answer])["mmmu_acc"]["score"] == score


def test_questions_about_videos_are_removed_from_seedbench():
    kept = seedbench_images(Dataset.from_list([{"data_type": kind} for kind in ("image", "video", "image")]))
    assert kept["data_type"] == ["image", "image"]


def test_seedbench_scores_each_question():
    document = {"answer": "B", "data_type": "image", "question_id": "1"}
    assert seedbench_result(document, ["B. two"])["seed_image"]["score"] == 1
    assert seedbench_result(document, ["C"])["seed_image"]["score"] == 0


def pope(answer, truth="yes"):
    """Returns the input of the F1 score for an answer to POPE."""
    return pope_result({"question_id": "1", "answer": truth}, [answer])["pope_f1_score"]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("No.", "no"),
        ("No, there is a cat", "no"),
        ("There is not", "no"),
        ("I see, no, a cat. Yes", "no"),
        ("Yes. There is no cat", "yes"),
        ("Nothing", "yes"),
        ("NO", "yes"),
        ("a dog", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_each_answer_as_llava_does(answer, read):
    assert (pope(answer)["prediction"], pope(answer)["score"]) == (read, float(read == "yes"))


def test_every_answer_counts_for_popes_score():
    from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score

    answers = [("yes", "yes"), ("Yes.", "yes"), ("a dog", "yes"), ("maybe", "no")]
    # Precision 3/4, recall 1.
    assert pope_aggregate_f1_score([pope(*answer) for answer in answers]) == pytest.approx(6 / 7)


def test_gqas_image_is_looked_up_by_its_name(gqa_data):
    (picture,) = gqa_image({"imageId": "blue"})
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (0, 0, 255)


def test_without_a_data_folder_gqas_images_come_from_the_hub(gqa_data, monkeypatch):
    images = load_from_disk(gqa_data / "gqa_images")["testdev"]
    asked = []
    monkeypatch.delenv(DATA_FOLDER)
    monkeypatch.setattr("datasets.load_dataset", lambda *place, **split: asked.append((place, split)) or images)
    assert len(gqa_image({"imageId": "red"})) == 1
    assert asked == [(("lmms-lab-encoder/GQA", "testdev_balanced_images"), {"split": "testdev"})]


def test_the_error_names_an_image_that_gqa_lacks_before_any_question(gqa_data):
    rows = Dataset.from_list([{"imageId": "red"}, {"imageId": "n1"}])
    with pytest.raises(ValueError, match="1 images of GQA's questions are missing from gqa_images, such as n1"):
        check_gqa_images(rows)
    assert check_gqa_images(rows.select([0]))["imageId"] == ["red"]
