"""
Prints by how many bytes a conversion made the memory of its process grow at most; run by `test_conversion_memory.py`.

    python measure_conversion.py KIND CHECKPOINT [FOLDER]

With a folder it is the command that is measured, saving included. What a file's pages take is counted too.
"""

import re
import sys
from pathlib import Path

import torch


def memory(field: str) -> int:
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, flags=re.MULTILINE)[1]) * 1024


def main(kind: str, checkpoint: str, folder: str | None = None) -> None:
    from hawaii import __main__ as command
    from hawaii.training.students import convert

    torch.set_num_threads(1)
    before = memory("VmRSS")
    if folder is None:
        kept = getattr(convert, f"convert_{kind}")(checkpoint)  # alive while the peak is read
    else:
        assert command.main(["convert", kind, checkpoint, folder]) == 0
        kept = None
    print(memory("VmHWM") - before)
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:])
