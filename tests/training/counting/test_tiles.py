"""A dry run of a stage with tiles counts the tokens, squares and parameters of training."""

import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.tiled_data import (
    PINPOINTS,
    count_tiles,
    make_tiled_processor,
    make_tiled_records,
    write_tiled_recipe,
)
from hawaii.tests.tiny.training import make_dataset
from hawaii.training.counting import recipes
from hawaii.training.counting.recipes import describe_recipe
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.students.student import build_student


COUNT = 10


@pytest.fixture
def recipe(tmp_path, teacher_folders):
    return write_tiled_recipe(tmp_path, teacher_folders, COUNT, stages={"finetune": {}}, max_length=400)


@pytest.fixture
def costs(recipe, monkeypatch):
    """Counts the costs of the recipe's stage with some options."""
    counted = []
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: str(counted.extend(costs)))

    def count(*options, **kwargs):
        counted.clear()
        describe_recipe(str(recipe), options, **kwargs)
        return counted[0]

    return count


def test_a_batch_of_the_data_has_the_samples_tokens_and_tiles(tmp_path, costs):
    samples = costs("per_device_train_batch_size=5", "packing=true").samples
    lengths, num_tiles = make_dataset(tmp_path, make_tiled_processor(), max_length=400).measure()
    assert num_tiles == count_tiles(make_tiled_records(COUNT))
    usual, longest = samples.usual, samples.longest
    assert usual.num_tokens == round(sum(lengths) / COUNT) and longest.num_tokens == max(lengths)
    assert usual.num_tiles == usual.num_distilled == round(5 * sum(num_tiles) / COUNT)
    assert longest.num_tiles == 5 * max(num_tiles)


def test_teachers_see_all_tiles_or_the_whole_pictures(costs):
    every, whole = costs(), costs("distill_tiles=false")
    usual = every.samples.usual
    assert usual.num_tiles > usual.num_images
    assert whole.teacher_flops * usual.num_tiles == every.teacher_flops * usual.num_images
    assert whole.feature_bytes < every.feature_bytes
    assert every.usual.forward["encoder"] > whole.usual.forward["encoder"]
    assert whole.cached_values * usual.num_tiles == pytest.approx(every.cached_values * usual.num_images)


def test_a_bound_on_tiles_sets_the_size_of_a_batch(costs):
    options = ["per_device_train_batch_size=64"]
    for cost in (costs(*options, "max_batch_tiles=12"), costs("max_batch_tokens=4000", "max_batch_tiles=12")):
        usual, longest = cost.samples.usual, cost.samples.longest
        assert longest.num_tiles == 12 and usual.num_tiles <= 12 and 1 < usual.num_samples < 12
        assert cost.samples_per_step == usual.num_samples
    assert costs(*options).samples.usual.num_tiles > 12


@pytest.mark.parametrize("data", [[], ["data_path=missing.json"]], ids=["data", "no data"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("max_batch_tiles=4", "max_batch_tiles is 4, but an image of the largest grid .* has 5 tiles"),
        ("max_length=80", "max_length is 80, but an image of the largest grid alone has 88 tokens"),
    ],
)
def test_a_bound_that_training_refuses_is_refused(costs, data, option, message):
    with pytest.raises(UserError, match=message):
        costs(option, *data)


def test_without_data_each_image_has_the_largest_grid(costs):
    options = ["data_path=missing.json", "per_device_train_batch_size=4"]
    samples = costs(*options).samples
    # The whole picture and 2 x 2 tiles, of 16 patches each, and 8 newlines.
    assert samples.usual.num_tiles == samples.longest.num_tiles == 4 * 5
    assert samples.usual.num_prompt_tokens == 400 - (16 + 8 * 9)
    assert "each sample has one image of the largest grid, with 5 tiles, and 400 positions" in samples.note
    assert costs(*options, "max_batch_tiles=10").samples.usual.num_samples == 2
    assert costs(*options, "distill_tiles=false").samples.usual.num_distilled == 4
    plain = costs(*options, "image_grid_pinpoints=null").samples
    assert plain.usual.num_tiles is None and plain.usual.num_prompt_tokens == 400 - 16


@pytest.mark.parametrize(
    ("options", "has_newline"),
    [
        ([], True),
        (["image_grid_pinpoints=null"], False),
        (["image_grid_pinpoints=null", "stages={a: {}, b: {image_grid_pinpoints: [[16, 32]]}}"], True),
        (["stages={a: {}, b: {image_grid_pinpoints: []}}"], False),
        (["image_grid_pinpoints=null", "stages={a: {image_grid_pinpoints: [[16, 32]]}, b: {}}"], True),
    ],
)
def test_the_newline_is_counted_where_the_finished_student_has_it(recipe, monkeypatch, options, has_newline):
    monkeypatch.setattr(recipes, "count_stage", lambda *args: None)
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: "")
    text = describe_recipe(str(recipe), options)
    row = next(line for line in text.splitlines() if line.startswith("| projector"))
    count = int(row.split("|")[2].replace(",", ""))
    assert count == 2 * (32 * 32 + 32) + 32 * has_newline
    if not options:
        stage = read_recipe(recipe, use_cpu=True).stages["finetune"]
        student, _ = build_student(stage.model, stage.data, len(stage.distilled_teachers))
        assert f"{student.num_parameters():,}" in text and student.config.image_grid_pinpoints == PINPOINTS
