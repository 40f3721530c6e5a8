"""Callbacks of training: the log as JSON lines, and the seconds of training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..files.atomic import write_text
from ..files.run_contents import LOG_FILE
from ..files.write_errors import explain_write_errors


def read_log(path: Path) -> list[dict]:
    """The entries of a `log.jsonl`. Other lines are left out, such as a truncated one, which a killed run leaves."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


class JsonLinesCallback(TrainerCallback):
    """Appends log entries to `log.jsonl` in the stage's folder. A resume removes the entries of steps to repeat."""

    def on_train_begin(self, args, state, control, **kwargs):
        path = Path(args.output_dir) / LOG_FILE
        if state.is_world_process_zero and path.is_file():
            # A run that starts over evaluates again before its first step.
            entries = read_log(path) if state.global_step else []
            # The final summary is written again.
            kept = [each for each in entries if each["step"] <= state.global_step and "train_runtime" not in each]
            write_text(path, "".join(f"{json.dumps(entry)}\n" for entry in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            path = Path(args.output_dir) / LOG_FILE
            remedy = "run the same command again, which continues from the last checkpoint."
            with explain_write_errors(path, remedy):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class TimerCallback(TrainerCallback, ExportableState):
    """Counts the seconds of training; a resume continues from the seconds in the trainer's state."""

    def __init__(self, seconds: float = 0.0):
        self._seconds = seconds  # until the last stop
        self._start: float | None = None  # while it runs

    @property
    def seconds(self) -> float:
        return self._seconds + (0.0 if self._start is None else monotonic() - self._start)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the timer inside the `with` block."""
        is_running = self._start is not None
        self._seconds, self._start = self.seconds, None
        try:
            yield
        finally:
            self._start = monotonic() if is_running else None

    def state(self) -> dict:
        return {"args": {"seconds": self.seconds}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self._seconds, self._start = self.seconds, None
