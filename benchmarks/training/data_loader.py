"""
Compares the time that a data loader's worker needs for a sample with the time of a plain implementation in Pillow and
transformers: pad to a square, resize, normalise. Both run alternately, after a check that their pixels are equal.

    python benchmarks/training/data_loader.py
"""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from hawaii import HawaiiVisionConfig
from hawaii.benchmarks.measuring.command import make_parser, print_comparisons
from hawaii.benchmarks.measuring.comparison import Comparison, compare
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


def measure_loader(image_size: int = 336, teacher_image_size: int = 768, rounds: int = 30) -> Iterator[Comparison]:
    """Compares on photos; the sizes are sides of the student's and of the teachers' image."""
    torch.manual_seed(0)
    size = {"height": image_size, "width": image_size}
    clip = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=MEAN)
    processor = EncoderProcessor(clip, HawaiiVisionConfig(image_size=image_size), "pad")
    for width, height in [(640, 480), (480, 640)]:
        for side in (teacher_image_size, None):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "photo.jpg")
                save_photo(path, width, height)
                dataset = ImageDataset(None, folder, processor, teacher_image_size=side)
                plain = partial(read_plainly, path, clip, side)
                names = list(plain())
                teachers = "without teachers" if side is None else f"with {side} pixels for teachers"

                def read(dataset: ImageDataset = dataset, names: list[str] = names) -> list[torch.Tensor]:
                    sample = dataset[0]
                    return [sample[name] for name in names]

                yield compare(
                    f"a sample of a photo of {width} x {height}, {teachers}",
                    {"HAWAII": read, "Pillow and transformers": lambda plain=plain: list(plain().values())},
                    rounds,
                    time.process_time,
                    rtol=0,
                    atol=0,
                )


def main() -> None:
    arguments = make_parser(
        __doc__,
        image_size=(336, "side of the student's image"),
        teacher_image_size=(768, "side of the teachers' image"),
        rounds=30,
    ).parse_args()
    print_comparisons(measure_loader(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
