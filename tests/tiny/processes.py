"""Runs of `hawaii train` in several processes on CPUs, many in one launch: importing torch takes longer than a run."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


ACCELERATE = Path(__file__).parents[2] / "training/accelerate"
CPUS_AS_GPUS = Path(__file__).parents[1] / "cpus_as_gpus"
# Setups of runs, see [`Run`].
# transformers asks a GPU whether it has bfloat16.
BF16 = """
from unittest import mock
stack.enter_context(mock.patch("transformers.training_args.is_torch_bf16_gpu_available", lambda: True))
"""
# Memory that nobody has written yet, such as the padding of a shard, is NaN.
FILL_MEMORY = """
import torch
stack.callback(torch.use_deterministic_algorithms, False)
torch.use_deterministic_algorithms(True, warn_only=True)
assert torch.utils.deterministic.fill_uninitialized_memory
"""
# The third micro-batch of the second process has a loss that is not finite.
BREAK_LOSS = """
from unittest import mock
from hawaii.training.objectives.hawaii import HawaiiObjective
forward, calls = HawaiiObjective.forward, []

def broken(*args):
    loss, terms = forward(*args)
    calls.append(1)
    factor = float("nan") if rank == 1 and len(calls) == 3 else 1.0
    return loss * factor, {**terms, "coarse": terms["coarse"] * factor}

stack.enter_context(mock.patch.object(HawaiiObjective, "forward", broken))
"""
# Run by each process of a launch: job.json lists the runs. Each is recorded: its status, what it prints, and loss and
# records of each micro-batch.
PROCESS = """
import contextlib, faulthandler, json, os, sys, traceback
from pathlib import Path

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
job = json.loads((folder / "job.json").read_text())
faulthandler.dump_traceback_later(job["timeout"], exit=True)  # where it hangs

import torch
from hawaii.__main__ import main
from hawaii.training import train
from hawaii.training.trainer import HawaiiTrainer

torch.set_num_threads(1)
compute_loss = HawaiiTrainer.compute_loss

def record(self, *args, **kwargs):
    loss = compute_loss(self, *args, **kwargs)
    steps.append([float(loss), self._step_records[len(self._step_terms) - 1]])
    return loss

HawaiiTrainer.compute_loss = record
for number, run in enumerate(job["runs"]):
    os.environ.update(run["environment"])
    steps = []
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            file = stack.enter_context(open(folder / f"{number}.{rank}.{name}", "w"))
            stack.enter_context(getattr(contextlib, f"redirect_{name}")(file))
        if run["setup"]:
            exec(run["setup"], {"stack": stack, "rank": int(rank)})
        try:
            status = main(["train", *run["arguments"]])
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
            status = 1
    (folder / f"{number}.{rank}.json").write_text(json.dumps([status, steps]))
    for name in run["environment"]:
        del os.environ[name]
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # its threads may otherwise abort the process when it exits
"""


def launcher_environment(name: str, *flags: str) -> dict[str, str]:
    """
    Returns what `accelerate launch` sets for the processes that it starts with a file of `training/accelerate`, except
    where they are, and that they are on CPUs.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(ACCELERATE / f"{name}.yaml"), "--num_processes", "2", "--main_process_port", "0"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*words, *flags, "-m", "hawaii"]))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    launcher = {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_", "FSDP_"))}
    return {**launcher, "ACCELERATE_TORCH_DEVICE": "cpu"}


@dataclass
class Run:
    """
    Args:
        arguments (`list`):
            Of `hawaii train`.
        environment (`dict[str, str]`):
            Variables that a launcher would set.
        setup (`str`):
            Code that each process runs before, with `rank` and an `ExitStack` named `stack` that ends with the run.
    """

    arguments: list
    environment: dict[str, str] = field(default_factory=dict)
    setup: str = ""


@dataclass
class Outcome:
    """What one process of a run left: its exit status, what it printed, and each micro-batch's loss and record ids."""

    status: int
    stdout: str
    stderr: str
    losses: list[float]
    records: list[list[str]]


def launch(
    folder: Path, runs: list[Run], num_processes: int = 2, timeout: int = 400, **environment
) -> list[list[Outcome]]:
    """
    Starts processes that make the runs one after another, joined by gloo as a launcher would. With
    `ACCELERATE_TORCH_DEVICE` in a run's environment and `use_cpu=false`, accelerate shards it.

    Returns:
        For each run the outcome of each process.
    """
    folder.mkdir(parents=True)
    listed = [
        {"arguments": list(map(str, run.arguments)), "environment": run.environment, "setup": run.setup}
        for run in runs
    ]
    (folder / "job.json").write_text(json.dumps({"runs": listed, "timeout": timeout}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CPUS_AS_GPUS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        **environment,
    }
    processes = []
    for rank in range(num_processes):
        with (folder / f"log.{rank}").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROCESS, str(folder)],
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=log,
                )
            )
    statuses = [process.wait() for process in processes]
    logs = [(folder / f"log.{rank}").read_text()[-4000:] for rank in range(num_processes)]
    assert statuses == [0] * num_processes, "\n".join(logs)
    return [[_read_outcome(folder, number, rank) for rank in range(num_processes)] for number in range(len(runs))]


def _read_outcome(folder: Path, number: int, rank: int) -> Outcome:
    status, steps = json.loads((folder / f"{number}.{rank}.json").read_text())
    texts = [(folder / f"{number}.{rank}.{name}").read_text() for name in ("stdout", "stderr")]
    return Outcome(status, *texts, losses=[loss for loss, _ in steps], records=[records for _, records in steps])
