"""A table returns the saved records unchanged, with any content, and is written once."""

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import make_record
from hawaii.tests.tiny.waiting import HANG_SECONDS
from hawaii.training.sources import readers
from hawaii.training.sources.cache import cached_file
from hawaii.training.sources.readers import read_records, read_table
from hawaii.training.sources.record import Message, Record
from hawaii.training.sources.record_table import save_records


STRANGE = [
    Record(7, ("a.png",), (Message("user", "what ?", 1), Message("assistant", "réd\0"))),
    Record("7", ()),
    Record(None, ("a\0b.png", "\ud83d.png")),
    Record(1.5, ({"bytes": "00"}, 5), problem="it has no list of conversations"),
    Record(["x", {"y": 1}], (), (Message("user", "\ud83d"),), question_type=["z"]),
    Record(True, ("",), question_type="", problem="no", is_readable=False),
]


def test_records_are_the_saved_ones():
    table = save_records("strange", STRANGE, "")
    assert list(table) == STRANGE == [table[index] for index in range(len(STRANGE))]
    assert table[-1] == STRANGE[-1] and table[1:3] == STRANGE[1:3]
    with pytest.raises(IndexError):
        table[len(STRANGE)]
    without = [Record(r.id, r.images, (), r.question_type, r.problem, r.is_readable) for r in STRANGE[:4]]
    assert list(table.without_messages())[:4] == without
    chosen = table.select(np.array([4, 1, 0])).select(np.array([2, 0]))
    assert list(chosen) == [STRANGE[0], STRANGE[4]] == [chosen[0], chosen[1]]
    assert list(pickle.loads(pickle.dumps(chosen))) == list(chosen)


def test_many_records_keep_their_order():
    records = [Record(number, (f"{number}.png",)) for number in range(12_000)]
    table = save_records("many", iter(records), "")
    assert len(table) == 12_000 and list(table) == records
    assert [table[number].id for number in (0, 4999, 5000, 11_999)] == [0, 4999, 5000, 11_999]


def test_a_file_is_parsed_once_for_its_content(tmp_path, monkeypatch):
    values = [make_record(number, questions=2) for number in range(5)]
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(values))
    table = read_table(str(tmp_path / "a.json"))
    assert list(table) == list(read_records(str(tmp_path / "a.json")))
    with monkeypatch.context() as patch:
        patch.setattr(readers, "read_records", lambda path: (pytest.fail("parsed again") for _ in "x"))
        assert list(read_table(str(tmp_path / "b.json"))) == list(table)
    (tmp_path / "b.json").write_text(json.dumps(values[1:]))
    assert [record.id for record in read_table(str(tmp_path / "b.json"))] == ["1", "2", "3", "4"]


def test_a_file_that_cannot_be_read_leaves_nothing_in_the_cache(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([make_record(0)])[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match=r"a\.json, line 1: Expecting ',' delimiter"):
            read_table(str(tmp_path / "a.json"))


def write_slowly(path):
    path.write_text("x")
    with (path.parent / "written").open("a") as file:
        file.write("once ")


def get_slowly(queue):
    queue.put(cached_file("slow", write_slowly))


def test_of_several_processes_one_writes_a_file():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=get_slowly, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    (path,) = {queue.get(timeout=HANG_SECONDS) for _ in processes}
    for process in processes:
        process.join()
    assert path.read_text() == "x" and (path.parent / "written").read_text() == "once "


def test_a_full_disk_is_a_sentence_with_the_folder():
    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match=r"The cache .*hawaii cannot be written \(.*No space left.*set HF_DATASETS_CACHE"
    ):
        cached_file("full", write)
    assert not list(cached_file("other", lambda path: path.touch()).parent.glob(".full.*"))
