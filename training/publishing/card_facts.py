"""Facts for the model card: where the parts of a model and its data come from, and their licenses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...hub_cards.card_options import CardOptions
from ...hub_cards.licenses import License
from ...hub_cards.origins import Origin
from ..recipes.recipe import Recipe
from .recorded_origins import Recorded, data_sources, recall_origin


def find_models(plan: Recipe, recorded: Sequence[Recorded]) -> dict[str, Origin | None]:
    """The checkpoints whose weights a model starts from, by part; `None` for random weights."""
    model = next(iter(plan.stages.values())).model
    if model.llava is not None:
        sources = {"LLaVA": model.llava}
    else:
        sources = {"encoder": model.vision_tower}
        if not model.is_encoder_alone:
            sources["language model"] = model.language_model
    return {
        part: None if source is None else recall_origin(source, "model", recorded) for part, source in sources.items()
    }


def find_teachers(plan: Recipe, recorded: Sequence[Recorded]) -> dict[str, Origin]:
    """The checkpoints of the teachers of all stages, by name."""
    configs = {config.name: config for stage in plan.stages.values() for config in stage.distilled_teachers}
    return {str(name): recall_origin(config.checkpoint, "model", recorded) for name, config in configs.items()}


def find_data(plan: Recipe, recorded: Sequence[Recorded]) -> list[Origin]:
    """All data that the stages train on; each repository and each path once."""
    found = {}
    for source in (source for stage in plan.stages.values() for source in data_sources(stage)):
        origin = recall_origin(source, "dataset", recorded)
        found[origin.repository or str(Path(source).resolve())] = origin
    return list(found.values())


def show_datasets(options: CardOptions, data: list[Origin]) -> list[dict[str, str | None]]:
    """
    The data that the recipe's `card` names and, of the others, those of the Hub or with a data card next to them.
    Other local files have no name that says something to readers.
    """
    named = [each.facts for each in options.datasets]
    known = [each["repository"] or each["name"] for each in named]
    for origin in data:
        repository = origin.repository
        if repository in known or (repository is None and (origin.license is None or options.datasets)):
            continue
        named.append(
            {
                "name": origin.name,
                "repository": repository,
                "license": None if origin.license is None else str(origin.license),
                "url": None if repository is None else f"https://huggingface.co/datasets/{repository}",
            }
        )
    return named


def choose_license(models: list[Origin], data: list[str | None]) -> License | None:
    """
    The license of a model that its author gives none: that of the checkpoints it starts from and of its data, if they
    are all known and the same; otherwise `None`, because which conditions of several licenses apply is not ours to
    decide.

    Args:
        models (`list[Origin]`):
            The checkpoints.
        data (`list[str | None]`):
            The licenses of all data, of those that the card does not show, too.
    """
    licenses = [origin.license for origin in models]
    if not licenses or not data or None in licenses or None in data:
        return None
    names = {str(license) for license in licenses} | {*data}
    return licenses[0] if len(names) == 1 else None


def describe_card(plan: Recipe, recorded: Sequence[Recorded] = ()) -> dict[str, Any]:
    """
    Facts about the parts of a recipe's model, without local paths.

    Args:
        plan (`Recipe`):
            The recipe.
        recorded (`Sequence[Recorded]`, *optional*):
            The origins that the stages recorded, see [`record_origins`].

    Returns:
        `dict[str, Any]`: `license` (with its name and link), `language`, `datasets`, `base_model`, `models` and
        `teachers`; see [`make_metadata`].
    """
    options = CardOptions(**plan.card)
    models, data = find_models(plan, recorded), find_data(plan, recorded)
    given = [origin for origin in models.values() if origin is not None]
    of_data = [None if origin.license is None else str(origin.license) for origin in data]
    license = options.checked_license or choose_license(
        given, [*(each.license for each in options.datasets), *of_data]
    )
    repositories = [name for origin in given for name in origin.repositories]
    return {
        "license": None if license is None else license.metadata,
        "language": options.language,
        "datasets": show_datasets(options, data),
        "base_model": list(dict.fromkeys([*options.base_model, *repositories])),
        "models": {part: None if origin is None else origin.facts for part, origin in models.items()},
        "teachers": {name: origin.facts for name, origin in find_teachers(plan, recorded).items()},
    }
