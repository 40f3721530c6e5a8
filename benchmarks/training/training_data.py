"""
Measures the costs of many records: seconds until the first batch, memory of the main process, and private memory of
the data loader's workers while batches are read in random order. Each measurement runs in a process of its own; the
first one checks every record, the second one finds the result in the cache.

    python benchmarks/training/training_data.py --num_records 500000 --num_batches 1200
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader

from hawaii.tests.tiny.models import WORDS, make_processor
from hawaii.training.data.conversation_dataset import Collator, ConversationDataset


BATCH_SIZE = 16
NUM_WORKERS = 2


def save_records(folder: Path, num_records: int) -> None:
    """Saves records of about 210 bytes, each with an image."""
    generator = random.Random(0)
    for number in range(64):
        Image.effect_noise((32, 32), 50).save(folder / f"{number}.png")
    with (folder / "data.json").open("w") as file:
        for number in range(num_records):
            question, answer = (" ".join(generator.choices(WORDS, k=9)) for _ in range(2))
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            record = {"id": number, "image": f"{number % 64}.png", "conversations": turns}
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
        file.write("]")


def memory(process: int | str, field: str) -> float:
    """
    Returns the memory of a process in MiB: all of it (`Anonymous`), or only the pages that no other process shares
    (`Private_Dirty`). Neither includes pages of mapped files, which the system drops when it needs the space.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def measure(folder: Path, num_batches: int) -> None:
    """Prints the measurements of one start."""
    processor = make_processor()
    collator = Collator(processor)
    before, start = memory("self", "Anonymous"), time.perf_counter()

    def print_start(name: str) -> None:
        seconds, growth = time.perf_counter() - start, memory("self", "Anonymous") - before
        print(f"  {name}: {seconds:.2f} s, {growth:+.0f} MiB in the main process")

    dataset = ConversationDataset(str(folder / "data.json"), str(folder), processor, max_length=128)
    print_start("data set")
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, collate_fn=collator, num_workers=NUM_WORKERS)
    batches = iter(loader)
    next(batches)
    print_start("first batch")
    workers = [worker.pid for worker in batches._workers]  # pyright: ignore[reportAttributeAccessIssue]
    reading = time.perf_counter()
    for number in range(1, num_batches + 1):
        next(batches)
        if number in (num_batches // 12, num_batches // 2, num_batches):
            sizes = " and ".join(f"{memory(worker, 'Private_Dirty'):.1f}" for worker in workers)
            print(f"  private memory of the workers after {number} batches: {sizes} MiB")
    print(f"  {1e3 * (time.perf_counter() - reading) / num_batches / BATCH_SIZE:.2f} ms per sample")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_records", type=int, default=500_000, metavar="N")
    parser.add_argument("--num_batches", type=int, default=1200, metavar="N")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # for the process of a measurement
    arguments = parser.parse_args()

    if arguments.folder is not None:
        measure(arguments.folder, arguments.num_batches)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_records(Path(folder), arguments.num_records)
        size = (Path(folder) / "data.json").stat().st_size
        print(f"{arguments.num_records} records, {size / 2**20:.0f} MiB of JSON, {NUM_WORKERS} workers")
        command = [sys.executable, __file__, "--num_batches", str(arguments.num_batches), "--folder", folder]
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache"}
        for name in ("First start", "Next start"):
            print(f"{name}:", flush=True)
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
