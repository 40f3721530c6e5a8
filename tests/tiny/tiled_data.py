"""Data whose images have one to five tiles, and the processor and the recipe that cut them."""

import json
from pathlib import Path

from hawaii import HawaiiProcessor

from .models import make_processor
from .training import make_image, make_record, write_recipe


PINPOINTS = [[16, 32], [32, 16], [32, 32]]  # heights and widths, of squares of 16 pixels
# Width and height of the images in turn, and their number of tiles: wide, tall, as high as wide, and small.
SHAPES = [((60, 20), 3), ((9, 70), 3), ((40, 40), 5), ((8, 5), 3)]


def make_tiled_processor(pinpoints: list[list[int]] | None = PINPOINTS, **kwargs) -> HawaiiProcessor:
    processor = make_processor(**kwargs)
    processor.image_processor.image_grid_pinpoints = pinpoints
    return processor


def make_tiled_records(count: int) -> list[dict]:
    """Records of one image, of two images and of text alone, in turn."""
    records = []
    for number in range(count):
        record = make_record(number, questions=1 + number % 2, image=number % 5 != 2)
        if number % 5 == 4:
            record["conversations"][0]["value"] = f"<image>\n{record['conversations'][0]['value']}"
            record["image"] = [record["image"], f"{number + 1}.png"]
        records.append(record)
    return records


def count_tiles(records: list[dict]) -> list[int]:
    """The number of tiles of each record."""
    names = [record.get("image", []) for record in records]
    images = [[name] if isinstance(name, str) else name for name in names]
    return [sum(SHAPES[int(Path(name).stem) % len(SHAPES)][1] for name in each) for each in images]


def save_tiled_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (width, height), _ = SHAPES[number % len(SHAPES)]
        make_image(number, width, height).save(folder / f"{number}.png")


def save_tiled_data(folder: Path, count: int) -> Path:
    """Writes `data.json` with [`make_tiled_records`], and their images under `images`."""
    save_tiled_images(folder / "images", count + 1)
    (folder / "data.json").write_text(json.dumps(make_tiled_records(count)), encoding="utf-8")
    return folder


def write_tiled_recipe(folder: Path, teachers: dict[str, Path], count: int = 12, **changes) -> Path:
    """The recipe of [`write_recipe`] over [`save_tiled_data`], with tiles."""
    recipe = write_recipe(folder, teachers, image_grid_pinpoints=PINPOINTS, **changes)
    save_tiled_data(folder, count)
    return recipe
