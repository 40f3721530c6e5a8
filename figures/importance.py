"""Figure 5: the importance of each image patch for each teacher and for the instruction (eq. 5)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ..drawing.style import PAGE_WIDTH, matplotlib_or_error, save_figure
from ..evaluation.picture import open_picture
from ..files.user_error import UserError
from ..processing.encoder_processor import EncoderProcessor
from ..processing.processing_hawaii import HawaiiProcessor
from ..training.data.conversations import tokenize_conversation
from ..training.data.reader import teacher_image
from ..training.finished_stage import FinishedStage, find_stage, load_stage, read_settings
from ..training.objectives.encoder_passes import encoder_of
from ..training.objectives.hawaii import HawaiiObjective, HawaiiOptions
from ..training.sources.record import Message
from ..training.students.encoders import holds_encoder
from .maps import assemble_whole, draw_maps, panel_heights, size_of


# Shapes: I images, T squares of all images, N teachers, m tokens of a square, t instruction tokens.


def instruction_ids(processor: HawaiiProcessor | EncoderProcessor, question: str) -> torch.Tensor:
    """
    Returns the tokens of a question that score patches in training: the user's text without the chat template.

    Returns:
        `torch.LongTensor` of shape `(num_prompt_tokens,)`, empty without a question.

    Raises:
        UserError: The chat template omits the question, as that of stage 1 does.
    """
    if not question:
        return torch.empty(0, dtype=torch.long)
    assert isinstance(processor, HawaiiProcessor)  # an encoder without a language model has no question
    # A conversation needs an answer, which is not part of the instruction.
    conversation = tokenize_conversation([Message("user", question, 1), Message("assistant", "?")], processor)
    ids = torch.tensor(conversation.input_ids)[torch.tensor(conversation.is_prompt)]
    if not len(ids):
        raise UserError(
            "The chat template of the stage omits the user's text, so there is no instruction; remove --question."
        )
    return ids


def largest_size(stage: FinishedStage) -> int:
    """Returns the side, in pixels, of the square that the teachers share: that of the largest."""
    return max(teacher.image_size for teacher in stage.teachers)


def teacher_squares(stage: FinishedStage, picture: Image.Image) -> list[Image.Image]:
    """Returns the squares of an image that the teachers receive, one or its tiles, in the size of the largest."""
    return stage.processor.image_processor.square_images(picture, largest_size(stage), Image.Resampling.BICUBIC)


def shown_picture(stage: FinishedStage, picture: Image.Image) -> Image.Image:
    """Returns the picture that the maps cover: the teachers' square or, with tiles, the whole picture."""
    image_processor, vision = stage.processor.image_processor, encoder_of(stage.student).config
    if image_processor.image_grid_pinpoints is None:
        return teacher_squares(stage, picture)[0]
    side = vision.patches_a_side * vision.patch_size  # the cells of a teacher's map cover all of a tile
    return assemble_whole(image_processor, picture, vision.patch_size, side, Image.Resampling.BICUBIC)


@torch.no_grad()
def importance_parts(
    stage: FinishedStage, squares: Sequence[Sequence[Image.Image]], questions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Returns the terms of the scores in eq. 5, on the CPU.

    Args:
        stage (`FinishedStage`):
            Stage with the teachers, the projections and the embeddings of the language model.
        squares (`Sequence[Sequence[PIL.Image.Image]]`):
            For each image its [`teacher_squares`].
        questions (`Sequence[str]`):
            One question per image; an empty string means none.

    Returns:
        The summed scores by the tokens of each teacher, `(num_squares, num_teachers, num_tokens)`; the summed scores
        by the tokens of the instruction, of the same shape; and the number of these tokens, `(num_images,)`.
    """
    device = next(stage.objective.parameters()).device
    size = largest_size(stage)
    shared = torch.stack([teacher_image(square, size) for row in squares for square in row]).to(device)
    ids = [instruction_ids(stage.processor, question) for question in questions]
    num_instruction_tokens = torch.tensor([len(row) for row in ids])
    batch = {
        "prompt_ids": pad_sequence(ids, batch_first=True).to(device),
        "prompt_mask": (torch.arange(int(num_instruction_tokens.max())) < num_instruction_tokens[:, None]).to(device),
        "image_index": torch.tensor([index for index, row in enumerate(squares) for _ in row], device=device),
    }
    stage.student.get_input_embeddings().to(device)  # the rest of the student is not used
    features = [teacher(shared) for teacher in stage.teachers]
    assert isinstance(stage.objective, HawaiiObjective)
    from_image, from_prompt = stage.objective.similarity_scores(stage.student, features, batch)
    return from_image.cpu(), from_prompt.cpu(), num_instruction_tokens


def _shares(sums: torch.Tensor, num_queries: int, names: list[str]) -> dict[str, list]:
    """Divides summed scores, `(rows, columns, N)`, by the number of queries. Returns a grid for each teacher."""
    return {name: (row / num_queries).tolist() for name, row in zip(names, sums.unbind(dim=-1))}


def describe_importance(
    stage: FinishedStage, pictures: Sequence[Image.Image], images: Sequence[str], questions: Sequence[str]
) -> list[dict]:
    """Returns the numbers of the figure for each picture; see [`importance_figure`]."""
    names = [teacher.name for teacher in stage.teachers]
    squares = [teacher_squares(stage, picture) for picture in pictures]
    from_image, from_prompt, num_instruction_tokens = importance_parts(stage, squares, questions)
    num_tokens, sizes = from_image.shape[-1], torch.cat([size_of(picture) for picture in pictures])
    maps_by_image, maps_by_prompt = (
        stage.processor.image_processor.assemble_maps(scores.transpose(1, 2), sizes)  # (rows, columns, N) each
        for scores in (from_image, from_prompt)
    )
    rows = []
    for index, (image, question) in enumerate(zip(images, questions)):
        by_image, by_prompt = maps_by_image[index], maps_by_prompt[index]
        num_queries = int(num_instruction_tokens[index])
        row = {"image": image, "question": question, "num_instruction_tokens": num_queries}
        row["teachers"] = _shares(by_image, num_tokens, names)
        row["instruction"] = _shares(by_prompt, num_queries, names) if num_queries else {}
        row["importance"] = _shares(by_image + by_prompt, num_tokens + num_queries, names)
        rows.append(row)
    return rows


def mean_over_teachers(row: dict) -> list[list[float]] | None:
    """Returns the grid of the instruction that is drawn, the mean over the teachers; `None` without a question."""
    return np.mean(list(row["instruction"].values()), axis=0).tolist() if row["instruction"] else None


def draw_importance(results: dict, pictures: Sequence[Image.Image]) -> Any:
    """
    Draws Figure 5: for each image, a row with the image, a map for each teacher, and a map for the instruction, the
    mean over the teachers.

    Args:
        results (`dict`):
            Content of `importance.json`.
        pictures (`Sequence[PIL.Image.Image]`):
            The pictures that the maps cover, see [`shown_picture`].

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        UserError: matplotlib is not installed.
    """
    names, rows = results["teachers"], results["images"]
    titles = ["image", *names] + (["instruction"] if any(row["instruction"] for row in rows) else [])
    side = min(1.6, PAGE_WIDTH / len(titles))
    captions = [textwrap.fill(row["question"], round(side * 18), max_lines=3, placeholder=" …") for row in rows]
    maps = []
    for row in rows:
        maps.append([(row["teachers"][name], 1.0) for name in names])
        if instruction := mean_over_teachers(row):
            maps[-1].append((instruction, 1.0))
    height = sum(panel_heights(pictures, side)) + 0.35 * len(rows)
    return draw_maps(pictures, maps, titles, (side * len(titles), height), captions)


def scoring_stage_folder(run: str | Path) -> Path:
    """
    Finds the last stage of a run whose objective scores tokens.

    Args:
        run (`str` or `Path`):
            The `output_dir` of a recipe, or the folder of one of its stages.

    Raises:
        UserError: There is no finished stage, or its objective does not score tokens.
    """
    folder = find_stage(run)
    settings = read_settings(folder)
    options = settings.options
    if not isinstance(options, HawaiiOptions) or "fine" not in options.distillation or not options.token_scoring:
        raise UserError(
            f"{folder} was trained without token scoring (objective {settings.objective}), so its tokens have no "
            "importance; choose a run with objective hawaii, fine-grained distillation and token_scoring."
        )
    return folder


def importance_figure(
    run: str | Path, output_dir: str | Path, image: Sequence[str], question: Sequence[str] = ()
) -> dict:
    """
    Computes the importance of each image patch with the objective of a finished run, draws `output_dir/importance.png`
    (Figure 5) and writes `output_dir/importance.json`.

    Args:
        run (`str` or `Path`):
            The `output_dir` of a recipe, or the folder of one of its stages.
        output_dir (`str` or `Path`):
            Output folder.
        image (`Sequence[str]`):
            Paths or URLs of one or more images.
        question (`Sequence[str]`, *optional*):
            One question per image, possibly empty, or no questions.

    Returns:
        `dict`: The content of `importance.json`: the names of the `teachers`, and for each of `images` three mappings
        from teachers to grids that sum to one: `teachers`, the scores by the tokens of the teacher; `instruction`, the
        scores by the tokens of the question, empty without one; and `importance` (eq. 5), the mean over both. With
        tiles, the shares of each tile sum to one, and a grid has those cells of all tiles that show the picture.

    Raises:
        UserError: The objective of the run does not score tokens, a teacher or an image could not be loaded, the
            numbers of questions and images differ, or matplotlib is not installed.
    """
    matplotlib_or_error()
    if question and len(question) != len(image):
        raise UserError(
            f"There are {len(image)} images but {len(question)} questions; give one --question per --image, or none."
        )
    folder = scoring_stage_folder(run)
    pictures = [open_picture(path) for path in image]
    if question and holds_encoder(folder):
        raise UserError(f"{folder} was trained without a language model, so it has no instruction; remove --question.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    stage = load_stage(folder, device)
    rows = describe_importance(stage, pictures, image, question or [""] * len(image))
    results = {"run": str(run), "stage": str(folder), "teachers": [teacher.name for teacher in stage.teachers]}
    results["images"] = rows
    shown = [shown_picture(stage, picture) for picture in pictures]
    save_figure(draw_importance(results, shown), results, Path(output_dir), "importance")
    return results
