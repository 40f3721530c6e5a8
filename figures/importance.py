"""Figure 5: which places of an image matter to each teacher and to the instruction (eq. 5)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ..evaluation.picture import open_picture
from ..files.user_error import UserError
from ..processing.encoder_processor import EncoderProcessor
from ..processing.processing_hawaii import HawaiiProcessor
from ..training.data.conversation_dataset import teacher_image
from ..training.data.conversations import tokenize_conversation
from ..training.data.record import Message
from ..training.finished_stage import FinishedStage, find_stage, load_stage, read_settings
from ..training.objectives.hawaii import HawaiiObjective
from ..training.students.encoders import holds_encoder
from .drawing import PAGE_WIDTH, SETTINGS, matplotlib_or_error, save_figure


# Shapes: I images, N teachers, m tokens (s x s), t instruction tokens.


def instruction_ids(processor: HawaiiProcessor | EncoderProcessor, question: str) -> torch.Tensor:
    """
    The tokens that score a question about an image in training: what the user says, without the template's words.

    Returns:
        `torch.LongTensor` of shape `(num_prompt_tokens,)`; none where there is no question.

    Raises:
        ValueError: the chat template leaves the question out, as stage 1's does.
    """
    if not question:
        return torch.empty(0, dtype=torch.long)
    assert isinstance(processor, HawaiiProcessor)  # of an encoder alone nothing is asked
    # A conversation needs an answer, which is not part of the instruction.
    conversation = tokenize_conversation([Message("user", question, 1), Message("assistant", "?")], processor)
    ids = torch.tensor(conversation.input_ids)[torch.tensor(conversation.is_prompt)]
    if not len(ids):
        raise UserError(
            "The stage's chat template leaves out what the user says, so there is no instruction: ask nothing."
        )
    return ids


@torch.no_grad()
def importance_parts(
    stage: FinishedStage, squares: Sequence[Image.Image], questions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What the objective sums up to the scores of eq. 5, on the CPU.

    Args:
        stage (`FinishedStage`):
            With the teachers, the projections and the embeddings of the language model.
        squares (`Sequence[PIL.Image.Image]`):
            As the student sees the images.
        questions (`Sequence[str]`):
            One for each, empty where nothing is asked.

    Returns:
        What the teachers' own tokens spread, summed, `(num_images, num_teachers, num_tokens)`; the same of the
        instruction's; and the number of the instruction's tokens, `(num_images,)`.
    """
    device = next(stage.objective.parameters()).device
    size = max(teacher.image_size for teacher in stage.teachers)
    shared = torch.stack([teacher_image(square, size) for square in squares]).to(device)
    ids = [instruction_ids(stage.processor, question) for question in questions]
    num_asking = torch.tensor([len(row) for row in ids])
    batch = {
        "prompt_ids": pad_sequence(ids, batch_first=True).to(device),
        "prompt_mask": (torch.arange(int(num_asking.max())) < num_asking[:, None]).to(device),
        "image_index": torch.arange(len(squares), device=device),
    }
    stage.student.get_input_embeddings().to(device)  # the rest of the student is not run
    features = [teacher(shared) for teacher in stage.teachers]
    assert isinstance(stage.objective, HawaiiObjective)
    from_image, from_prompt = stage.objective.similarity_scores(stage.student, features, batch)
    return from_image.cpu(), from_prompt.cpu(), num_asking


def _shares(sums: torch.Tensor, num_queries: int, names: list[str], side: int) -> dict[str, list]:
    """What each teacher's tokens got of one part's queries, as grids by the teacher's name; each sums to one."""
    return {name: (row / num_queries).view(side, side).tolist() for name, row in zip(names, sums)}


def describe_importance(
    stage: FinishedStage, squares: Sequence[Image.Image], images: Sequence[str], questions: Sequence[str]
) -> list[dict]:
    """The numbers behind the figure, for each image; see [`importance_figure`]."""
    names = [teacher.name for teacher in stage.teachers]
    from_image, from_prompt, num_asking = importance_parts(stage, squares, questions)
    num_tokens = from_image.shape[-1]
    side = round(num_tokens**0.5)
    rows = []
    for index, (image, question) in enumerate(zip(images, questions)):
        own, asked, num_asked = from_image[index], from_prompt[index], int(num_asking[index])
        row = {"image": image, "question": question, "num_instruction_tokens": num_asked}
        row["teachers"] = _shares(own, num_tokens, names, side)
        row["instruction"] = _shares(asked, num_asked, names, side) if num_asked else {}
        row["importance"] = _shares(own + asked, num_tokens + num_asked, names, side)
        rows.append(row)
    return rows


def _draw_shares(axis: Any, square: Image.Image, shares: np.ndarray) -> None:
    """Lays shares over an image; what is written below says how they lie about an even one."""
    times_even = shares * shares.size
    height = (times_even - times_even.min()) / max(np.ptp(times_even), 1e-6)
    axis.imshow(square.convert("L"), cmap="gray", extent=(0, 1, 0, 1), vmin=-64, vmax=255)
    # What matters little covers little, so that the image shows through.
    axis.imshow(height, cmap="inferno", alpha=0.4 + 0.5 * height, extent=(0, 1, 0, 1), interpolation="nearest")
    axis.set_xlabel(f"{times_even.min():.1f} to {times_even.max():.1f} × even", labelpad=2)


def draw_importance(results: dict, squares: Sequence[Image.Image]) -> Any:
    """
    Draws Figure 5: a row for each image, in it the image, a map for each teacher, and one for the instruction, which
    is the mean of what its tokens see in each teacher.

    Args:
        results (`dict`):
            What `importance.json` holds.
        squares (`Sequence[PIL.Image.Image]`):
            The images as the student sees them.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: matplotlib is not installed.
    """
    matplotlib = matplotlib_or_error()
    names, rows = results["teachers"], results["images"]
    titles = ["image", *names] + (["instruction"] if any(row["instruction"] for row in rows) else [])
    side = min(1.6, PAGE_WIDTH / len(titles))
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(
            figsize=(side * len(titles), (side + 0.35) * len(rows)), layout="constrained"
        )
        axes = figure.subplots(len(rows), len(titles), squeeze=False)
        for axis, title in zip(axes[0], titles):
            axis.set_title(title, pad=3)
        for (first, *others), row, square in zip(axes, rows, squares):
            first.imshow(square, extent=(0, 1, 0, 1))
            first.set_xlabel(
                textwrap.fill(row["question"], round(side * 18), max_lines=3, placeholder=" …"), labelpad=2
            )
            maps = [np.array(row["teachers"][name]) for name in names]
            if row["instruction"]:
                maps.append(np.mean(list(row["instruction"].values()), axis=0))
            for axis, shares in zip(others, maps):
                _draw_shares(axis, square, shares)
            for axis in others[len(maps) :]:
                axis.set_visible(False)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def importance_figure(
    run: str | Path, output_dir: str | Path, image: Sequence[str], question: Sequence[str] = ()
) -> dict:
    """
    Asks the objective of a finished run which places of each image matter, draws `output_dir/importance.png`
    (Figure 5) and writes `output_dir/importance.json`.

    Args:
        run (`str` or `Path`):
            What a recipe names `output_dir`, or the folder of one of its stages.
        output_dir (`str` or `Path`):
            Where both files go.
        image (`Sequence[str]`):
            Paths or addresses of images, one or more.
        question (`Sequence[str]`, *optional*):
            What is asked about each, in their order; nothing, or one for each, which may be empty.

    Returns:
        `dict`: what `importance.json` holds: the names of the `teachers`, and for each of `images` three mappings of
        these to grids, row by row, that each sum to one: `teachers`, what the teacher's own tokens spread;
        `instruction`, what the instruction's do, nothing where nothing is asked; and `importance` (eq. 5), the mean
        over all tokens of both.

    Raises:
        ValueError: the run has no objective that scores tokens, its teachers are gone, an image is none, another
            number of questions than of images, or matplotlib is not installed.
    """
    matplotlib_or_error()
    if question and len(question) != len(image):
        raise UserError(
            f"{len(image)} images but {len(question)} questions: give each --image its --question, or none to any."
        )
    folder = find_stage(run)
    settings = read_settings(folder)
    if settings.objective != "hawaii" or "fine" not in settings.distillation or not settings.token_scoring:
        raise UserError(
            f"{folder} learned without token scoring (objective {settings.objective}), so no token has an importance: "
            "name a run of the objective hawaii with fine-grained distillation and token_scoring."
        )
    pictures = [open_picture(path) for path in image]
    if question and holds_encoder(folder):
        raise UserError(f"{folder} learned without a language model, so no instruction scored a token: ask nothing.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    stage = load_stage(folder, device)
    squares = [stage.processor.square_image(picture) for picture in pictures]
    rows = describe_importance(stage, squares, image, question or [""] * len(image))
    results = {"run": str(run), "stage": str(folder), "teachers": [teacher.name for teacher in stage.teachers]}
    results["images"] = rows
    save_figure(draw_importance(results, squares), results, Path(output_dir), "importance")
    return results
