"""
Measures what is compared side by side, on a GPU if there is one, and writes the results and the page docs/speed.md.

    python benchmarks/bench.py

A measurement that fails is named on the page, and the exit status is 1. The operations of the paper's training step
need timm. vLLM's requests are measured if `--vllm` names the Python of an environment with it. The results of a device
replace its earlier ones.
"""

import argparse
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from hawaii.benchmarks.measurements import MEASUREMENTS, VLLM, Measurement
from hawaii.benchmarks.measuring.command import find_device
from hawaii.benchmarks.page import write_page
from hawaii.files.atomic import write_json


ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "speed", ROOT / "docs" / "speed.md"
VERSIONS = ("torch", "transformers")


def name_device() -> str:
    """The name of the GPU or of the CPU."""
    if find_device().type == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, one thread"


def name_commit() -> str:
    """The commit of the code, with a mark if other files than the results were changed since."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if found.returncode != 0:
        return "unknown"
    status = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/speed*"]
    changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
    return found.stdout.strip() + (" with changes" if changed else "")


def measure_all(measurements: Mapping[str, Measurement], is_cpu: bool, python: str | None) -> dict[str, dict]:
    """Returns, and prints, the arguments and the comparisons of each measurement, and its error if it failed."""
    results = {}
    for name, measurement in measurements.items():
        if name == VLLM and python is None:
            continue
        start, comparisons, error = time.monotonic(), [], None
        options = measurement.on_cpu if is_cpu else measurement.on_gpu
        print(f"==> {measurement.title}", flush=True)
        try:
            for comparison in measurement.function(**options, **({"python": python} if name == VLLM else {})):
                print(comparison, flush=True)
                comparisons.append(asdict(comparison))
        except (Exception, SystemExit) as problem:  # such as a GPU with too little memory: the others still count
            error = f"{type(problem).__name__}: {str(problem).strip()}"
            print(error, flush=True)
        print(f"    {time.monotonic() - start:.0f} s", flush=True)
        results[name] = {"options": options, "comparisons": comparisons, "error": error}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vLLM")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # the seconds of several threads would be summed
    start, device, commit = time.monotonic(), name_device(), name_commit()
    results = measure_all(MEASUREMENTS, find_device().type == "cpu", arguments.vllm)
    record = {
        "device": device,
        "date": date.today().isoformat(),
        "commit": commit,
        "versions": {name: version(name) for name in VERSIONS},
        "minutes": round((time.monotonic() - start) / 60, 1),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{re.sub('[^a-z0-9]+', '_', device.lower()).strip('_')}.json"
    write_json(file, record)
    write_page(RESULTS, PAGE)
    print(f"==> Written to {file} and {PAGE}")
    sys.exit(any(result["error"] for result in results.values()))


if __name__ == "__main__":
    main()
