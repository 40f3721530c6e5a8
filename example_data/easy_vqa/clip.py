"""`hawaii data easy_clip`: a small CLIP that has learned from easy-VQA's captions."""

from pathlib import Path

from ..clip import NUM_STEPS, prepare_clip, read_captions
from ..experts import check_steps
from .prepare import write_model_card


def prepare_easy_clip(output_dir: str | Path, expert_steps: int | None = None) -> None:
    """
    Makes what the recipe `easy_vqa_clip` needs in addition to easy-VQA: a CLIP that learns by contrast from the
    training pictures and their captions, which the student starts from.

    Args:
        output_dir (`str` or `Path`):
            Folder of easy-VQA, which gets `clip/`.
        expert_steps (`int`, *optional*):
            Number of training steps of the CLIP.

    Raises:
        UserError: `output_dir` has no easy-VQA, or `expert_steps` is less than 1.
    """
    check_steps(expert_steps)
    output_dir = Path(output_dir)
    pictures, captions = read_captions(output_dir, "hawaii data easy_vqa")
    folder = output_dir / "clip"
    prepare_clip(pictures, captions, folder, NUM_STEPS if expert_steps is None else expert_steps)
    write_model_card(folder)
