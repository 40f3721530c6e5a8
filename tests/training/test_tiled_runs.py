"""Training with tiles: packed, streamed, evaluated, resumed, with bad images and in several processes."""

import json
import os
import subprocess
import sys

import datasets
import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.finished_runs import logged_steps
from hawaii.tests.tiny.tiled_data import count_tiles, make_tiled_records, write_tiled_recipe
from hawaii.training.train import train


COUNT = 10
# One batch of all records; the losses of the second step depend on the gradients of the first.
WHOLE = ["max_steps=2", "per_device_train_batch_size=10", "text_config.attention_dropout=0.0", "save_strategy=no"]
ROLES = {"human": "user", "gpt": "assistant"}
TERMS = ("loss", "text", "fine", "coarse", "balance")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    folder = tmp_path_factory.mktemp("tiles")
    return write_tiled_recipe(folder, teacher_folders, COUNT, stages={"finetune": {}}, max_length=400)


def losses(recipe, folder, *options):
    """The terms of the loss of each step."""
    train(str(recipe), [f"output_dir={folder}", *options])
    return [[entry[name] for name in TERMS] for entry in logged_steps(folder, "finetune")]


@pytest.fixture(scope="module")
def padded(recipe, tmp_path_factory):
    return losses(recipe, tmp_path_factory.mktemp("padded"), *WHOLE)


@pytest.mark.parametrize("distill_tiles", ["true", "false"])
def test_packed_samples_have_the_losses_of_padded_ones(recipe, padded, tmp_path, distill_tiles):
    tiles = f"distill_tiles={distill_tiles}"
    expected = padded if distill_tiles == "true" else losses(recipe, tmp_path / "padded", *WHOLE, tiles)
    packed = losses(recipe, tmp_path / "packed", *WHOLE, tiles, "packing=true")
    for there, here in zip(packed, expected, strict=True):
        assert there == pytest.approx(here, rel=1e-3)
    assert (expected != padded) == (distill_tiles == "false")


def test_micro_batches_have_the_losses_of_one_batch(recipe, padded, tmp_path):
    options = ["per_device_train_batch_size=1", "gradient_accumulation_steps=10"]
    split = losses(recipe, tmp_path, *WHOLE, *options)
    for there, here in zip(split, padded, strict=True):
        assert there[:4] == pytest.approx(here[:4], rel=1e-3)  # the balance is a mean over batches


def test_a_stream_of_images_with_tiles_is_trained_on(recipe, tmp_path):
    rows = []
    for record in make_tiled_records(COUNT):
        names = [record["image"]] if isinstance(record.get("image"), str) else record.get("image", [])
        images = [{"bytes": (recipe.parent / "images" / name).read_bytes(), "path": None} for name in names]
        turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
        rows.append({"id": record["id"], "images": images, "messages": turns})
    (tmp_path / "shards").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "shards" / "train-0.parquet")
    source = json.dumps([{"path": str(tmp_path / "shards"), "streaming": True}])
    options = ["data_path=null", f"data={source}", "max_steps=5", "save_strategy=no"]
    assert len(losses(recipe, tmp_path / "run", *options)) == 5
    with pytest.raises(UserError, match="max_batch_tiles is given and data is streamed"):
        losses(recipe, tmp_path / "refused", *options, "max_batch_tiles=20")


def test_questions_about_tiles_are_answered_during_training(recipe, tmp_path):
    records = [record for record in make_tiled_records(COUNT) if len(record["conversations"]) == 2]
    assert {type(record.get("image")) for record in records} == {str, list, type(None)}
    (tmp_path / "questions.json").write_text(json.dumps(records))
    options = [f"eval_data_path={tmp_path / 'questions.json'}", "eval_strategy=steps", "eval_steps=1", "max_steps=1"]
    train(str(recipe), [f"output_dir={tmp_path / 'run'}", *options, "save_strategy=no"])
    log = map(json.loads, (tmp_path / "run" / "finetune" / "log.jsonl").read_text().splitlines())
    (evaluated,) = [entry for entry in log if "eval_accuracy" in entry]
    assert evaluated["eval_num_questions"] == len(records)


@pytest.mark.parametrize("change", ["image_grid_pinpoints=[[16, 32]]", "distill_tiles=false", "max_batch_tiles=8"])
def test_a_resume_with_other_tiles_is_refused(recipe, tmp_path, change):
    options = [f"output_dir={tmp_path}", "max_steps=1", "save_steps=1"]
    train(str(recipe), options)
    with pytest.raises(UserError, match=f"trained with another recipe: {change.partition('=')[0]} is .* there and"):
        train(str(recipe), [*options, change])


def test_bad_images_are_skipped(recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for image in (recipe.parent / "images").iterdir():
        content = b"broken" if image.stem in ("0", "6") else image.read_bytes()
        (folder / image.name).write_bytes(content)
    options = [f"image_folder={folder}", "bad_records=skip", "max_batch_tiles=8", "max_steps=6", "save_strategy=no"]
    assert len(losses(recipe, tmp_path / "run", *options)) == 6


RECORD_BATCHES = """
import os, sys
from hawaii.__main__ import main
from hawaii.training.trainer import HawaiiTrainer
training_step = HawaiiTrainer.training_step

def recorded(self, model, inputs, num_items_in_batch=None):
    has_images = bool((inputs["image_index"] >= 0).any())
    with open(os.environ["RECORD"] + os.environ["RANK"], "a") as file:
        print(len(inputs["pixel_values"]) if has_images else 0, file=file)
    return training_step(self, model, inputs, num_items_in_batch)

HawaiiTrainer.training_step = recorded
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_two_processes_with_a_bound_never_wait_for_each_other(recipe, tmp_path):
    script, record = tmp_path / "script.py", tmp_path / "tiles."
    script.write_text(RECORD_BATCHES)
    options = [f"output_dir={tmp_path / 'run'}", "max_batch_tiles=8", "max_steps=-1", "num_train_epochs=2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RECORD": str(record)}
    command = [*launch, str(script), str(recipe), *options, "save_strategy=no"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    tiles = [list(map(int, (tmp_path / f"tiles.{rank}").read_text().split())) for rank in range(2)]
    assert len(tiles[0]) == len(tiles[1]) and max(map(max, tiles)) <= 8
    # Every record is in each epoch; in some step, one process has text alone.
    assert sum(map(sum, tiles)) >= 2 * sum(count_tiles(make_tiled_records(COUNT)))
    assert any((first == 0) != (second == 0) for first, second in zip(*tiles))
