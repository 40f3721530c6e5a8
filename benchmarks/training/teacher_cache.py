"""
Compares the time to read features from a cache with the time to compute them. Both return the features of the same
images on the student's grid, and run alternately, after a check that their outputs are close. Reading includes the
hash of the image's file, the access to memory-mapped values and their conversion; computing is only a teacher's
forward pass.

    python benchmarks/training/teacher_cache.py --size base --batch_size 4
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from hawaii.benchmarks.measuring.command import make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, time_ways
from hawaii.benchmarks.measuring.sizes import CLIP_BASE, CLIP_LARGE
from hawaii.files.digest import digest
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.training.data.reader import join
from hawaii.training.teacher_cache.cached_teacher import FeatureCache, open_cache
from hawaii.training.teacher_cache.contents import CachedFeatures, Contents, Squares
from hawaii.training.teacher_cache.feature_files import write_features, write_index
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.grids import match_grid
from hawaii.training.teachers.loading import load_teacher


# `base` has a tenth of the cheapest preset's operations; `clip` is the cheapest preset, with the grid of LLaVA's
# student.
SIZES = {
    "base": CLIP_BASE,
    "clip": CLIP_LARGE,
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 4}
    | {"image_size": 96, "patch_size": 8},
}


@torch.no_grad()
def measure_cache(size: str = "base", batch_size: int = 4, rounds: int = 7) -> Iterator[Comparison]:
    """Compares on random images; `size` is one of `SIZES`."""
    torch.manual_seed(0)
    sizes, mean = SIZES[size], {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": "bicubic"}
    side = sizes["image_size"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(folder / "clip")
        config = TeacherConfig(str(folder / "clip"), layer=-2, **mean)
        teacher = load_teacher(config)
        grid = teacher.grid[0]
        images = torch.randint(256, (batch_size, 3, side, side), dtype=torch.uint8)
        paths = [folder / f"{number}.png" for number in range(batch_size)]
        for path, image in zip(paths, images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)

        def run() -> torch.Tensor:
            return match_grid(teacher(images), grid, "unshuffle")

        square = {"height": side, "width": side}
        processor = HawaiiImageProcessor("pad", size=square, crop_size=square)
        described = [CachedFeatures.of(config, teacher)]
        live, digests = run(), [digest(path) for path in paths]
        num_bytes = {}
        for storage in ("bfloat16", "int8"):
            contents = Contents(storage, Squares.of(processor, side), grid, "unshuffle", described)
            subfolder = folder / storage / contents.folder_name
            contents.write(subfolder)
            num_bytes[storage] = write_features(subfolder, contents, digests, [live]).stat().st_size
            write_index(subfolder, contents)
            cache = open_cache(folder / storage, [config], processor, grid, "unshuffle")

            def read(cache: FeatureCache = cache) -> torch.Tensor:
                features = join([cache.read(path) for path in paths])
                return match_grid(cache.teachers[0](features), grid, "unshuffle")

            cosine = F.cosine_similarity(read(), live, dim=-1)
            assert cosine.min() > 0.999, cosine.min()
            similarity = [(cosine.mean().item(), 1.0)]
            yield Comparison("the cosine to the computed features", storage, "equal features", similarity, "")
            ways = {"computed": run, f"read in {storage}": read}
            yield time_ways("a teacher's features", ways, rounds, process_clock(live.device), at_least=5.0)
        sizes_in_kib = [(num_bytes["int8"] / 1024, num_bytes["bfloat16"] / 1024)]
        yield Comparison("file of cached features", "int8", "bfloat16", sizes_in_kib, "KiB")


def main() -> None:
    parser = make_parser(__doc__, batch_size=4, rounds=7)
    parser.add_argument("--size", choices=SIZES, default="base")
    arguments = parser.parse_args()
    print_comparisons(measure_cache(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
