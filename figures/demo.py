"""A page in the browser: a conversation with a model about a picture, and maps over the picture."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.checkpoint import checkpoint_folder
from ..evaluation.lmms.loading import load_checkpoint
from ..files.atomic import read_json
from ..files.run_contents import FACTS_FILE
from ..files.user_error import UserError, explain_errors
from ..training.finished_stage import load_stage
from .importance import describe_importance, scoring_stage_folder, teacher_square


class ImportanceMaps:
    """
    Computes what Figure 5 shows of one image and question.

    Args:
        run (`str` or `Path`):
            The `output_dir` of a recipe, or the folder of one of its stages.
        device (`torch.device` or `str`):
            Device of the teachers.

    Raises:
        UserError: The objective of the run does not score tokens, or a teacher could not be loaded.
    """

    def __init__(self, run: str | Path, device: torch.device | str):
        self.stage = load_stage(scoring_stage_folder(run), device)

    def __call__(self, image: Image.Image, question: str) -> tuple[Image.Image, dict[str, list[list[float]]]]:
        """
        Returns the square that the teachers receive, and a grid of shares that sum to one for each teacher and, with a
        question, for the instruction.

        Raises:
            UserError: The chat template omits the question, as that of stage 1 does.
        """
        square = teacher_square(self.stage, image)
        (row,) = describe_importance(self.stage, [square], [""], [question])
        maps = dict(row["teachers"])
        if row["instruction"]:
            maps["instruction"] = np.mean(list(row["instruction"].values()), axis=0).tolist()
        return square, maps


def _check_address(host: str, port: int | None) -> None:
    try:
        socket.create_server((host, port or 0)).close()
    except (OSError, OverflowError) as error:
        place = host if port is None else f"port {port} of {host}"
        raise UserError(f"The demo cannot use {place} ({error}); choose another --port or --host.") from error


def demo(
    folder: str | Path,
    run: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    trust_remote_code: bool = False,
) -> None:
    """
    Serves a page for a model until Ctrl-C: the page of its Space, with the classes that are installed.

    Args:
        folder (`str` or `Path`):
            A local folder or a repository on the Hub.
        run (`str` or `Path`, *optional*):
            The `output_dir` of a finished run, to show the importance of patches.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen at. The default is reachable from this machine only.
        port (`int`, *optional*):
            The first free port from 7860 if not given.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code contained in a checkpoint that is not a HAWAII.

    Raises:
        UserError: Gradio is not installed, `folder` is not a checkpoint, `run` has no importance, or the port is in
            use.
    """
    if find_spec("gradio") is None:
        raise UserError("The demo needs Gradio: pip install 'hawaii-vlm[space]'")
    _check_address(host, port)
    path = checkpoint_folder(folder, trust_remote_code=trust_remote_code)
    device: Any = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    score_importance = None if run is None else ImportanceMaps(run, device)
    with explain_errors(f"{folder} could not be loaded"):
        model, processor = load_checkpoint(str(path), trust_remote_code, dtype="auto")
    facts = read_json(path / FACTS_FILE) if (path / FACTS_FILE).is_file() else {}

    from ..hub_cards.space.hawaii_space.answerer import Answerer
    from ..hub_cards.space.hawaii_space.interface import serve_page

    answerer = Answerer(model.to(device).eval(), processor, facts, score_importance)
    serve_page(answerer, facts.get("name", str(folder)), facts, host, port)
