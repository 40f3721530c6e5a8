"""A recipe with several sources, of which one may be streamed, trains and resumes bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import datasets
import pytest
import yaml

from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.tests.finished_runs import logged_steps, weights_of
from hawaii.tests.tiny.training import make_record, save_data, write_recipe
from hawaii.training.train import train
from hawaii.training.trainer import HawaiiTrainer


ROLES = {"human": "user", "gpt": "assistant"}
STAGES = ("pretrain", "finetune")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with LLaVA's JSON of records 0 to 6, an archive of their images, and shards of chats 20 to 31."""
    folder = save_data(
        tmp_path_factory.mktemp("sources"), [make_record(number, 1 + number % 2) for number in range(7)]
    )
    shutil.make_archive(str(folder / "images"), "zip", folder / "images")
    chats = save_data(folder / "chats", [make_record(number) for number in range(20, 32)])
    (folder / "shards").mkdir()
    for first in range(20, 32, 4):
        rows = []
        for number in range(first, first + 4):
            turns = make_record(number)["conversations"]
            image = {"bytes": (chats / "images" / f"{number}.png").read_bytes(), "path": None}
            messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
            rows.append({"id": str(number), "images": [image], "messages": messages})
        datasets.Dataset.from_list(rows).to_parquet(folder / "shards" / f"train-{first}.parquet")
    return folder


def sources(world, streaming):
    return [
        {"path": str(world / "data.json"), "image_folder": str(world / "images.zip"), "weight": 1},
        {"path": str(world / "shards"), "weight": 3, "streaming": streaming},
    ]


@pytest.fixture
def recipe(tmp_path, world, teacher_folders, request):
    streaming, num_workers = request.param
    changes = {"max_steps": 4, "dataloader_num_workers": num_workers}
    data = {"data_path": None, "image_folder": "", "data": sources(world, streaming)}
    return write_recipe(tmp_path, teacher_folders, **data, **changes)


class Interrupted(BaseException):
    """Interrupts training like a signal in the middle of a step."""


def assert_same(whole, resumed):
    """Asserts that the weights and logs of two runs of four steps per stage are equal."""
    expected, actual = (weights_of(run, *STAGES) for run in (whole, resumed))
    assert expected.keys() == actual.keys()
    assert [name for name, tensor in expected.items() if not tensor.equal(actual[name])] == []
    for stage in STAGES:
        assert len(logged_steps(whole, stage)) == 4
        assert logged_steps(whole, stage) == logged_steps(resumed, stage)
    hubs = [run / "hub" / "model.safetensors" for run in (whole, resumed)]
    assert hubs[0].read_bytes() == hubs[1].read_bytes()


@pytest.mark.parametrize(
    "recipe", [(False, 0), (True, 0), (True, 2)], indirect=True, ids=["mixed", "streamed", "streamed_by_workers"]
)
def test_a_mixed_run_that_is_interrupted_resumes_bit_for_bit(recipe, tmp_path, monkeypatch):
    train(str(recipe), [f"output_dir={tmp_path / 'whole'}"])
    step, num_calls = HawaiiTrainer.training_step, 0

    def interrupt(*args, **kwargs):
        nonlocal num_calls
        num_calls += 1
        # In the fourth step of the first stage; in the third step, with two batches, of the next.
        if num_calls in (4, 11):
            raise Interrupted
        return step(*args, **kwargs)

    monkeypatch.setattr(HawaiiTrainer, "training_step", interrupt)
    overrides = [f"output_dir={tmp_path / 'resumed'}"]
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(str(recipe), overrides)
    train(str(recipe), overrides)
    assert_same(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("recipe", [(False, 0)], indirect=True)
def test_other_weights_of_sources_are_another_recipe(recipe, world, tmp_path):
    overrides = [f"output_dir={tmp_path / 'run'}", "max_steps=1"]
    train(str(recipe), overrides)
    shutil.rmtree(tmp_path / "run" / "finetune")
    values = yaml.safe_load(recipe.read_text())
    values["data"][1]["weight"] = 9
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(UserError, match=r"pretrain/model was trained with another recipe: data.*weight.* 3.* 9"):
        train(str(recipe), overrides)


@pytest.mark.parametrize("recipe", [(True, 1), (False, 0)], indirect=True, ids=["streamed", "mixed"])
def test_a_stream_needs_as_many_readers_as_before(recipe, tmp_path, monkeypatch, request):
    overrides = [f"output_dir={tmp_path / 'run'}"]
    step, num_calls = HawaiiTrainer.training_step, 0

    def interrupt(*args, **kwargs):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:
            raise Interrupted
        return step(*args, **kwargs)

    monkeypatch.setattr(HawaiiTrainer, "training_step", interrupt)
    with pytest.raises(Interrupted):
        train(str(recipe), overrides)
    if "streamed" in request.node.name:
        problem = r"checkpoint-2 was trained with another recipe: dataloader_num_workers is 1 there and 2 here"
        with pytest.raises(UserError, match=problem):
            train(str(recipe), [*overrides, "dataloader_num_workers=2"])
        train(str(recipe), [*overrides, "dataloader_num_workers=0"])  # one reader as well
    else:
        train(str(recipe), [*overrides, "dataloader_num_workers=2"])


@pytest.mark.parametrize("recipe", [(False, 0), (True, 0)], indirect=True, ids=["mixed", "streamed"])
def test_the_shares_of_the_samples_are_the_weights(recipe, tmp_path, monkeypatch):
    names: list[str] = []
    original = HawaiiTrainer.get_batch_samples

    def record(self, *args):
        batches, count = original(self, *args)
        names.extend(name for records in self._step_records for name in records)
        return batches, count

    monkeypatch.setattr(HawaiiTrainer, "get_batch_samples", record)
    overrides = ["max_steps=60", "save_strategy=no", "per_device_train_batch_size=4", f"output_dir={tmp_path / 'run'}"]
    train(str(recipe), [*overrides, "stages.finetune.max_steps=1"])
    counts = Counter(int(name.strip("'")) < 20 for name in names[:240])
    assert set(map(int, (name.strip("'") for name in names))) == {*range(7), *range(20, 32)}
    assert counts[True] / 240 == pytest.approx(0.25, abs=0.1)


# Each process ends when the first one has begun its fourth step.
STOP = """
import os, sys
from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.training.trainer import HawaiiTrainer
step = HawaiiTrainer.training_step

def stop(self, *args, **kwargs):
    if self.state.global_step == 3:
        os._exit(9)
    return step(self, *args, **kwargs)

HawaiiTrainer.training_step = stop
main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [(True, 1)], indirect=True)
def test_two_processes_with_a_stream_resume_bit_for_bit(recipe, tmp_path):
    (tmp_path / "script.py").write_text(STOP)

    def run(name, *program):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program, str(recipe)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        options = {"capture_output": True, "text": True, "timeout": 300, "env": environment}
        return subprocess.run([sys.executable, *command, f"output_dir={tmp_path / name}"], **options)

    train_in_two = ("-m", "hawaii", "train")
    whole = run("whole", *train_in_two)
    assert whole.returncode == 0, whole.stderr[-4000:]
    assert run("resumed", str(tmp_path / "script.py")).returncode != 0
    resumed = run("resumed", *train_in_two)
    assert f"Resuming from {tmp_path / 'resumed' / 'pretrain' / 'checkpoint-2'}" in resumed.stdout, resumed.stderr
    assert_same(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("recipe", [(True, 2)], indirect=True)
def test_a_broken_shard_ends_the_run_with_a_sentence(recipe, world, tmp_path, capsys):
    shutil.copytree(world / "shards", tmp_path / "shards")
    data = [
        {**source, "path": source["path"].replace(str(world / "shards"), str(tmp_path / "shards"))}
        for source in sources(world, True)
    ]
    broken = tmp_path / "shards" / "train-28.parquet"
    broken.write_bytes(broken.read_bytes()[:300])
    assert main(["train", str(recipe), f"data={json.dumps(data)}"]) == 2
    assert f"because of {broken}: " in capsys.readouterr().err
