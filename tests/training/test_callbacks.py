"""The log has each entry once, however often a run was interrupted; the timer counts the seconds of training."""

import json
from types import SimpleNamespace

import pytest

from hawaii.training.callbacks import JsonLinesCallback, TimerCallback


@pytest.fixture
def log(tmp_path):
    """Calls the callback at a step, and reads the `log.jsonl` that it writes."""
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


def test_only_the_main_process_writes(log):
    log.write(1, {"loss": 2.5}, is_main=False)
    assert not log.path.exists()


def test_a_resume_replaces_the_entries_of_steps_that_it_repeats(log):
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.begin(2)
    log.write(3, {"loss": 30})
    assert [entry["loss"] for entry in log.read()] == [1, 2, 30]


def test_a_resume_removes_a_truncated_line(log):
    log.write(1, {"loss": 1})
    with log.path.open("a") as file:
        file.write('{"step": 2, "lo')
    log.begin(1)
    log.write(2, {"loss": 2})
    assert [entry["step"] for entry in log.read()] == [1, 2]


@pytest.mark.parametrize(
    "line", [b"5", b"[1]", b"null", b'{"loss": 1}', b'{"step": 1e400}', b'{"step": "1"}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_resume_removes_lines_that_are_no_entries(log, line):
    log.write(1, {"loss": 1})
    with log.path.open("ab") as file:
        file.write(line + b"\n")
    log.begin(1)
    assert log.read() == [{"step": 1, "loss": 1}]


def test_a_run_that_starts_over_clears_the_log(log):
    log.write(0, {"eval_accuracy": 0.5})
    log.write(1, {"loss": 1})
    log.begin(0)
    assert log.read() == []


def test_the_other_processes_do_not_change_the_log(log):
    log.write(1, {"loss": 1})
    log.begin(0, is_main=False)
    assert len(log.read()) == 1


def test_a_resume_removes_the_summary_of_the_interrupted_run(log):
    log.write(2, {"loss": 1})
    log.write(2, {"train_runtime": 5.0})
    log.begin(2)
    log.write(2, {"train_runtime": 7.0})
    assert log.read() == [{"step": 2, "loss": 1}, {"step": 2, "train_runtime": 7.0}]


def test_the_timer_counts_from_the_beginning_to_the_end_of_training(clock):
    timer = TimerCallback()
    clock.now += 5
    assert timer.seconds == 0
    timer.on_train_begin(None, None, None)
    clock.now += 3
    assert timer.seconds == 3
    timer.on_train_end(None, None, None)
    clock.now += 5
    assert timer.seconds == 3


def test_a_paused_timer_does_not_count(clock):
    timer = TimerCallback()
    timer.on_train_begin(None, None, None)
    clock.now += 3
    with pytest.raises(ValueError), timer.paused():
        clock.now += 10
        assert timer.seconds == 3
        raise ValueError
    clock.now += 2
    assert timer.seconds == 5


def test_a_pause_does_not_start_a_stopped_timer(clock):
    timer = TimerCallback(seconds=7.0)
    with timer.paused():
        clock.now += 1
    clock.now += 1
    assert timer.seconds == 7


def test_a_resumed_timer_continues_from_the_saved_seconds(clock):
    timer = TimerCallback()
    timer.on_train_begin(None, None, None)
    clock.now += 3
    resumed = TimerCallback(**timer.state()["args"])
    resumed.on_train_begin(None, None, None)
    clock.now += 4
    assert resumed.seconds == 7
