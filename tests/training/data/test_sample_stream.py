"""A stream has every record, in an order that a resume continues, with any number of workers and processes."""

import logging
import threading
import time
from collections import Counter

import datasets
import numpy as np
import pytest
import torch

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_dataset, make_record, save_data
from hawaii.training.data.conversation_dataset import Collator, ConversationReader
from hawaii.training.data.records import is_in_share
from hawaii.training.data.sample_stream import SampleStream, StreamPart, load_stream
from hawaii.training.sources import dataset_rows
from hawaii.training.sources.record_table import TableStream
from hawaii.training.sources.source import Source


ROLES = {"human": "user", "gpt": "assistant"}


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve records in four shards; the images of records 3 and 4 are broken."""
    folder = save_data(tmp_path_factory.mktemp("stream"), [make_record(number) for number in range(12)])
    (folder / "shards").mkdir()
    for shard in range(4):
        rows = []
        for number in range(3 * shard, 3 * shard + 3):
            image = (folder / "images" / f"{number}.png").read_bytes()
            turns = make_record(number)["conversations"]
            messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
            content = b"broken" if number in (3, 4) else image
            rows.append({"id": number, "images": [{"bytes": content, "path": None}], "messages": messages})
        datasets.Dataset.from_list(rows).to_parquet(folder / "shards" / f"train-{shard}.parquet")
    return folder


def make_stream(folder, processor, process=(0, 1), bad_records="skip", seed=0, with_table=False, **kwargs):
    stream = Source(str(folder / "shards"), streaming=True).stream()
    parts = [StreamPart("shards", stream, ConversationReader(None, processor, 32), 3.0)]
    if with_table:
        dataset = make_dataset(folder, processor)
        parts.append(StreamPart("table", TableStream(dataset.records), dataset, 1.0))
    return SampleStream(parts, seed, bad_records, kwargs.get("image_share", 1.0), *process)


def read(stream, num_batches, num_workers=0, batch_size=2):
    """The record ids and pixels of the first batches; nothing for those that are skipped."""
    loader = iter(
        load_stream(stream, batch_size, Collator(stream.parts[0].reader.processor, 32), num_workers=num_workers)
    )
    return [
        (batch["record_ids"], batch["pixel_values"]) if batch else None
        for batch in (next(loader) for _ in range(num_batches))
    ]


def ids(batches):
    return [name for names, _ in batches for name in names]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("num_skipped", [1, 4, 9])
def test_a_resume_continues_with_the_same_batches(folder, processor, num_workers, num_skipped):
    whole = read(make_stream(folder, processor, with_table=True), 12, num_workers)
    resumed = make_stream(folder, processor, with_table=True)
    resumed.num_skipped = num_skipped
    batches = read(resumed, 12, num_workers)
    assert batches[:num_skipped] == [None] * num_skipped
    for (names, pixels), (expected_names, expected_pixels) in zip(
        batches[num_skipped:], whole[num_skipped:], strict=True
    ):
        assert names == expected_names and torch.equal(pixels, expected_pixels)


def test_what_is_skipped_is_not_decoded(folder, processor, monkeypatch):
    stream = make_stream(folder, processor)
    stream.num_skipped = 6
    opened = []
    monkeypatch.setattr(ConversationReader, "make_sample", lambda self, record: opened.append(record.id) or {"id": 1})
    samples = iter(stream)
    assert [next(samples) for _ in range(6)] == [{}] * 6 and not opened
    assert next(samples) and len(opened) == 1


def test_another_seed_or_epoch_has_another_order_and_the_same_records(folder, processor):
    stream = make_stream(folder, processor).parts[0].stream
    orders = [[record.id for record in stream.read(seed, epoch, 0, 1)] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [record.id for record in stream.read(0, 0, 0, 1)] == orders[0]


def test_shards_are_read_in_turn_and_by_no_other_thread(folder, processor, monkeypatch):
    """Threads would be lost in forked workers, and `datasets` sleeps 5 s whenever an iteration with threads ends."""
    stream = make_stream(folder, processor).parts[0].stream
    monkeypatch.setattr(dataset_rows, "SHUFFLE_BUFFER", 1)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("slept"))
    num_threads = threading.active_count()
    records = stream.read(0, 0, 0, 1)
    shards = [next(records).id // 3 for _ in range(4)]
    assert sorted(shards) == [0, 1, 2, 3] and threading.active_count() == num_threads
    records.close()


@pytest.mark.parametrize(("num_rows", "num_open"), [(1, 10), (2, 10), (5, 2), (12, 10)])
def test_a_small_buffer_loses_no_record(folder, processor, monkeypatch, num_rows, num_open):
    monkeypatch.setattr(dataset_rows, "SHUFFLE_BUFFER", num_rows)
    monkeypatch.setattr(dataset_rows, "NUM_OPEN_SHARDS", num_open)
    stream = make_stream(folder, processor).parts[0].stream
    assert sorted(record.id for record in stream.read(3, 2, 0, 1)) == list(range(12))


@pytest.mark.parametrize("num_readers", [2, 3, 4, 5, 7])
def test_readers_share_an_epoch_without_a_record_twice(folder, processor, num_readers):
    stream = make_stream(folder, processor).parts[0].stream
    table = TableStream(make_dataset(folder, processor).records)
    for each, number in ((stream, int), (table, lambda name: int(name))):
        parts = [
            [number(record.id) for record in each.read(5, 1, reader, num_readers)] for reader in range(num_readers)
        ]
        assert sorted(sum(parts, [])) == list(range(12)) and all(parts)


@pytest.mark.parametrize(("num_readers", "num_groups"), [(2, 2), (3, 1), (4, 4), (6, 2), (8, 4), (1, 1)])
def test_readers_use_every_row_of_four_shards_equally_often(folder, processor, num_readers, num_groups):
    stream = make_stream(folder, processor).parts[0].stream
    lists = [[record.id for record in stream.read(5, 1, reader, num_readers)] for reader in range(num_readers)]
    assert max(map(len, lists)) - min(map(len, lists)) <= 1  # an epoch of one reader is as long as that of others
    for reader, numbers in enumerate(lists):
        assert {number // 3 % num_groups for number in numbers} == {reader % num_groups}


@pytest.fixture
def nameless(tmp_path):
    """Twelve texts without ids, in four shards."""
    for shard in range(4):
        texts = [f"text {3 * shard + row}" for row in range(3)]
        rows = [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]} for text in texts
        ]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"train-{shard}.parquet")
    return Source(str(tmp_path), streaming=True)


@pytest.mark.parametrize("num_readers", [1, 2, 3, 4])
def test_a_row_without_an_id_is_named_by_its_place_in_its_shard(nameless, num_readers):
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        parts = [nameless.stream().read(seed, epoch, reader, num_readers) for reader in range(num_readers)]
        names = {record.id: record.messages[0].text for part in parts for record in part}
        assert names == {f"shard {n // 3}, row {n % 3}": f"text {n}" for n in range(12)}


def test_a_row_of_one_file_has_the_id_that_it_has_without_streaming(nameless):
    path = f"{nameless.path}/train-2.parquet"
    streamed = sorted(Source(path, streaming=True).stream().read(0, 0, 0, 1), key=lambda record: record.id)
    assert streamed == list(Source(path).read()[0])


def test_a_share_of_texts_is_the_same_in_every_epoch(nameless, processor):
    part = StreamPart("texts", nameless.stream(), ConversationReader(None, processor, 32), 1.0)
    names = {sample["record_id"] for sample in SampleStream([part], 0, "error", 0.4, 0, 1).take(60)}
    chosen = {repr(record.id) for record in nameless.stream().read(7, 7, 0, 1) if is_in_share(record, 0.4)}
    assert names == chosen and 0 < len(chosen) < 12


def test_two_processes_with_two_workers_see_different_records(folder, processor):
    first, second = (set(ids(read(make_stream(folder, processor, (p, 2)), 3, 2, 1))) for p in (0, 1))
    assert first and second and not first & second


def test_sources_are_mixed_by_weight(folder, processor):
    parts = make_stream(folder, processor, with_table=True)._read_records(0, 1)
    counts = Counter(part.name for part, _ in (next(parts) for _ in range(2000)))
    assert counts["shards"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_broken_record_raises_or_the_next_one_takes_its_place(folder, processor, caplog):
    with pytest.raises(
        UserError, match=r"shards, record [34]: its image in its row cannot be read.*bad_records: skip"
    ):
        make_stream(folder, processor, bad_records="error").take(12)
    with caplog.at_level(logging.WARNING):
        names = [sample["record_id"] for sample in make_stream(folder, processor).take(12)]
    order = [str(record.id) for record in make_stream(folder, processor).parts[0].stream.read(0, 0, 0, 1)]
    good = [name for name in order if name not in ("3", "4")]
    expected = [next((n for n in order[place:] if n in good), None) for place in range(12)]
    assert [name for name, e in zip(names, expected) if e] == [e for e in expected if e]
    assert "The next one takes its place" in caplog.text


def test_a_share_of_the_images_holds_in_a_stream(folder, processor):
    names = {sample["record_id"] for sample in make_stream(folder, processor, image_share=0.4).take(30)}
    assert 0 < len(names) < 10
    larger = {sample["record_id"] for sample in make_stream(folder, processor, image_share=0.7).take(60)}
    assert names < larger


def test_a_reader_without_a_record_is_an_error(folder, processor):
    with pytest.raises(
        UserError, match=r"shards: reader 14 of 20 \(processes x dataloader_num_workers\) finds no record"
    ):
        next(iter(make_stream(folder, processor, (13, 20))))


def test_a_stream_in_which_nothing_can_be_read_ends(tmp_path, processor):
    rows = [{"images": [], "messages": [{"role": "user", "content": "what ?"}]}] * 3
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    stream = Source(str(tmp_path / "a.parquet"), streaming=True).stream()
    part = StreamPart("a", stream, ConversationReader(None, processor), 1.0)
    with pytest.raises(UserError, match="a: 1000 records in a row cannot be read"):
        SampleStream([part], 0, "skip", 1.0, 0, 1).take(1)


def test_a_table_is_read_in_a_new_order_each_epoch(folder, processor):
    table = TableStream(make_dataset(folder, processor).records)
    orders = [[record.id for record in table.read(3, epoch, 0, 1)] for epoch in range(2)]
    expected = np.random.default_rng([3, 1]).permutation(12)
    assert orders[1] == [str(number) for number in expected] != orders[0]
