"""The origins of models and data as they were when a stage was trained: their folders may be gone later."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...hub_cards.origins import Origin, find_origin
from ..recipes.recipe import Stage


# Origins by type, `model` or `dataset`, and by the name in the recipe.
Recorded = Mapping[str, Mapping[str, Mapping[str, Any]]]


def data_sources(stage: Stage) -> list[str]:
    """The data that a stage trains on: its files, or the folder of its images if it names no file."""
    return [source.path for source in stage.data.sources] or [stage.data.image_folder]


def _sources(stage: Stage) -> Iterator[tuple[str, str]]:
    model = stage.model
    for source in (model.llava, model.vision_tower, model.language_model):
        if source is not None:
            yield "model", source
    for config in stage.distilled_teachers:
        yield "model", config.checkpoint
    for source in data_sources(stage):
        yield "dataset", source


def record_origins(stage: Stage) -> dict[str, dict[str, dict[str, Any]]]:
    """
    Finds the origins of everything that a stage names.

    Returns:
        `dict[str, dict[str, dict[str, Any]]]`: JSON values for the report of the stage, which is not published: its
            keys may be paths of this machine.
    """
    origins: dict[str, dict[str, dict[str, Any]]] = {"model": {}, "dataset": {}}
    for repo_type, source in _sources(stage):
        origins[repo_type][source] = find_origin(source, repo_type).facts
    return origins


def recall_origin(source: str, repo_type: str, recorded: Sequence[Recorded]) -> Origin:
    """
    The origin of a model or of data. If no such path exists here, it is the one that a stage recorded.

    Args:
        source (`str`):
            Folder, file or repository of the Hub.
        repo_type (`str`):
            `model` or `dataset`.
        recorded (`Sequence[Recorded]`):
            What [`record_origins`] returned for each stage.
    """
    if not Path(source).exists():
        for origins in recorded:
            if facts := origins.get(repo_type, {}).get(source):
                return Origin.from_facts(facts)
    return find_origin(source, repo_type)
