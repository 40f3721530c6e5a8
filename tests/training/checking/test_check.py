"""`hawaii check` finds every broken row with its reason, none of them blocks it, and training uses its result."""

import json
import logging
import os
import re
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_image, make_record, write_recipe
from hawaii.tests.tiny.waiting import HANG_SECONDS, wait_until_gone
from hawaii.training.checking import pool
from hawaii.training.checking.check import check
from hawaii.training.checking.rows import AllConversations, AllRows, Row
from hawaii.training.data.conversation_dataset import ConversationDataset
from hawaii.training.train import train

from .broken import BROKEN_FILES, BROKEN_IMAGES, BROKEN_RECORDS, GOOD, GOOD_IMAGES, huge_line, make_special_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def recipe(tmp_path, teacher_folders):
    """A recipe of one stage and without teachers, over 14 good rows."""
    stages = {"finetune": {"max_length": 300}}
    return write_recipe(tmp_path, teacher_folders, stages=stages, objective="llava", max_steps=2)


def write_rows(folder, rows: list[str]) -> None:
    make_image(0).save(folder / "images" / "good.png")
    (folder / "data.json").write_text("[" + ",\n".join(rows) + "]")


def read_report(folder) -> dict:
    (source,) = json.loads((folder / "run" / "check.json").read_text())["sources"]
    return source


def test_every_broken_image_is_found_and_every_good_one_is_not(tmp_path, recipe):
    images = tmp_path / "images"
    for kind, content in {**BROKEN_IMAGES, **GOOD_IMAGES}.items():
        (images / f"{kind}.jpg").write_bytes(content)
    broken = [f"{kind}.jpg" for kind in BROKEN_IMAGES] + make_special_files(images)
    good = [f"{kind}.jpg" for kind in GOOD_IMAGES]
    write_rows(tmp_path, [json.dumps({**GOOD, "id": name, "image": name}) for name in broken + good])
    with pytest.raises(
        UserError,
        match=rf"{len(broken)} of {len(broken + good)} rows of .* training would stop; .*check\.md lists them",
    ):
        check(str(recipe))
    bad = {row["id"]: row["reason"] for row in read_report(tmp_path)["bad"]}
    assert set(bad) == set(broken)
    assert all(re.fullmatch(r"its image .{10,600}", reason) for reason in bad.values())
    assert not any("longer than" in reason for reason in bad.values())  # none is waited for


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_every_broken_record_is_found_with_its_place(tmp_path, recipe, name):
    rows = [json.dumps(GOOD), *BROKEN_RECORDS.values()]
    write_rows(tmp_path, rows)
    if name == "data.jsonl":
        (tmp_path / name).write_text("\n".join(rows))
    with pytest.raises(UserError, match=f"{len(BROKEN_RECORDS)} of {len(rows)} rows of .*{name} cannot be used"):
        check(str(recipe), [f"data_path={tmp_path / name}"])
    report = read_report(tmp_path)
    found = {row["index"]: row for row in report["bad"]}
    missed = [kind for index, kind in enumerate(BROKEN_RECORDS, start=1) if index not in found]
    assert missed == [] and 0 not in found
    lines = [row["line"] for row in found.values()]
    assert lines == ([None] * len(found) if name == "data.json" else [index + 1 for index in found])
    assert report["effect"] == "training stops"
    assert all(10 < len(row["reason"]) < 1000 for row in found.values())


@pytest.mark.parametrize(("content", "problem"), BROKEN_FILES.values(), ids=BROKEN_FILES)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_broken_file_is_one_sentence_under_every_policy(tmp_path, recipe, content, problem, policy, capsys):
    (tmp_path / "data.json").write_bytes(content)
    assert main(["check", str(recipe), f"bad_records={policy}"]) == 2
    captured = capsys.readouterr()
    assert re.search(rf"^hawaii check: .*data\.json.*({problem})", captured.err, re.M), captured.err
    assert "Traceback" not in captured.err and read_report(tmp_path)["effect"] == "training stops"


def test_a_huge_line_is_no_problem(tmp_path, recipe):
    (tmp_path / "data.json").write_text(huge_line())
    make_image(0).save(tmp_path / "images" / "good.png")
    check(str(recipe))
    assert read_report(tmp_path)["rows"]["bad"] == 0


def test_good_data_are_counted_and_the_status_is_0(tmp_path, recipe, capsys):
    assert main(["check", str(recipe)]) == 0
    report = read_report(tmp_path)
    kinds = {"rows": 14, "one image": 12, "several images": 0, "text only": 2, "several turns": 10, "bad": 0}
    assert report["rows"] == kinds
    dataset = ConversationDataset(str(tmp_path / "data.json"), str(tmp_path / "images"), make_processor())
    lengths = sorted(len(dataset[index]["input_ids"]) for index in range(len(dataset)))
    tokens = report["tokens"]
    assert (tokens["min"], tokens["max"], tokens["truncated"]) == (lengths[0], lengths[-1], 0)
    assert tokens["median"] in lengths[6:8]
    output = capsys.readouterr().out
    assert "check.md" in output and (tmp_path / "run" / "check.md").read_text().count("\n| ") >= 2


def test_truncated_rows_are_counted_before_truncation(tmp_path, recipe):
    check(str(recipe))
    longest = read_report(tmp_path)["tokens"]["max"]
    check(str(recipe), [f"stages.finetune.max_length={longest - 1}"])
    tokens = read_report(tmp_path)["tokens"]
    assert tokens["max"] == longest and tokens["truncated"] >= 1


def test_skip_says_how_many_rows_it_skips_and_is_no_error(tmp_path, recipe, capsys):
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    assert main(["check", str(recipe)]) == 2
    assert "1 of 14 rows of" in capsys.readouterr().err
    assert main(["check", str(recipe), "bad_records=skip"]) == 0
    assert read_report(tmp_path)["effect"] == "skips 1 of 14 rows"
    assert read_report(tmp_path)["bad"][0]["id"] == "3"


def test_questions_are_checked_and_never_skipped(tmp_path, recipe, capsys):
    questions = [make_record(0), make_record(1, questions=2)]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    overrides = [f"eval_data_path={tmp_path / 'questions.json'}", "eval_strategy=steps", "eval_steps=1"]
    assert main(["check", str(recipe), "bad_records=skip", *overrides]) == 2
    assert "1 of 2 rows of" in capsys.readouterr().err
    sources = json.loads((tmp_path / "run" / "check.json").read_text())["sources"]
    assert "it has 4 turns, not one question" in sources[1]["bad"][0]["reason"]


def forbid(*args, **kwargs):
    raise AssertionError("it looked again")


def test_nothing_is_read_again_until_something_changes(tmp_path, recipe, monkeypatch):
    check(str(recipe))
    with monkeypatch.context() as patch:
        patch.setattr("hawaii.training.checking.check.inspect_rows", forbid)
        check(str(recipe))
        for change in (
            lambda: os.utime(tmp_path / "images" / "3.png", ns=(1, 1)),
            lambda: (tmp_path / "data.json").write_text((tmp_path / "data.json").read_text() + " "),
        ):
            change()
            with pytest.raises(AssertionError, match="looked again"):
                check(str(recipe))
    check(str(recipe))
    for override in ("stages.finetune.max_length=299", "chat_template=plain", "follow_links=false"):
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="looked again"):
            patch.setattr("hawaii.training.checking.check.inspect_rows", forbid)
            check(str(recipe), [override])


def test_training_after_a_check_looks_at_no_row_again_and_leaves_out_the_broken_ones(
    tmp_path, teacher_folders, monkeypatch, caplog
):
    recipe = write_recipe(tmp_path, teacher_folders, bad_records="skip", train_sampling_strategy="group_by_length")
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    check(str(recipe))
    looked_at, look = [], ConversationDataset._find_problem
    monkeypatch.setattr(
        ConversationDataset, "_find_problem", lambda self, record: looked_at.append(record.id) or look(self, record)
    )
    monkeypatch.setattr("hawaii.training.data.records.NUM_LOOKED_AT", 1)
    monkeypatch.setattr("hawaii.training.data.conversation_dataset.suppress", forbid)  # lengths of a second look
    with caplog.at_level(logging.WARNING):
        train(str(recipe))
    stages = json.loads((tmp_path / "run" / "train_results.json").read_text())["stages"]
    assert [stage["samples"] for stage in stages.values()] == [13, 13]
    assert "takes its place" not in caplog.text and "1 of 14 records" in caplog.text
    assert looked_at == ["0", "0"]  # one record in each stage, to notice a disk that is not mounted


@pytest.mark.parametrize("content", [None, b"broken"])
def test_a_row_whose_image_is_replaced_after_the_check_has_its_length(tmp_path, recipe, content):
    path = tmp_path / "images" / "3.png"
    good = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    check(str(recipe), ["bad_records=skip"])
    path.write_bytes(good)
    paths = (str(tmp_path / "data.json"), str(tmp_path / "images"))
    dataset = ConversationDataset(*paths, make_processor(), max_length=300)
    assert dataset.checked is not None and len(dataset.checked.problems) == 1
    lengths, num_tiles = dataset.measure()
    assert lengths == [len(dataset[index]["input_ids"]) for index in range(len(dataset))]
    assert num_tiles == [len(dataset[index].get("pixel_values", ())) for index in range(len(dataset))]


def test_a_data_set_after_a_check_has_the_lengths_of_its_samples(tmp_path, recipe):
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    check(str(recipe), ["bad_records=skip"])
    options = {"bad_records": "skip", "image_share": 0.7, "max_length": 300}
    paths = (str(tmp_path / "data.json"), str(tmp_path / "images"))
    dataset = ConversationDataset(*paths, make_processor(), **options)
    assert dataset.checked is not None and 3 < len(dataset) < 13
    assert dataset.lengths() == [len(dataset[index]["input_ids"]) for index in range(len(dataset))]


def test_an_encoder_alone_is_checked(tmp_path, teacher_folders):
    shutil.rmtree(tmp_path / "images", ignore_errors=True)
    recipe = write_recipe(tmp_path, teacher_folders, stages={"distil": {}}, data_path=None)
    text = recipe.read_text()
    for name in ("tokenizer", "text_config"):
        text = re.sub(rf"(?m)^{name}:.*\n(  .*\n)*", "", text)
    recipe.write_text(text)
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="1 of 12 rows"):
        check(str(recipe))
    assert read_report(tmp_path)["bad"][0]["id"] == "3.png"


class Troublesome(AllConversations):
    """Row 2 ends its process, row 5 never ends, row 7 takes all memory."""

    def inspect(self, index) -> Row:
        if index == 2:
            os.kill(os.getpid(), 9)
        if index == 5:
            time.sleep(1000)
        if index == 7:
            bytearray(2**44)
        return super().inspect(index)


def test_no_row_stalls_or_ends_the_check(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(pool, "ROW_SECONDS", 0.5)
    monkeypatch.setattr(pool, "CHUNK_SIZE", 4)
    dataset = Troublesome(str(tmp_path / "data.json"), str(tmp_path / "images"), make_processor())
    done = []
    rows = pool.inspect_rows(dataset, 2, done.append)
    problems = {index: row.problem for index, row in enumerate(rows) if row.problem is not None}
    assert set(problems) == {2, 5, 7} and sum(done) == len(dataset) == 14
    assert "killed" in problems[2] and "longer than 0.5 seconds" in problems[5] and "memory" in problems[7]


class Sleeping(AllConversations):
    """Rows that never end; each process notes its id."""

    def inspect(self, index) -> Row:
        (Path(self.data_path).parent / f"{os.getpid()}.reader").touch()
        time.sleep(1000)
        return Row()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_check(tmp_path, recipe, monkeypatch, number):
    monkeypatch.setattr(pool, "CHUNK_SIZE", 4)  # so that others are queued
    dataset = Sleeping(str(tmp_path / "data.json"), str(tmp_path / "images"), make_processor())
    main_process = get_context("fork").Process(target=pool.inspect_rows, args=(dataset, 2, print))
    main_process.start()
    while len(readers := [int(path.stem) for path in tmp_path.glob("*.reader")]) < 2:
        time.sleep(0.05)
    os.kill(main_process.pid, number)
    main_process.join(HANG_SECONDS)
    assert main_process.exitcode
    for reader in readers:
        wait_until_gone(reader)


def test_a_process_has_a_limit_of_memory(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(pool, "ROW_BYTES", 2**28)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "images" / "3.png").write_bytes(BROKEN_IMAGES["PNG of 400 megapixels"])
    with pytest.raises(UserError, match="1 of 14 rows"):
        check(str(recipe))
    assert "MemoryError" in read_report(tmp_path)["bad"][0]["reason"]


def test_a_row_is_read_as_the_data_sets_of_training_read_it():
    assert AllConversations.mro()[1:3] == [AllRows, ConversationDataset]
    assert {"_read", "_find_problem"} & set(vars(AllRows)) == set()
