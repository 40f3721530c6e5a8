"""`hawaii data emoji_clip`: a small CLIP that has learned from EmojiVQA's captions, and further experts."""

import re
from pathlib import Path

from ..clip import NUM_STEPS, prepare_clip, read_captions
from ..experts import check_steps, prepare_experts
from .concepts import read_chosen
from .drawings import import_resvg
from .experts import CLIP_EXPERTS
from .packages import TRAIN_VENDORS, VENDORS, fetch
from .prepare import make_painter, paint_for_experts


def without_places(caption: str) -> str:
    """
    Returns the names in a caption of EmojiVQA. A CLIP that reads places as well finds the caption of a picture by
    where something is, and does not learn what it is.
    """
    return re.sub(r"( top| bottom)?( left| right)?( center)?(?=,|$)", "", caption)


def prepare_emoji_clip(output_dir: str | Path, expert_steps: int | None = None) -> None:
    """
    Makes what the recipe `emoji_vqa_clip` needs in addition to EmojiVQA: a CLIP that learns by contrast from the
    training pictures and their captions, which the student starts from, and experts of other architectures. A second
    run trains only what is missing.

    Args:
        output_dir (`str` or `Path`):
            Folder of EmojiVQA, which gets `clip/` and further `experts/`.
        expert_steps (`int`, *optional*):
            Number of training steps of the CLIP and of each expert. Each has its own by default.

    Raises:
        UserError: `output_dir` has no EmojiVQA, resvg-py is not installed, a package is missing and could not be
            downloaded, or `expert_steps` is less than 1.
    """
    check_steps(expert_steps)
    output_dir = Path(output_dir)
    pictures, captions = read_captions(output_dir, "hawaii data emoji_vqa")
    captions = [without_places(caption) for caption in captions]
    import_resvg()
    archives = {vendor: fetch(VENDORS[vendor], output_dir / "packages") for vendor in TRAIN_VENDORS}
    concepts = read_chosen(output_dir / "data" / "concepts.json")
    painter = make_painter(TRAIN_VENDORS, archives, concepts)
    prepare_clip(pictures, captions, output_dir / "clip", NUM_STEPS if expert_steps is None else expert_steps)
    prepare_experts(CLIP_EXPERTS, *paint_for_experts(painter, concepts), output_dir / "experts", expert_steps)
