"""Several commands in one folder, and what becomes of runs whose command ends before them."""

import os
import signal
import time

import pytest


def ends(process: int) -> bool:
    """Whether a process ends within seconds."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_commands_that_share_a_folder_train_each_run_once(world):
    commands = [world.start("--seeds 0 1 --rows llava hawaii radio") for _ in range(2)]
    said = [command.communicate(timeout=120)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    assert sorted(world.trained()) == sorted(set(world.trained())) and len(world.trained()) == 6
    # Each waits for what the other works on, and then tells the whole.
    assert all("| + CGKD (HAWAII) |" in text and " of 2 |" not in text for text in said)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_ends_its_runs(world, number):
    (world.folder / "hold").touch()
    world.settings["hold"] = str(world.folder / "hold")
    command = world.start("--seeds 0 --rows llava hawaii --jobs 2")
    trainings = [process for _, _, process, _ in world.wait_for_calls(2)]
    command.send_signal(number)
    command.communicate(timeout=60)
    assert command.returncode != 0
    assert all(map(ends, trainings))


@pytest.mark.slow
def test_what_goes_on_after_a_kill_is_not_begun_beside_itself(world):
    hold = world.folder / "hold"
    hold.touch()
    world.settings["hold"] = str(hold)
    killed = world.start("--seeds 0 --rows llava")
    ((_, _, training, _),) = world.wait_for_calls(1)
    killed.kill()
    killed.communicate()
    second = world.start("--seeds 0 --rows llava")
    assert "llava, seed 0: another process works on it" in second.stdout.readline()
    assert len(world.calls()) == 1
    hold.unlink()
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    # The training ended by itself, so only the evaluation was left.
    assert [command for command, *_ in world.calls()] == ["train", "evaluate"]
    assert ends(training)


def test_what_a_killed_run_started_is_ended_before_the_next_takes_its_place(world, run, capsys):
    world.settings |= {"killed": ["llava/seed-0"], "asked": str(world.folder / "asked")}
    assert run("--seeds 0 --rows llava hawaii") == 2
    (_, (name, _, rest, _), *_) = world.calls()
    assert name == "rest" and ends(rest)
    # It was asked first: torch's launcher then ends those that it started.
    assert (world.folder / "asked").exists()
    assert "llava, seed 0: Training ended with exit code -9" in capsys.readouterr().err
    assert world.trained() == ["llava/seed-0", "hawaii/seed-0"]
