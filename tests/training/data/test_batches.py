"""Batches have one modality and similar lengths, stay under their budget, and are the same in every rerun."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_dataset, make_record, save_data, write_recipe
from hawaii.training.data.batches import GroupedBatchSampler
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.train import train


def make_samples(number, share_of_text=0.3):
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(5, 400, (number,), generator=generator).tolist()
    has_images = (torch.rand(number, generator=generator) >= share_of_text).tolist()
    return lengths, has_images


def all_batches(samples, epoch=0, num_processes=1, **options):
    """The batches of each process."""
    options = {"batch_size": 8, "num_processes": num_processes, **options}
    samplers = [GroupedBatchSampler(*samples, process_index=index, **options) for index in range(num_processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def make_tiled_samples(number, share_of_text=0.3):
    """Lengths and numbers of tiles, of up to two pictures of up to five tiles."""
    lengths, has_images = make_samples(number, share_of_text)
    generator = torch.Generator().manual_seed(number + 1)
    tiles = torch.randint(1, 11, (number,), generator=generator).tolist()
    return lengths, [count * is_with_image for count, is_with_image in zip(tiles, has_images)]


MODES = {"samples": {}, "tokens": {"max_batch_tokens": 1000}}
TILES = {
    "samples and tiles": {"max_batch_tiles": 24},
    "tokens and tiles": {"max_batch_tokens": 1000, "max_batch_tiles": 24},
}
SIZES = [(1, 1), (2, 1), (2, 4), (3, 2), (8, 1)]


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
@pytest.mark.parametrize(("num_processes", "accumulation"), SIZES)
@pytest.mark.parametrize("share_of_text", [0, 0.3, 1])
@pytest.mark.parametrize("number", [9, 100, 457])
def test_each_sample_is_in_one_batch_of_one_modality(options, num_processes, accumulation, share_of_text, number):
    lengths, has_images = samples = make_samples(number, share_of_text)
    for epoch in (0, 1):
        processes = all_batches(samples, epoch, num_processes, accumulation=accumulation, **options)
        assert len(set(map(len, processes))) == 1  # equally many batches for each process
        batches = [batch for process in processes for batch in process]
        assert sorted(index for batch in batches for index in batch) == list(range(number))
        for batch in batches:
            assert len({has_images[index] for index in batch}) == 1
            padded = len(batch) * max(lengths[index] for index in batch)
            assert padded <= 1000 if options else len(batch) <= 8


@pytest.mark.parametrize("options", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("num_processes", "accumulation"), SIZES)
@pytest.mark.parametrize("number", [9, 457])
def test_no_batch_has_more_tiles_than_the_bound(options, num_processes, accumulation, number):
    lengths, tiles = samples = make_tiled_samples(number)
    counts = set()
    for epoch in range(4):
        processes = all_batches(samples, epoch, num_processes, accumulation=accumulation, **options)
        counts |= set(map(len, processes))
        batches = [batch for process in processes for batch in process]
        assert sorted(index for batch in batches for index in batch) == list(range(number))
        for batch in batches:
            assert len({tiles[index] > 0 for index in batch}) == 1
            assert sum(tiles[index] for index in batch) <= 24
            padded = len(batch) * max(lengths[index] for index in batch)
            assert padded <= 1000 if "max_batch_tokens" in options else len(batch) <= 8
    assert len(counts) == 1  # in every epoch and process


def test_a_bound_that_no_batch_reaches_changes_no_batch():
    samples = make_tiled_samples(300)
    plain, bounded = (all_batches(samples, max_batch_tokens=1000, max_batch_tiles=most) for most in (None, 10**6))
    assert [sorted(map(len, batches)) for batches in plain] == [sorted(map(len, batches)) for batches in bounded]


def test_the_bound_on_tiles_is_used():
    lengths, tiles = samples = make_tiled_samples(2000, share_of_text=0)
    (batches,) = all_batches(samples, batch_size=100, max_batch_tiles=24)
    assert sum(tiles) > 0.75 * 24 * len(batches)


@pytest.mark.parametrize("options", TILES.values(), ids=TILES)
def test_incomplete_steps_of_tiles_can_be_dropped(options):
    processes = all_batches(make_tiled_samples(457), num_processes=3, drop_last=True, **options)
    assert len(set(map(len, processes))) == 1
    whole = all_batches(make_tiled_samples(457), num_processes=3, **options)
    assert len(whole[0]) - 1 <= len(processes[0]) <= len(whole[0])


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_step_is_of_one_modality_while_there_are_enough_batches(options):
    _, has_images = samples = make_samples(1000)
    processes = all_batches(samples, num_processes=2, accumulation=2, **options)
    steps = [
        sum((process[start : start + 2] for process in processes), []) for start in range(0, len(processes[0]), 2)
    ]
    mixed = [step for step in steps if len({has_images[batch[0]] for batch in step}) > 1]
    assert len(steps) > 20 and len(mixed) <= 2
    first = [has_images[step[0][0]] for step in steps]
    assert first != sorted(first) and first != sorted(first, reverse=True)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_the_order_depends_on_seed_and_epoch_alone(options):
    samples = make_samples(300)
    first, again = all_batches(samples, 3, 2, **options), all_batches(samples, 3, 2, **options)
    torch.rand(5)
    assert first == again
    others = [all_batches(samples, 4, 2, **options), all_batches(samples, 3, 2, seed=1, **options)]
    assert first not in others and all(len(other[0]) == len(first[0]) for other in others)
    # The samples are combined differently, not only the batches.
    pairs = [{frozenset(batch) for process in run for batch in process} for run in (first, others[0])]
    assert len(pairs[0] & pairs[1]) < len(pairs[0]) / 2


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_little_of_a_batch_is_padding(options):
    lengths, _ = samples = make_samples(2000)
    (batches,) = all_batches(samples, **options)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)
    if options:
        assert padded > 0.75 * 1000 * len(batches)  # and the budget is used


def test_batches_that_are_not_full_can_be_dropped():
    samples = make_samples(457)
    processes = all_batches(samples, num_processes=3, drop_last=True)
    assert {len(batch) for process in processes for batch in process} == {8}
    assert len(set(map(len, processes))) == 1 and sum(map(len, processes[0])) * 3 > 457 - 2 * 8 - 3 * 8


def test_too_few_samples_are_repeated_or_an_error():
    samples = ([5, 6], [True, False])
    assert [len(process) for process in all_batches(samples, num_processes=4)] == [1] * 4
    with pytest.raises(UserError, match="The 2 samples are too few for a batch in each of 4 processes"):
        all_batches(samples, num_processes=4, drop_last=True)


def test_only_the_given_samples_are_used():
    (batches,) = all_batches(make_samples(50), indices=range(0, 50, 2))
    assert sorted(index for batch in batches for index in batch) == list(range(0, 50, 2))


def test_a_sample_that_exceeds_the_budget_is_an_error(tmp_path, teacher_folders):
    with pytest.raises(UserError, match="max_batch_tiles is 4, but a sample has 6 tiles: make it 6 or more"):
        all_batches(([9, 300], [2, 6]), max_batch_tiles=4)
    with pytest.raises(UserError, match="max_batch_tokens is 100, but a sample has 300 tokens: make it 300 or more"):
        all_batches(([300], [True]), max_batch_tokens=100)
    with pytest.raises(UserError, match=r"max_batch_tokens is 2047, but a sample may have 2048 tokens \(max_length\)"):
        read_recipe(write_recipe(tmp_path, teacher_folders, max_batch_tokens=2047), use_cpu=True)


def test_a_broken_sample_is_replaced_by_one_that_fits_into_its_batch(tmp_path):
    records = [make_record(number, questions=1 + number % 4, image=number % 3 != 0) for number in range(24)]
    dataset = make_dataset(save_data(tmp_path, records), make_processor(), bad_records="skip")
    lengths, num_tiles = dataset.measure()
    broken = [number for number in range(24) if num_tiles[number]][::2]
    for number in broken:
        (tmp_path / "images" / f"{number}.png").write_bytes(b"broken")
    for number in broken:
        sample = dataset[number]
        assert "pixel_values" in sample and len(sample["input_ids"]) <= lengths[number]


OPTIONS = {
    "samples": ["train_sampling_strategy=group_by_length"],
    "tokens, accumulated, workers": [
        "max_batch_tokens=300",
        "gradient_accumulation_steps=2",
        "dataloader_num_workers=2",
    ],
}


@pytest.fixture
def recipe(tmp_path, teacher_folders):
    stages = {"finetune": {"max_length": 200}}
    return write_recipe(tmp_path, teacher_folders, stages=stages, objective="llava", max_steps=None, save_steps=1)


def assert_resumes(run, resumed, step, rerun) -> None:
    """A run that continues from a checkpoint has the same weights as an uninterrupted run."""
    shutil.copytree(run, resumed)
    for name in ("hub", "finetune/model"):
        shutil.rmtree(resumed / name)
    for checkpoint in (resumed / "finetune").glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    rerun()
    models = [load_file(folder / "finetune" / "model" / "model.safetensors") for folder in (run, resumed)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_resumes_bit_for_bit_in_its_second_epoch(recipe, tmp_path, options):
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    options = [*options, "num_train_epochs=2", "max_steps=-1"]
    train(str(recipe), options)
    epochs = {
        entry["step"]: entry["epoch"]
        for entry in map(json.loads, (run / "finetune" / "log.jsonl").read_text().splitlines())
    }
    step = next(step for step, epoch in epochs.items() if epoch > 1)
    assert step < max(epochs) and max(epochs.values()) == 2
    assert_resumes(run, resumed, step, lambda: train(str(recipe), [*options, f"output_dir={resumed}"]))


RECORD_BATCHES = """
import os, sys
from hawaii.__main__ import main
from hawaii.training.trainer import HawaiiTrainer
training_step = HawaiiTrainer.training_step

def recorded(self, model, inputs, num_items_in_batch=None):
    has_images = bool((inputs["image_index"] >= 0).any())
    with open(os.environ["RECORD"] + os.environ["RANK"], "a") as file:
        print(self.state.global_step, *inputs["input_ids"].shape, int(has_images), file=file)
    return training_step(self, model, inputs, num_items_in_batch)

HawaiiTrainer.training_step = recorded
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_two_processes_with_a_budget_never_wait_and_resume_bit_for_bit(recipe, tmp_path):
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    (tmp_path / "script.py").write_text(RECORD_BATCHES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def start(folder) -> list[list[str]]:
        record = tmp_path / f"{folder.name}.batches."
        options = [f"output_dir={folder}", "max_batch_tokens=200", "num_train_epochs=2", "max_steps=-1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RECORD": str(record)}
        command = [*launch, str(tmp_path / "script.py"), str(recipe), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return [(tmp_path / f"{record.name}{rank}").read_text().splitlines() for rank in range(2)]

    ranks = start(run)
    batches = [[tuple(map(int, line.split())) for line in lines] for lines in ranks]
    assert len(batches[0]) == len(batches[1]) >= 8
    assert all(samples * length <= 200 for rank in batches for _, samples, length, _ in rank)
    # In one step of each epoch, one process has only text and the other one an image.
    assert sum(first[3] != second[3] for first, second in zip(*batches)) >= 2
    step = len(batches[0]) // 2 + 1
    assert_resumes(run, resumed, step, lambda: ranks.append(start(resumed)))
    assert all(whole[step:] == part for whole, part in zip(ranks[:2], ranks[2]))
