"""
Interrupts tiny runs of `hawaii train`: kills them, damages their newest checkpoint or fills the disk. Counts the
outcomes. A run is exact if its weights, optimizers, random states and losses equal those of an uninterrupted run bit
for bit.

    python benchmarks/training/interruptions.py kill --kills 80 --pairs 20
    python benchmarks/training/interruptions.py damage
    python benchmarks/training/interruptions.py disk
    python benchmarks/training/interruptions.py hash --megabytes 1000
    python benchmarks/training/interruptions.py kill --kills 20 dataloader_num_workers=2
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from hawaii.__main__ import main
from hawaii.tests.finished_runs import logged_steps
from hawaii.tests.folders import DAMAGES, contents, damage
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import (
    make_arguments,
    make_dataset,
    make_module,
    make_record,
    save_data,
    save_teachers,
    write_recipe,
)
from hawaii.training import saving
from hawaii.training.checkpoints import find_checkpoint
from hawaii.training.data.conversation_dataset import Collator
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teachers
from hawaii.training.train import train  # noqa: F401  imported once, before the processes are forked
from hawaii.training.trainer import HawaiiTrainer


STAGES = ("pretrain", "finetune")
GRACE_SECONDS = 120


def start(arguments: list[str], num_processes: int, log: Path) -> list[int]:
    """Forks the processes of one `hawaii train` and returns their ids."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(num_processes):
        if pid := os.fork():
            pids.append(pid)
            continue
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if num_processes > 1:
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        status = 1
        try:
            status = main(["train", *arguments])
        finally:
            os._exit(status)
    return pids


def wait(pids: list[int], seconds: float = GRACE_SECONDS) -> list[int]:
    """Waits for processes; returns the exit statuses of those that have ended, all if within `seconds`."""
    statuses: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(statuses) < len(pids) and time.monotonic() < end:
        for pid in (pid for pid in pids if pid not in statuses):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    for pid in (pid for pid in pids if pid not in statuses and seconds == GRACE_SECONDS):
        os.kill(pid, signal.SIGKILL)  # it waits for a process that was killed
        statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    pids[:] = [pid for pid in pids if pid not in statuses]
    return list(statuses.values())


def flatten(state, path=""):
    """The tensors and numbers of a nested state, by path."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: leaf for key, item in items for name, leaf in flatten(item, f"{path}/{key}").items()}
    return {path: torch.as_tensor(state)} if isinstance(state, torch.Tensor | int | float) else {}


def read_run(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights, optimizers, random states and logged losses of a finished run."""
    numbers = {}
    for stage in STAGES:
        last = max((folder / stage).glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for path in [*last.glob("*.safetensors"), *(folder / stage / "model").glob("*.safetensors")]:
            numbers |= {f"{path.relative_to(folder)} {name}": value for name, value in load_file(path).items()}
        for path in [last / "optimizer.pt", last / "scheduler.pt", *last.glob("rng_state*.pth")]:
            # This script's own runs wrote these files; the state of Python's generator is not a tensor.
            state = torch.load(path, weights_only=False)
            numbers |= flatten(state, str(path.relative_to(folder)))
        numbers |= flatten(logged_steps(folder, stage), f"{stage}/log")
    return numbers | flatten(load_file(folder / "hub" / "model.safetensors"), "hub")


def is_exact(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    """Whether a run is finished and its numbers equal `expected`."""
    if not (folder / "hub").is_dir():
        return False
    numbers = read_run(folder)
    return numbers.keys() == expected.keys() and all(
        torch.equal(numbers[name], value) for name, value in expected.items()
    )


def kill_runs(recipe: Path, overrides: list[str], num_kills: int, num_processes: int, scratch: Path) -> Counter:
    """Kills runs at random moments, `num_kills` times in all, and compares each with an uninterrupted run."""
    whole, log = scratch / f"whole-{num_processes}", scratch / "log"
    began = time.monotonic()
    statuses = wait(start([str(recipe), f"output_dir={whole}", *overrides], num_processes, log))
    duration = time.monotonic() - began
    assert statuses == [0] * num_processes, log.read_text()
    expected, counts, run = read_run(whole), Counter(), 0
    while counts["kills"] < num_kills:
        run += 1
        folder = scratch / f"run-{num_processes}-{run}"
        kills = 0
        while True:
            pids = start([str(recipe), f"output_dir={folder}", *overrides], num_processes, log)
            may_kill = counts["kills"] + kills < num_kills
            began = time.monotonic()
            statuses = wait(pids, random.uniform(0, duration) if may_kill else GRACE_SECONDS)
            if not pids:
                if not kills:  # the machine may be less busy than before
                    duration = time.monotonic() - began
                break
            kills += 1
            victim = random.choice(pids)
            os.kill(victim, signal.SIGKILL)
            time.sleep(random.choice([0, 0.05]))
            for pid in pids:  # as a launcher ends the other processes
                os.kill(pid, signal.SIGKILL)
            wait(pids)
        counts["kills"] += kills
        counts["runs"] += 1
        exact = statuses == [0] * num_processes and is_exact(folder, expected)
        counts["exact runs"] += exact
        counts["kills of exact runs"] += kills if exact else 0
        if not exact:
            print(f"{folder} is not exact; the end of its log:\n{log.read_text()[-2000:]}", flush=True)
        else:
            shutil.rmtree(folder)
        log.unlink()
        print(f"{num_processes} processes: {dict(counts)}", flush=True)
    return counts


def damage_checkpoints(recipe: Path, overrides: list[str], stage: str, scratch: Path) -> Counter:
    """Damages each file of a stage's newest checkpoint in four ways and resumes."""
    whole, log = scratch / "whole", scratch / "log"
    assert wait(start([str(recipe), f"output_dir={whole}", *overrides], 1, log)) == [0], log.read_text()
    expected, counts = read_run(whole), Counter()
    interrupted = shutil.copytree(whole, scratch / "interrupted")
    later = STAGES[STAGES.index(stage) + 1 :]
    for left in ("hub", f"{stage}/model", *later):
        shutil.rmtree(interrupted / left)
    (interrupted / "train_results.json").unlink()
    newest = max((interrupted / stage).glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for name in contents(newest):
        for kind in DAMAGES:
            log.unlink(missing_ok=True)
            folder = shutil.copytree(interrupted, scratch / "run")
            damage(folder / stage / newest.name / name, kind)
            statuses = wait(start([str(recipe), f"output_dir={folder}", *overrides], 1, log))
            output = log.read_text()
            fell_back = f"{newest.name} is skipped, because" in output
            if statuses == [0] and is_exact(folder, expected):
                outcome = "fallen back, then exact" if fell_back else "exact"
            else:
                outcome = "traceback" if "Traceback" in output else "refused" if statuses == [2] else "silently wrong"
                print(f"{name} {kind}: {outcome}\n{output[-1000:]}", flush=True)
            counts[outcome] += 1
            shutil.rmtree(folder)
        print(f"{stage}, {name}: {dict(counts)}", flush=True)
    return counts


def fill_disks(recipe: Path, overrides: list[str], scratch: Path) -> Counter:
    """Trains on five file systems that are too small, then makes them larger and continues. Needs root on Linux."""
    whole, log = scratch / "whole", scratch / "log"
    assert wait(start([str(recipe), f"output_dir={whole}", *overrides], 1, log)) == [0], log.read_text()
    expected, counts = read_run(whole), Counter()
    needed = sum(len(content) for content in contents(whole).values())
    for percent in (5, 20, 40, 60, 90):
        log.unlink(missing_ok=True)
        disk = scratch / f"disk-{percent}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={needed * percent // 100}", "tmpfs", disk], check=True)
        try:
            arguments = [str(recipe), f"output_dir={disk / 'run'}", *overrides]
            statuses = wait(start(arguments, 1, log))
            output = log.read_text()
            lines = [line for line in output.splitlines() if line.startswith("hawaii train: ")]
            is_sentence = statuses == [2] and len(lines) == 1 and "Traceback" not in output and str(disk) in lines[0]
            skipped = [find_checkpoint(disk / "run" / stage) for stage in STAGES]
            counts["disks"] += 1
            counts["one sentence with the path"] += is_sentence
            counts["all checkpoints whole"] += not any(found.skipped for found in skipped if found is not None)
            print(f"{percent} % of {needed:,} bytes: {lines}", flush=True)
            subprocess.run(["mount", "-o", f"remount,size={needed * 3}", disk], check=True)
            assert wait(start(arguments, 1, log)) == [0], log.read_text()
            counts["continued exactly"] += is_exact(disk / "run", expected)
        finally:
            subprocess.run(["umount", disk], check=True)
    return counts


def time_hashes(megabytes: int, scratch: Path) -> None:
    """Prints the share of the time of a save that the manifest takes, for checkpoints of about `megabytes`."""
    seconds: dict[str, list[float]] = {"save": [], "manifest": []}

    def timed(name, function):
        def run(*args):
            began = time.perf_counter()
            function(*args)
            seconds[name].append(time.perf_counter() - began)

        return run

    processor = make_processor()
    # A checkpoint has three numbers of four bytes for each weight; nine tenths of the weights are in the language
    # model.
    layers = max(1, round(megabytes * 1e6 * 0.9 / 12 / (12 * 1024**2)))
    text = {"hidden_size": 1024, "intermediate_size": 2730, "num_hidden_layers": layers, "num_key_value_heads": 4}
    module = make_module(text=text)
    trainer = HawaiiTrainer(
        model=module,
        teachers=load_teachers(
            [TeacherConfig.parse(str(path)) for path in save_teachers(scratch / "teachers").values()]
        ),
        args=make_arguments(scratch / "run", max_steps=3, save_steps=1, save_total_limit=1, disable_tqdm=True),
        train_dataset=make_dataset(save_data(scratch, [make_record(number) for number in range(6)]), processor),
        data_collator=Collator(processor, 32),
        processing_class=processor,
    )
    save = timed("save", trainer._save_checkpoint)
    trainer._save_checkpoint = save  # pyright: ignore[reportAttributeAccessIssue]
    saving.write_manifest = timed("manifest", saving.write_manifest)
    trainer.train()
    size = sum(path.stat().st_size for path in (scratch / "run" / "checkpoint-3").rglob("*"))
    for save, manifest in zip(*seconds.values(), strict=True):
        print(f"{size / 1e6:,.0f} MB in {save:.2f} s, of which {manifest / save:.0%} for hashes")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("kill", "damage", "disk", "hash"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--kills", type=int, default=80, help="kills of runs of one process (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=0, help="kills of runs of two processes (default: %(default)s)")
    parser.add_argument("--stage", choices=STAGES, default="finetune", help="its newest checkpoint is damaged")
    parser.add_argument("--steps", type=int, default=6, help="steps of each stage (default: %(default)s)")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the checkpoint (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if args.command == "hash":
            time_hashes(args.megabytes, scratch)
            return
        recipe = write_recipe(scratch, save_teachers(scratch / "teachers"), max_steps=args.steps)
        if args.command == "damage":
            print(f"damaged: {dict(damage_checkpoints(recipe, args.overrides, args.stage, scratch))}")
            return
        if args.command == "disk":
            print(f"full: {dict(fill_disks(recipe, args.overrides, scratch))}")
            return
        for num_processes, num_kills in ((1, args.kills), (2, args.pairs)):
            if num_kills:
                counts = kill_runs(recipe, args.overrides, num_kills, num_processes, scratch)
                print(f"killed, {num_processes} processes: {dict(counts)}", flush=True)


if __name__ == "__main__":
    sys.exit(run())
