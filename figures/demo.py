"""A page in the browser: a conversation with a model about a picture, and maps over the picture."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..evaluation.checkpoint import checkpoint_folder
from ..evaluation.lmms.loading import load_checkpoint
from ..files.manifest import read_files
from ..files.run_contents import FACTS_FILE, HUB_FOLDER
from ..files.user_error import UserError, explain_errors
from ..hub_cards.space.hawaii_space.loading import find_title, read_facts
from ..hub_cards.space.hawaii_space.visitor_error import VisitorError
from ..training.finished_stage import find_stage, load_stage
from .importance import describe_importance, mean_over_teachers, scoring_stage_folder, shown_picture


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
        Returns the picture that the maps cover, and a grid of shares for each teacher and, with a question, for the
        instruction.

        Raises:
            VisitorError: The chat template omits the question, as that of stage 1 does.
        """
        try:
            (row,) = describe_importance(self.stage, [image], [""], [question])
        except UserError as error:
            raise VisitorError(
                "The format of the last stage leaves out questions, so none has an importance; start anew."
            ) from error
        maps = dict(row["teachers"])
        if instruction := mean_over_teachers(row):
            maps["instruction"] = instruction
        return shown_picture(self.stage, image), maps


def _hashes_of_weights(folder: Path) -> dict[str, str]:
    return {name: file["hash"] for name, file in read_files(folder).items() if name.endswith(".safetensors")}


def check_run(run: str | Path, folder: Path) -> None:
    """
    Checks that a run trained the model of a published folder: the importance would be that of another model.

    Args:
        run (`str` or `Path`):
            The `output_dir` of a recipe, the folder of one of its stages, or the `model` folder of a stage.
        folder (`Path`):
            A published folder, perhaps a copy of the run's own.

    Raises:
        UserError: The run is not finished, the folder has other weights than that of the run, or one of both has no
            manifest.
    """
    published = find_stage(run).resolve().parents[1] / HUB_FOLDER
    if published == folder.resolve():
        return
    try:
        is_same = _hashes_of_weights(published) == _hashes_of_weights(folder)
    except UserError as error:
        raise UserError(f"{error}. Name {published}, the folder that {run} published.") from error
    if not is_same:
        raise UserError(f"{run} trained another model than {folder}; name the run of this model, or {published}.")


def _check_address(host: str, port: int | None) -> None:
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"--port is {port}, but must be from 1 to 65535.")
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
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
        UserError: Gradio is not installed, `folder` is not a checkpoint, `run` has no importance or trained another
            model, or the port is in use.
    """
    if find_spec("gradio") is None:
        raise UserError("The demo needs Gradio: pip install 'hawaii-vlm[space]'")
    _check_address(host, port)
    path = checkpoint_folder(folder, trust_remote_code=trust_remote_code)
    device: Any = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    score_importance = None
    if run is not None:
        check_run(run, path)
        score_importance = ImportanceMaps(run, device)
    with explain_errors(f"{folder} could not be loaded"):
        model, processor = load_checkpoint(str(path), trust_remote_code, dtype="auto")
    facts = read_facts(path / FACTS_FILE)

    from ..hub_cards.space.hawaii_space.answerer import Answerer
    from ..hub_cards.space.hawaii_space.interface import serve_page

    answerer = Answerer(model.to(device).eval(), processor, facts, score_importance)
    serve_page(answerer, find_title(facts, str(folder)), facts, host, port)
