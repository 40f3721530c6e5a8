"""Executes runs on the machines of a Ray cluster."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..files.user_error import UserError, explain_errors
from .run import Run


# Attempts after the first one, if a worker or its machine is lost.
MAX_RETRIES = 3


def cores_per_run(machines: Sequence[Mapping[str, float]], jobs: int) -> int:
    """Cores of each of `jobs` simultaneous runs on the largest machine: Ray never splits a run between machines."""
    return max(1, int(max(machine.get("CPU", 0) for machine in machines)) // jobs)


def execute_on_worker(run: Run, num_devices: int) -> str | None:
    """Executes a run in a Ray worker, whose environment sets devices and threads. Returns the error, if any."""
    try:
        run.execute(dict(os.environ), num_processes=max(1, num_devices))
    except (UserError, OSError) as error:
        return str(error)
    return None


def run_on_cluster(
    runs: Sequence[Run],
    address: str,
    jobs: int,
    devices_per_run: int,
    report: Callable[[Run, BaseException | None], None],
) -> None:
    """
    Executes runs as Ray tasks. Ray chooses their machines and repeats a run whose worker was lost. The run then
    continues from its last checkpoint.

    Args:
        runs (`Sequence[Run]`):
            Runs that are not done. Their folders, data and models must have the same paths on every machine.
        address (`str`):
            Address of a cluster, `auto` for the one that this machine belongs to, or `local` for a new one on this
            machine.
        jobs (`int`):
            Number of runs at once on each machine of a cluster without GPUs; they share its cores.
        devices_per_run (`int`):
            GPUs of each run on a cluster that has some.
        report (`Callable`):
            Called with each run that ended and its error, if any.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or none of its machines has enough GPUs.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would send usage statistics
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError:
        raise UserError("--cluster needs Ray, which is not installed: pip install 'hawaii-vlm[cluster]'.") from None
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    with explain_errors(f"The Ray cluster {address} cannot be reached", (ConnectionError, RuntimeError, ValueError)):
        ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not machines:
            raise UserError(f"No machine of the Ray cluster {address} is alive.")
        gpus = max(machine.get("GPU", 0) for machine in machines)
        if 0 < gpus < devices_per_run:
            raise UserError(f"No machine of the Ray cluster {address} has {devices_per_run} GPUs for one run.")
        num_gpus = devices_per_run if gpus else 0
        # Ray sets OMP_NUM_THREADS of a worker to its number of cores.
        num_cpus = 1 if gpus else cores_per_run(machines, jobs)
        task = ray.remote(num_gpus=num_gpus, num_cpus=num_cpus, max_retries=MAX_RETRIES, max_calls=1)(
            execute_on_worker
        )
        pending = {task.remote(run, num_gpus): run for run in runs}
        while pending:
            (reference,), _ = ray.wait(list(pending), num_returns=1)
            run = pending.pop(reference)
            try:
                reason = ray.get(reference)
                error = None if reason is None else UserError(reason)
            except RayError as failure:
                error = failure
            report(run, error)
    finally:
        ray.shutdown()
