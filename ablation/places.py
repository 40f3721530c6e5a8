"""Where runs of an ablation take place: the devices and threads of each that is at work at once."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch


# What a launcher tells the processes it starts of each other: the variables of torch and accelerate, and those of MPI
# that accelerate reads. A run is started by itself, or by a launcher of its own. The threads are for as many processes
# as that launcher started, and torch and accelerate set them unasked; accelerate also where it starts one alone, which
# it tells no rank.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
RANK_HERE = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
NUM_HERE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
OTHERS = ("WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
# Set wherever accelerate starts a process, and by hardly anybody else: of what it sets, others are a user's settings.
ONE_ALONE = "ACCELERATE_DYNAMO_USE_FULLGRAPH"
PREFIXES = ("GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")


@dataclass(frozen=True)
class Rank:
    """This process among those that one launcher started: everywhere, and on this machine."""

    everywhere: int
    here: int
    num_here: int


@dataclass(frozen=True)
class Place:
    """
    Args:
        training, evaluation (`Mapping[str, str]`):
            Environments of the processes.
        num_processes (`int`):
            That answer questions, each on one device.
    """

    training: Mapping[str, str]
    evaluation: Mapping[str, str]
    num_processes: int


def leave_group(environment: MutableMapping[str, str]) -> Rank:
    """Takes from an environment what makes a process one of several, and says which it was."""

    def read(names: Sequence[str], otherwise: int) -> int:
        return int(next((environment[name] for name in names if name in environment), otherwise))

    if not any(name in environment for name in (*RANK_HERE, ONE_ALONE)):
        return Rank(0, 0, 1)
    rank = Rank(everywhere=read(RANK, 0), here=read(RANK_HERE, 0), num_here=read(NUM_HERE, 1))
    for name in [*environment]:
        if name in (*RANK, *RANK_HERE, *NUM_HERE, *OTHERS) or name.startswith(PREFIXES):
            del environment[name]
    return rank


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """The names of the CUDA devices that this process may use."""
    count = torch.cuda.device_count()
    named = environment.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_places(
    environment: Mapping[str, str], devices: list[str], num_cores: int, rank: Rank, jobs: int, has_launcher: bool
) -> list[Place]:
    """
    A place for each run at once.

    Args:
        environment (`Mapping[str, str]`):
            What they have in common.
        devices (`list[str]`):
            Handed out in turn: one to each run, or all that are its, where a launcher starts several processes for it.
        num_cores (`int`):
            Shared evenly, unless `environment` says how many threads a process has.
        rank (`Rank`):
            Others of this machine take their share as well.
        jobs (`int`):
            Runs at once.
        has_launcher (`bool`):
            Whether a launcher starts training; threads are then its own to give.
    """
    total = rank.num_here * jobs
    places = []
    for number in range(rank.here * jobs, (rank.here + 1) * jobs):
        own = devices[number::total] if has_launcher else []
        own = own or [devices[number % len(devices)]] if devices else []
        shared = {**environment, **({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {})}
        evaluation = {"OMP_NUM_THREADS": str(max(1, num_cores // total)), **shared}
        places.append(Place(shared if has_launcher else evaluation, evaluation, max(1, len(own))))
    return places
