"""Facts for the model card: where the parts of a model and its data come from, and their licenses."""

import os
from typing import Any

from ...hub_cards.card_options import CardOptions
from ...hub_cards.licenses import License
from ...hub_cards.origins import Origin, find_origin
from ..recipes.recipe import Recipe


def find_models(plan: Recipe) -> dict[str, Origin | None]:
    """The checkpoints whose weights a model starts from, by part; `None` for random weights."""
    model = next(iter(plan.stages.values())).model
    if model.llava is not None:
        sources = {"LLaVA": model.llava}
    else:
        sources = {"encoder": model.vision_tower}
        if not model.is_encoder_alone:
            sources["language model"] = model.language_model
    return {part: None if source is None else find_origin(source) for part, source in sources.items()}


def find_teachers(plan: Recipe) -> dict[str, Origin]:
    """The checkpoints of the teachers of all stages, by name."""
    configs = {config.name: config for stage in plan.stages.values() for config in stage.distilled_teachers}
    return {str(name): find_origin(config.checkpoint) for name, config in configs.items()}


def find_datasets(plan: Recipe, options: CardOptions) -> list[dict[str, str | None]]:
    """
    The data that the recipe's `card` names and, of the others that it trains on, those of the Hub or with a data card
    next to them. Other local files have no name that says something to readers.
    """
    found = {each.facts["name"]: each.facts for each in options.datasets}
    for path in (source.path for stage in plan.stages.values() for source in stage.data.sources):
        origin = find_origin(path, "dataset")
        (repository, *_) = [*origin.repositories, None]
        is_local = os.path.exists(path)
        if repository is None and (origin.license is None or options.datasets):
            continue
        page = f"https://huggingface.co/datasets/{repository}" if repository and not is_local else None
        found.setdefault(
            origin.name,
            {
                "name": origin.name,
                "repository": None if is_local else repository,
                "license": None if origin.license is None else str(origin.license),
                "url": page,
            },
        )
    return list(found.values())


def choose_license(models: list[Origin], datasets: list[dict[str, Any]]) -> License | None:
    """
    The license of a model that its author gives none: that of the checkpoints it starts from and of its data, if they
    are all known and the same; otherwise `None`, because which conditions of several licenses apply is not ours to
    decide.
    """
    licenses = [origin.license for origin in models]
    if not datasets or None in licenses:
        return None
    names = {str(license) for license in licenses} | {each["license"] for each in datasets}
    return licenses[0] if licenses and len(names) == 1 else None


def describe_card(plan: Recipe) -> dict[str, Any]:
    """
    Facts about the parts of a recipe's model, without local paths.

    Returns:
        `dict[str, Any]`: `license` (with its name and link), `language`, `datasets`, `base_model`, `models` and
        `teachers`; see [`make_metadata`].
    """
    options = CardOptions(**plan.card)
    models, datasets = find_models(plan), find_datasets(plan, options)
    given = [origin for origin in models.values() if origin is not None]
    license = options.checked_license or choose_license(given, datasets)
    repositories = [name for origin in given for name in origin.repositories]
    return {
        "license": None if license is None else license.metadata,
        "language": options.language,
        "datasets": datasets,
        "base_model": list(dict.fromkeys([*options.base_model, *repositories])),
        "models": {part: None if origin is None else origin.facts for part, origin in models.items()},
        "teachers": {name: origin.facts for name, origin in find_teachers(plan).items()},
    }
