"""The scale of the targets is measured on images from all over the data."""

import pytest

from hawaii.training.stage_data import MAX_SAMPLES, NUM_SAMPLES, spread_samples


IMAGE, TEXT = {"pixel_values": 0}, {}


@pytest.mark.parametrize("num_records", [5, 64, 100, 192, 1000])
def test_data_of_images_are_read_at_equal_distances(num_records):
    step = max(1, num_records // NUM_SAMPLES)
    samples = spread_samples([{**IMAGE, "id": number} for number in range(num_records)])
    assert [sample["id"] for sample in samples] == list(range(0, num_records, step))[:NUM_SAMPLES]


@pytest.mark.parametrize("period", [2, 3, 4])
def test_texts_that_recur_in_the_interval_do_not_hide_the_images(period):
    records = [TEXT if number % period == 0 else IMAGE for number in range(NUM_SAMPLES * period)]
    samples = spread_samples(records)
    assert samples.count(IMAGE) == NUM_SAMPLES and samples.count(TEXT) == NUM_SAMPLES


def test_images_after_many_texts_are_found_and_the_search_ends():
    assert spread_samples([TEXT] * 90 + [IMAGE] * 10).count(IMAGE) == 10
    assert len(spread_samples([TEXT] * 2 * MAX_SAMPLES)) == MAX_SAMPLES
