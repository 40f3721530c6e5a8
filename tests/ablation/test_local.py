"""Runs on one machine share its devices, end with the command, and continue after it was killed."""

import signal
from pathlib import Path

import pytest

from hawaii.ablation.local import share_devices
from hawaii.tests.tiny.waiting import wait_until_gone


@pytest.mark.parametrize(
    ("devices", "jobs", "has_launcher", "shares"),
    [
        ([], 2, False, [[], []]),
        (["3", "5"], 2, False, [["3"], ["5"]]),
        (["3", "5"], 3, False, [["3"], ["5"], ["3"]]),
        (["3", "5"], 1, False, [["3"]]),
        (["0", "1", "2", "3"], 2, True, [["0", "2"], ["1", "3"]]),
        (["0"], 2, True, [["0"], ["0"]]),
    ],
)
def test_each_simultaneous_run_has_its_devices(devices, jobs, has_launcher, shares):
    assert share_devices(devices, jobs, has_launcher) == shares


def hold(world):
    """Makes trainings wait until the returned file is removed."""
    path = world.folder / "hold"
    path.touch()
    world.settings["hold"] = str(path)
    return path


def is_running(process: int) -> bool:
    """Whether a process exists and is not a zombie."""
    path = Path(f"/proc/{process}/stat")
    return path.exists() and path.read_text().rpartition(") ")[2][0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_trainings_and_the_same_command_continues(world, number):
    path = hold(world)
    command = world.start("--seeds 0 --rows llava hawaii --jobs 2")
    trainings = [process for _, _, process, _ in world.wait_for_calls(2, command)]
    command.send_signal(number)
    command.communicate()
    assert command.returncode != 0
    for process in trainings:
        assert not is_running(process)
    path.unlink()
    command = world.start("--seeds 0 --rows llava hawaii --jobs 2")
    assert "| LLaVA" in command.communicate()[0] and command.returncode == 0
    assert sorted(world.trained()) == ["hawaii/seed-0"] * 2 + ["llava/seed-0"] * 2


@pytest.mark.slow
def test_a_training_ends_when_its_command_is_killed(world):
    hold(world)
    command = world.start("--seeds 0 --rows llava")
    ((_, _, training, _),) = world.wait_for_calls(1, command)
    command.kill()
    command.communicate()
    wait_until_gone(training)


@pytest.mark.slow
def test_a_training_that_survived_its_command_is_ended_before_the_run_continues(world):
    path = hold(world)
    words = f"--seeds 0 --rows llava --launcher {world.launcher()}"
    first = world.start(words)
    ((_, _, orphan, _),) = world.wait_for_calls(1, first)
    first.kill()
    first.wait()
    assert is_running(orphan)  # its launcher ended without it
    second = world.start(words)
    calls = world.wait_for_calls(2, second)  # the second training starts only when the first has ended
    assert [name for _, name, *_ in calls] == ["llava/seed-0"] * 2
    assert not is_running(orphan)
    path.unlink()
    assert "| LLaVA" in second.communicate()[0] and second.returncode == 0
    assert len(world.trained()) == 2


@pytest.mark.slow
def test_a_second_command_in_the_same_folder_is_refused(world, run, capsys):
    path = hold(world)
    first = world.start("--seeds 0 --rows llava")
    world.wait_for_calls(1, first)
    assert run("--seeds 0 --rows llava") == 2
    assert f"Another `hawaii ablate` is working in {world.output}: wait until it ends." in capsys.readouterr().err
    path.unlink()
    first.communicate()
    assert first.returncode == 0


def test_a_launcher_cannot_start_the_command(world, run, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run("--seeds 0 --rows llava") == 2
    assert "`hawaii ablate` was started by a launcher" in capsys.readouterr().err


def test_processes_left_by_a_failed_training_are_ended(world, run):
    world.settings |= {"killed": ["llava/seed-0"], "asked": str(world.folder / "asked")}
    assert run("--seeds 0 --rows llava") == 2
    rest = next(process for command, _, process, _ in world.calls() if command == "rest")
    wait_until_gone(rest)
    assert (world.folder / "asked").exists()
