"""
Compares the time that a data loader's worker needs for a sample with the time of a plain implementation in Pillow and
transformers: pad to a square, resize, normalise. Both run alternately, after a check that their pixels are equal.

    python benchmarks/data_loader.py
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from hawaii import HawaiiVisionConfig
from hawaii.benchmarks.alternating import measure
from hawaii.processing.encoder_processor import EncoderProcessor
from hawaii.training.data.images import ImageDataset


MEAN = [0.48145466, 0.4578275, 0.40821073]


def save_photo(path: Path, width: int, height: int) -> None:
    """Saves a JPEG of a photo's size, with coarse and fine detail."""
    colors = torch.randint(256, (height // 8, width // 8, 3), dtype=torch.uint8)
    smooth = Image.frombytes("RGB", (width // 8, height // 8), bytes(colors.flatten().tolist())).resize(
        (width, height)
    )
    noise = Image.effect_noise((width, height), 40).convert("RGB")
    Image.blend(smooth, noise, 0.2).save(path, quality=90)


def read_plainly(path: Path, clip: CLIPImageProcessorPil, teacher_image_size: int | None) -> dict[str, torch.Tensor]:
    """Makes a sample's images with plain Pillow and transformers."""
    image = Image.open(path).convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))

    def resize(size: int) -> Image.Image:
        return square.resize((size, size), Image.Resampling.BICUBIC)

    student = resize(clip.size["height"])
    result = {"pixel_values": clip(student, do_resize=False, return_tensors="pt")["pixel_values"]}
    if teacher_image_size is not None:
        flat = torch.frombuffer(bytearray(resize(teacher_image_size).tobytes()), dtype=torch.uint8)
        image = flat.view(teacher_image_size, teacher_image_size, 3).permute(2, 0, 1)
        result["teacher_images"] = torch.stack([image])
    return result


def report(name: str, ours: Callable[[], dict], theirs: Callable[[], dict], rounds: int) -> None:
    """Prints the ratio of the medians of `ours` and `theirs`."""
    sample, plain = ours(), theirs()
    assert all(torch.equal(sample[name], value) for name, value in plain.items())
    # CPU time, because a worker uses one core; it excludes other programs.
    pairs = measure([ours, theirs], rounds, time.process_time)
    our, their = (1e3 * statistics.median(times) for times in zip(*pairs))
    print(f"{name}: {our / their:.3f} ({our:.1f} ms / {their:.1f} ms, medians of {rounds})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=336, metavar="N", help="side of the student's image")
    parser.add_argument("--teacher_image_size", type=int, default=768, metavar="N", help="side of the teachers' image")
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = {"height": arguments.image_size, "width": arguments.image_size}
    clip = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=MEAN)
    processor = EncoderProcessor(clip, HawaiiVisionConfig(image_size=arguments.image_size), "pad")
    for width, height in [(640, 480), (480, 640)]:
        for teacher_image_size in (arguments.teacher_image_size, None):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "photo.jpg")
                save_photo(path, width, height)
                dataset = ImageDataset(None, folder, processor, teacher_image_size=teacher_image_size)
                report(
                    f"{width} x {height}, teachers' image {teacher_image_size}",
                    partial(dataset.__getitem__, 0),
                    partial(read_plainly, path, clip, teacher_image_size),
                    arguments.rounds,
                )


if __name__ == "__main__":
    main()
