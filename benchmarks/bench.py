"""
Measures what is compared side by side, on a GPU if there is one, and writes the results and the page docs/speed.md.

    python benchmarks/bench.py

Each comparison runs in this process, alternately, after a check that the results are equal; only vLLM's requests, for
which `--vllm` names an environment, are answered by two other processes. It takes less than ten minutes. The results
of a device replace its earlier ones; those of other devices stay.
"""

import argparse
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from hawaii.benchmarks.measuring.command import find_device
from hawaii.benchmarks.measuring.comparison import Comparison
from hawaii.benchmarks.model.generation import measure_generation
from hawaii.benchmarks.model.mixture_lora import measure_mixture
from hawaii.benchmarks.model.tiles import measure_tiles
from hawaii.benchmarks.model.vision_tower import measure_passes, measure_tower
from hawaii.benchmarks.page import write_page
from hawaii.benchmarks.serving.serving import measure_serving
from hawaii.benchmarks.training.data_loader import measure_loader
from hawaii.benchmarks.training.monitoring import measure_monitoring
from hawaii.benchmarks.training.step_flops import measure_flops
from hawaii.benchmarks.training.teacher_cache import measure_cache
from hawaii.benchmarks.training.text_loss import measure_text_loss
from hawaii.benchmarks.training.training_step import measure_step
from hawaii.files.atomic import write_json


ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "speed", ROOT / "docs" / "speed.md"
# Arguments of each measurement, on a CPU and on a GPU; `None` measures nothing.
MEASUREMENTS: dict[str, tuple[Callable[..., Iterable[Comparison]], dict | None, dict | None]] = {
    "encoder": (measure_tower, {"rounds": 3}, {"batch_size": 16, "rounds": 15}),
    "passes": (measure_passes, {"rounds": 5}, {"size": "large", "batch_size": 8, "rounds": 15}),
    "adapters": (measure_mixture, {"batch_size": 2, "rounds": 9}, {"batch_size": 16, "rounds": 15}),
    "generation": (measure_generation, {"size": "base", "rounds": 5}, {"size": "7b", "rounds": 9}),
    "tiles": (measure_tiles, {"rounds": 5}, {"rounds": 9}),
    "operations": (measure_flops, {}, {}),
    "step": (measure_step, {"batch_size": 2, "rounds": 5}, {"size": "7b", "batch_size": 8, "rounds": 7}),
    "text_loss": (measure_text_loss, {"rounds": 3}, None),
    "monitoring": (measure_monitoring, {"rounds": 9}, {"rounds": 15}),
    "data_loader": (measure_loader, {"rounds": 15}, None),
    "cache": (measure_cache, {"size": "base", "rounds": 5}, None),
}


def name_device() -> str:
    """The name of the GPU, or that of the CPU and the number of threads that compute."""
    if find_device().type == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        name = next(names, name)
    return f"{name}, {torch.get_num_threads()} threads"


def name_commit() -> str:
    """The commit of the code, with a mark if files were changed since."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if found.returncode != 0:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return found.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def measure_all(measurements: dict[str, tuple[Callable[..., Iterable[Comparison]], dict]]) -> dict[str, dict]:
    """Returns the options and the comparisons of each measurement, and prints them."""
    results = {}
    for name, (function, options) in measurements.items():
        start, comparisons = time.monotonic(), []
        print(f"==> {name}", flush=True)
        for comparison in function(**options):
            print(comparison, flush=True)
            comparisons.append(asdict(comparison))
        print(f"    {time.monotonic() - start:.0f} s", flush=True)
        shown = {key: value for key, value in options.items() if key != "python"}  # a path on this machine
        results[name] = {"options": shown, "comparisons": comparisons}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*MEASUREMENTS, "vllm"], help="measure these, and write nothing")
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vLLM")
    arguments = parser.parse_args()

    start, is_cpu = time.monotonic(), find_device().type == "cpu"
    chosen = {name: (function, cpu if is_cpu else gpu) for name, (function, cpu, gpu) in MEASUREMENTS.items()}
    if arguments.vllm is not None:
        chosen["vllm"] = (measure_serving, {"python": arguments.vllm, "rounds": 5})
    elif "vllm" in (arguments.only or []):
        parser.error("vllm needs --vllm PYTHON")
    results = measure_all(
        {
            name: (function, options)
            for name, (function, options) in chosen.items()
            if options is not None and name in (arguments.only or chosen)
        }
    )
    if arguments.only is not None:
        return
    record = {
        "device": name_device(),
        "date": date.today().isoformat(),
        "commit": name_commit(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "minutes": round((time.monotonic() - start) / 60, 1),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / ("cpu.json" if is_cpu else "gpu.json"), record)
    write_page(RESULTS, PAGE)
    print(f"==> Written to {RESULTS} and {PAGE}")


if __name__ == "__main__":
    main()
