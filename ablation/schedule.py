"""Works through the runs of an ablation: several at once, beside other processes that do the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from .claim import Claim
from .places import Place
from .run import Run


CLAIM_FILE = "claim.lock"
POLL_SECONDS = 0.1
# How often to look for runs that others ended, or left.
LOOK_SECONDS = 1.0
# Torch's launcher, whose processes have sessions of their own, ends them when it is asked to.
GRACE_SECONDS = 30.0


@dataclass(eq=False)
class Work:
    """A run under way."""

    run: Run
    place: Place
    claim: Claim
    steps: Iterator[tuple[str, subprocess.Popen]]
    process: subprocess.Popen | None = None


def _signal(process: subprocess.Popen, number: int) -> bool:
    """To a process and all that it started in its group; whether any of them is there. The number 0 does nothing."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _lives(process: subprocess.Popen) -> bool:
    """Whether a process, or one that it started in its group, has not ended."""
    process.poll()  # until it is asked for, what has ended is there
    return _signal(process, 0)


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """Ends processes with all that they started, also where they have ended themselves; asks first."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    end = time.monotonic() + GRACE_SECONDS
    while any(map(_lives, processes)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()


def _reason(error: Exception) -> str:
    """What an error says; of one that nobody expected, also its name."""
    return f"{error}" if isinstance(error, ValueError | OSError) else repr(error)


@contextmanager
def _exit_when_terminated() -> Iterator[None]:
    """Makes of the signal that would end this process at once an exit that stops its children."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Schedule:
    """
    Works through runs in their order, as many at once as there are places. A run that another process has claimed is
    left to that one and waited for; if that one dies, the run is taken up from where it was.

    Args:
        runs (`Sequence[Run]`):
            All; what is done is passed over.
        places (`Sequence[Place]`):
            One for each run at once.
        on_done (`Callable[[Run], None]`):
            Called when one is done here. An error of it is said and stops no run.
    """

    def __init__(self, runs: Sequence[Run], places: Sequence[Place], on_done: Callable[[Run], None]):
        self.on_done = on_done
        self.start = time.time()
        self.num_runs = len(runs)
        self.waiting = list(runs)
        self.free = list(places)
        self.at_work: list[Work] = []
        self.failures: dict[Run, str] = {}
        self.left_to_others: set[Run] = set()
        self.next_look = 0.0

    def run(self) -> dict[Run, str]:
        """
        Returns:
            `dict[Run, str]`: why, for each run that failed, here or in a process at work at the same time.
        """
        with _exit_when_terminated():
            try:
                while self.waiting or self.at_work:
                    self._begin()
                    time.sleep(POLL_SECONDS)
                    for work in [work for work in self.at_work if work.process.poll() is not None]:
                        self._go_on(work)
            finally:
                _stop([work.process for work in self.at_work if work.process is not None])
                for work in self.at_work:
                    work.claim.release()
        return self.failures

    def _say(self, run: Run, what: str, ended: bool = False) -> None:
        num_ended = self.num_runs - len(self.waiting) - len(self.at_work)
        print(f"{run}: {what}" + (f" ({num_ended} of {self.num_runs})" if ended else ""), flush=True)

    def _say_once(self, run: Run, what: str) -> None:
        if run not in self.left_to_others:
            self._say(run, what)
            self.left_to_others.add(run)

    def _fail(self, run: Run, error: Exception) -> str:
        """Notes why a run failed, so that the others go on; what to say of it. One that was done did not fail."""
        with suppress(OSError):
            if run.is_done():
                return f"is done, but an error came after it: {_reason(error)}"
        self.failures[run] = _reason(error)
        with suppress(OSError):  # a full disk may be the reason; then other processes find it themselves
            run.note_failure(self.failures[run])
        return f"failed: {self.failures[run]}"

    def _how_it_ended(self, run: Run) -> str | None:
        """What to say of a run that is done, or failed elsewhere; nothing of another."""
        if run.is_done():
            run.remove_what_is_large()  # if a kill came between the two
            return "is done"
        if (reason := run.failed_since(self.start)) is not None:
            self.failures[run] = reason
            return "failed in another process"
        return None

    def _begin(self) -> None:
        """Takes up what nobody works on, as far as there are places."""
        if time.monotonic() < self.next_look:
            return
        for run in list(self.waiting):
            if not self.free:
                return
            claim = Claim(run.folder / CLAIM_FILE)
            try:
                # What is done or failed elsewhere has its claim free again.
                if not claim.take():
                    self._say_once(run, "another process works on it")
                    continue
                said = self._how_it_ended(run)
            except Exception as error:  # whatever it is: the other runs go on
                said = self._fail(run, error)
            self.waiting.remove(run)
            if said is None:
                place = self.free.pop(0)
                steps = run.steps(place.training, place.evaluation, place.num_processes, claim.descriptor)
                self.at_work.append(Work(run, place, claim, steps))
                self._go_on(self.at_work[-1])
            else:
                claim.release()
                self._say(run, said, ended=True)
        self.next_look = time.monotonic() + LOOK_SECONDS

    def _go_on(self, work: Work) -> None:
        """Lets a run start its next process, or ends it."""
        if work.process is not None:
            # If it was killed, what it started is still in its place. Torch's launcher, killed like that, leaves
            # processes that nothing here leads to.
            _stop([work.process])
        try:
            step = next(work.steps, None)
            said = f"done, {work.run.summary()}" if step is None else f"{step[0]}; {work.run.log} says how far it is"
        except Exception as error:  # as above
            step, said = None, self._fail(work.run, error)
        if step is not None:
            work.process = step[1]
            self._say(work.run, said)
            return
        self.at_work.remove(work)
        self.free.append(work.place)
        work.claim.release()
        self.next_look = 0.0
        self._say(work.run, said, ended=True)
        if work.run not in self.failures:
            try:
                self.on_done(work.run)
            except Exception as error:  # the caller's; the run is done all the same
                self._say(work.run, f"is done, but an error came after it: {_reason(error)}")
