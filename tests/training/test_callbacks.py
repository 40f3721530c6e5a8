"""The log has each entry once, however often a run was broken off; a clock counts what is to be counted."""

import json
from types import SimpleNamespace

import pytest

from hawaii.training import callbacks
from hawaii.training.callbacks import JsonLinesCallback, TimerCallback


@pytest.fixture
def log(tmp_path):
    """Writes and reads `log.jsonl` through the callback, at a step."""
    args = SimpleNamespace(output_dir=str(tmp_path / "stage"))

    def state(step, is_main=True):
        return SimpleNamespace(global_step=step, is_world_process_zero=is_main)

    path = tmp_path / "stage" / "log.jsonl"
    return SimpleNamespace(
        write=lambda step, logs, **kwargs: JsonLinesCallback().on_log(args, state(step, **kwargs), None, logs),
        begin=lambda step, **kwargs: JsonLinesCallback().on_train_begin(args, state(step, **kwargs), None),
        read=lambda: [json.loads(line) for line in path.read_text().splitlines()],
        path=path,
    )


def test_each_entry_is_a_line_with_its_step(log):
    log.write(1, {"loss": 2.5})
    log.write(2, {"loss": 1.5})
    assert log.read() == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}]


def test_the_main_process_alone_writes(log):
    log.write(1, {"loss": 2.5}, is_main=False)
    assert not log.path.exists()


def test_a_resume_writes_again_what_it_repeats(log):
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.begin(2)
    log.write(3, {"loss": 30})
    assert [entry["loss"] for entry in log.read()] == [1, 2, 30]


def test_a_line_that_a_kill_left_half_written_goes(log):
    log.write(1, {"loss": 1})
    with log.path.open("a") as file:
        file.write('{"step": 2, "lo')
    log.begin(1)
    log.write(2, {"loss": 2})
    assert [entry["step"] for entry in log.read()] == [1, 2]


def test_a_run_that_starts_over_starts_its_log_over(log):
    log.write(0, {"eval_accuracy": 0.5})
    log.write(1, {"loss": 1})
    log.begin(0)
    assert log.read() == []


def test_the_other_processes_leave_the_log_alone(log):
    log.write(1, {"loss": 1})
    log.begin(0, is_main=False)
    assert len(log.read()) == 1


def test_the_summary_of_a_run_that_was_broken_off_goes(log):
    log.write(2, {"loss": 1})
    log.write(2, {"train_runtime": 5.0})
    log.begin(2)
    log.write(2, {"train_runtime": 7.0})
    assert log.read() == [{"step": 2, "loss": 1}, {"step": 2, "train_runtime": 7.0}]


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock.now)
    return clock


def test_a_timer_counts_from_where_training_begins_to_where_it_ends(clock):
    timer = TimerCallback()
    clock.now += 5
    assert timer.seconds == 0
    timer.on_train_begin(None, None, None)
    clock.now += 3
    assert timer.seconds == 3
    timer.on_train_end(None, None, None)
    clock.now += 5
    assert timer.seconds == 3


def test_a_timer_leaves_out_what_it_is_paused_for(clock):
    timer = TimerCallback()
    timer.on_train_begin(None, None, None)
    clock.now += 3
    with pytest.raises(ValueError), timer.paused():
        clock.now += 10
        assert timer.seconds == 3
        raise ValueError
    clock.now += 2
    assert timer.seconds == 5


def test_a_timer_that_does_not_run_is_not_started_by_a_pause(clock):
    timer = TimerCallback(seconds=7.0)
    with timer.paused():
        clock.now += 1
    clock.now += 1
    assert timer.seconds == 7


def test_a_resumed_timer_goes_on_from_the_seconds_that_were_saved(clock):
    timer = TimerCallback()
    timer.on_train_begin(None, None, None)
    clock.now += 3
    resumed = TimerCallback(**timer.state()["args"])
    resumed.on_train_begin(None, None, None)
    clock.now += 4
    assert resumed.seconds == 7
