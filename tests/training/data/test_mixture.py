"""Several sources give exact shares of the samples, and every record is used."""

from collections import Counter

import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_dataset, make_record, save_data
from hawaii.training.data.mixture import MixedDataset, share_counts


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([3, 5], None, [3, 5]),
        ([4, 4], [1, 1], [4, 4]),
        ([4, 4], [2, 1], [8, 4]),
        ([10, 2], [1, 1], [10, 10]),
        ([3, 100], [3, 1], [300, 100]),
        ([7, 3, 2], [0.7, 0.3, 0.2], [7, 3, 2]),
    ],
)
def test_an_epoch_is_the_shortest_with_every_record_and_the_shares(sizes, weights, counts):
    assert share_counts(sizes, weights) == counts


@pytest.mark.parametrize("weights", [[1e-9, 1], [5e-324, 1], [1e308, 1]])
def test_weights_that_make_an_endless_epoch_are_refused(weights):
    with pytest.raises(
        UserError, match=r"with the weights .*, 1, an epoch .* more than 2,147,483,648 samples: make the"
    ):
        share_counts([3, 5], weights)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    processor = make_processor()
    numbers = (range(5), range(5, 7))
    return [
        make_dataset(save_data(tmp_path_factory.mktemp("part"), [make_record(n, 1 + n % 3) for n in each]), processor)
        for each in numbers
    ]


@pytest.mark.parametrize("weights", [None, [1, 1], [1, 3], [5, 1]])
def test_no_record_is_used_more_than_once_more_than_another_of_its_source(parts, weights):
    mixed = MixedDataset(parts, weights)
    counts = Counter(mixed[index]["record_id"] for index in range(len(mixed)))
    for part, count in zip(parts, mixed.counts):
        used = [counts[repr(record.id)] for record in part.records]
        assert sum(used) == count and min(used) >= 1 and max(used) - min(used) <= 1
    assert sum(mixed.counts) == len(mixed)


def test_an_epoch_that_weights_make_long_is_announced(parts, caplog):
    assert len(MixedDataset(parts, [1, 13])) == 70 and not caplog.messages  # ten times as many samples as records
    assert len(MixedDataset(parts, [1, 27])) == 140
    (message,) = caplog.messages
    assert message.startswith("An epoch has 140 samples") and "each of the 7 records" in message
    assert f"records of {parts[1].data_path} are used 68 times" in message


def test_lengths_are_those_of_the_samples(parts):
    mixed = MixedDataset(parts, [1, 2])
    assert mixed.lengths() == [len(mixed[index]["input_ids"]) for index in range(len(mixed))]
    assert len(set(mixed.lengths())) == 3


def test_an_index_counts_from_the_end_if_it_is_negative_and_ends_an_iteration(parts):
    mixed = MixedDataset(parts)
    assert mixed[-1]["record_id"] == "'6'"
    with pytest.raises(IndexError):
        mixed[7]


def test_what_is_measured_are_the_samples_and_a_replacement_fits(tmp_path):
    processor = make_processor()
    records = [make_record(n, 1 + n % 3, image=n % 2 == 0) for n in range(8)]
    folders = [save_data(tmp_path / name, records[start : start + 4]) for name, start in (("a", 0), ("b", 4))]
    mixed = MixedDataset([make_dataset(folder, processor, bad_records="skip") for folder in folders], [1, 2])
    lengths, num_tiles = mixed.measure()
    samples = [mixed[index] for index in range(len(mixed))]
    assert lengths == [len(sample["input_ids"]) for sample in samples]
    assert num_tiles == [len(sample.get("pixel_values", ())) for sample in samples]
    (folders[1] / "images" / "4.png").write_bytes(b"broken")
    index = [sample["record_id"] for sample in samples].index("'4'")
    replacement = mixed[index]
    assert replacement["record_id"] == "'6'"  # shorter, and with an image; record 5 would be the next one
    assert len(replacement["input_ids"]) <= lengths[index]
