"""Runs on a local Ray cluster produce the same table as without Ray, even if a worker is killed."""

import os
import signal
import sys
from pathlib import Path

import pytest

from hawaii.ablation.cluster import cores_per_run
from hawaii.tests.ablation.world import World
from hawaii.tests.tiny.waiting import wait_until_gone


WORDS = "--seeds 0 --rows llava hawaii"


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])


@pytest.mark.parametrize(
    ("cores", "jobs", "expected"), [([2, 2], 1, 2), ([2, 2], 2, 1), ([0, 8], 2, 4), ([2, 2], 8, 1)]
)
def test_a_run_fits_on_one_machine_of_the_cluster(cores, jobs, expected):
    assert cores_per_run([{"CPU": number} if number else {} for number in cores], jobs) == expected


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_in_the_table(tmp_path, world, run):
    # The same recipe without Ray, in another folder.
    assert run(WORDS) == 0
    expected, table = world.read(), (world.output / "ablation.md").read_text()
    assert sorted(world.trained()) == ["hawaii/seed-0", "llava/seed-0"]
    (world.folder / "calls").unlink()

    hold = world.folder / "hold"
    hold.touch()
    world.settings["hold"] = str(hold)
    world.output = world.folder / "on_ray"
    command = world.start(f"{WORDS} --cluster local --jobs 2")
    # Two trainings at once, each the child of its own Ray worker. Both wait.
    (_, name, training, _), (_, _, other, _) = world.wait_for_calls(2, command)
    workers = {parent(training), parent(other)}
    assert len(workers) == 2 and command.pid not in workers
    os.kill(parent(training), signal.SIGKILL)
    calls = world.wait_for_calls(3, command)
    assert calls[2][:2] == ["train", name]  # repeated by another worker
    assert parent(calls[2][2]) not in workers
    hold.unlink()
    output, _ = command.communicate()
    assert command.returncode == 0, output
    assert sorted(world.trained()) == sorted(["hawaii/seed-0", "llava/seed-0", name])
    assert world.read() == expected
    assert (world.output / "ablation.md").read_text() == table


@pytest.mark.slow
def test_the_training_of_a_killed_worker_ends_although_other_runs_are_waiting(world):
    hold = world.folder / "hold"
    hold.touch()
    world.settings["hold"] = str(hold)
    command = world.start("--seeds 0 1 --rows llava hawaii --cluster local --jobs 2")
    (_, name, training, _), _ = world.wait_for_calls(2, command)
    os.kill(parent(training), signal.SIGKILL)
    # Ray executes a waiting run before it repeats this one, whose training must not share the device.
    wait_until_gone(training)
    hold.unlink()
    output, _ = command.communicate()
    assert command.returncode == 0, output
    assert world.trained().count(name) == 2 and len(world.trained()) == 5


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_finish(world):
    world.settings["fail"] = ["hawaii/seed-0"]
    command = world.start(f"{WORDS} --cluster local --jobs 2")
    output, _ = command.communicate()
    assert command.returncode == 2
    assert "1 of 2 runs failed, and the same command tries them again. hawaii, seed 0: Training ended" in output
    assert world.trained().count("hawaii/seed-0") == 1  # an error of the run itself is not repeated


def test_without_ray_one_sentence_names_the_extra(world: World, run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("--seeds 0 --rows llava --cluster auto") == 2
    assert "--cluster needs Ray, which is not installed: pip install 'hawaii-vlm[cluster]'." in capsys.readouterr().err
    assert world.trained() == []
