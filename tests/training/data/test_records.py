"""A share of the images is the same on every machine."""

import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_dataset, make_record, save_data
from hawaii.training.data.records import choose_share
from hawaii.training.sources.record import Record


def parse(records):
    return [Record(record["id"], (record["image"],) if "image" in record else ()) for record in records]


def chosen(share, records):
    records = parse(records)
    return [records[index].id for index in choose_share(records, share, "data.json")]


RECORDS = [make_record(number) for number in range(200)]


def test_a_smaller_share_is_a_subset_of_a_larger_one():
    shares = [set(chosen(share, RECORDS)) for share in (0.05, 0.2, 0.5, 1.0)]
    assert all(small < large for small, large in zip(shares, shares[1:]))
    assert len(shares[-1]) == 200
    assert 4 <= len(shares[0]) <= 18 and 85 <= len(shares[2]) <= 115


def test_the_choice_is_the_same_on_every_machine():
    # With other numbers, new runs would not be comparable with earlier ones. Python's own hash differs in every
    # process.
    assert chosen(0.2, RECORDS[:30]) == ["19", "22", "25"]


def test_either_all_records_of_an_image_are_chosen_or_none():
    repeated = [make_record(number % 50, questions=1 + number // 50) for number in range(100)]
    ids = chosen(0.3, repeated)
    assert sorted(ids) == sorted(2 * list(dict.fromkeys(ids)))


def test_a_record_with_several_images_is_chosen_if_all_of_them_are():
    names = [RECORDS[index]["image"] for index in choose_share(parse(RECORDS), 0.5, "")]
    others = [record["image"] for record in RECORDS if record["image"] not in names]
    both, one = Record("both", tuple(names[:2])), Record("one", (names[0], others[0]))
    assert choose_share([both, one], 0.5, "data.json").tolist() == [0]


def test_records_without_images_are_chosen_by_their_id():
    text = [make_record(number, image=False) for number in range(200)]
    assert 20 <= len(chosen(0.2, text)) <= 60
    assert chosen(0.2, text[::-1]) == chosen(0.2, text)[::-1]


def test_a_share_without_an_image_is_an_error():
    with pytest.raises(
        UserError, match="image_share 1e-06 selects no record with an image: there are 200 images in the 200"
    ):
        choose_share(parse(RECORDS), 1e-6, "data.json")
    texts = [make_record(number, image=False) for number in range(200)]
    with pytest.raises(UserError, match="there are 1 images in the 201 records of data.json; make it larger"):
        choose_share(parse([*texts, RECORDS[0]]), 0.2, "data.json")


def test_a_data_set_has_only_the_records_of_its_share(tmp_path):
    processor, folder = make_processor(), save_data(tmp_path, RECORDS[:30])
    dataset = make_dataset(folder, processor, image_share=0.2)
    assert len(dataset) == 3 and [record.id for record in dataset.records] == chosen(0.2, RECORDS[:30])
    assert len(make_dataset(folder, processor)) == 30
