"""
Prints how much memory a conversion needs at its peak, in bytes; run by `test_conversion_memory.py`.

    python measure_conversion.py MODEL CHECKPOINT [FOLDER]

With a folder it measures the command, which also saves. Pages of mapped files count as memory.
"""

import re
import sys
from pathlib import Path

import torch


def memory(field: str) -> int:
    # Not ru_maxrss, which a process inherits from its parent.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, flags=re.MULTILINE)[1]) * 1024


def main(model: str, checkpoint: str, folder: str | None = None) -> None:
    from hawaii import __main__ as command
    from hawaii.training.students import convert

    torch.set_num_threads(1)
    before = memory("VmRSS")
    if folder is None:
        kept = getattr(convert, f"convert_{model}")(checkpoint)  # in memory while the peak is read
    else:
        assert command.main(["convert", model, checkpoint, folder]) == 0
        kept = None
    print(memory("VmHWM") - before)
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:])
