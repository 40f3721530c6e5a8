"""The model card: written from the recorded facts of training, completed when more is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig

from ..configuration.card_hawaii import code_section, mark, replace_section
from ..files.atomic import read_json, write_text
from ..files.escape import escape_all, flatten, flatten_all
from ..files.run_contents import CARD_FILE, CURVES_FILE, FACTS_FILE, RECIPE_FILE
from ..files.user_error import UserError, explain_errors
from .card_options import CardOptions, read_norwegian
from .eval_results import make_result, merge_results, read_results, write_eval_results
from .licenses import check_license
from .parts import describe_parts
from .sections import evaluation_section, license_section


TEMPLATE = Path(__file__).parent / "model_card.md.jinja"
LICENSE_FIELDS = ("license", "license_name", "license_link")


def read_config(folder: Path) -> dict:
    """Reads a folder's `config.json`; an encoder's has no `text_config`."""
    return read_json(folder / "config.json")


def make_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a card's metadata that the facts about its parts decide; those that are not known are left out."""
    base_models = list(dict.fromkeys(facts.get("base_model") or []))
    datasets = [each["repository"] for each in facts.get("datasets") or [] if each["repository"]]
    fields = {
        **(facts.get("license") or {}),
        "language": facts.get("language"),
        "base_model": base_models,
        # Without it, the Hub takes a model with two base models for a merge of them.
        "base_model_relation": "finetune" if base_models else None,
        "datasets": list(dict.fromkeys(datasets)),
    }
    return {name: flatten_all(value) for name, value in fields.items() if value}


def write_card(folder: Path) -> None:
    """
    Writes `README.md` from the folder's `config.json`, the training facts that [`export`] saved there, and the scores
    in `.eval_results`.

    Args:
        folder (`Path`):
            A published folder.

    Raises:
        OSError: the folder lacks one of the two files.
        UserError: one of them is damaged.
    """
    folder = Path(folder)
    config, facts = read_config(folder), read_json(folder / FACTS_FILE)
    problem = f"{folder / FACTS_FILE} does not describe a training"
    with explain_errors(problem, (KeyError, TypeError, ValueError, AttributeError, IndexError)):
        save_card(folder, _make_card(folder, config, facts))


def save_card(folder: Path, card: ModelCard) -> None:
    """Writes a card atomically."""
    write_text(folder / CARD_FILE, str(card))


def _make_card(folder: Path, config: dict, facts: dict) -> ModelCard:
    text_config = None
    if "text_config" in config:
        fields = dict(config["text_config"])
        with explain_errors(f"The text_config in {folder / 'config.json'} is invalid"):
            # The class maps every name of its fields: GPT-2's width is n_embd.
            text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    parts = facts.get("card") or {}
    metadata, task_type = make_metadata(parts), _task_type(config)
    results = [make_result(result, task_type) for result in read_results(folder)]
    data = ModelCardData(
        **metadata,
        eval_results=results or None,
        model_name=flatten(facts["name"]),
        library_name="transformers",
        pipeline_tag=task_type,
        tags=["hawaii", "knowledge-distillation", "mixture-of-lora", "custom_code"],
    )
    shown = escape_all(facts)
    stages = shown["stages"]
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=shown["name"],
        # Phrased as in training: a small model knows no other words. The template writes it as a Python string.
        question=list(facts["stages"].values())[-1].get("question") or "What is in this image?",
        num_parameters=facts["num_parameters"],
        teachers=sorted({teacher for stage in stages.values() for teacher in stage["teachers"]}),
        stages=stages,
        seconds=sum(stage["seconds"] for stage in stages.values()),
        parts=describe_parts(parts, stages),
        language=shown.get("card", {}).get("language"),
        vision=escape_all(config["vision_config"] if text_config else config),
        text=text_config,
        mark=mark,
        code=mark("code", code_section(folder)),
        has_recipe=(folder / RECIPE_FILE).is_file(),
        has_curves=(folder / CURVES_FILE).is_file(),
        files={"recipe": RECIPE_FILE, "curves": CURVES_FILE, "facts": FACTS_FILE},
        license=mark("license", license_section(metadata)),
        evaluation=mark("evaluation", evaluation_section(results)),
    )
    card.text += "\n"  # jinja removes the last
    return card


def _task_type(config: dict) -> str:
    return "image-text-to-text" if "text_config" in config else "image-feature-extraction"


def read_card(folder: Path) -> ModelCard:
    """
    Reads a card, which its author may have edited.

    Raises:
        UserError: its metadata cannot be read.
    """
    path = folder / CARD_FILE
    with explain_errors(f"The metadata of {path} cannot be read; correct it", (ValueError, yaml.YAMLError)):
        # With its line ends, and without the mark with which Windows' editors begin a file.
        card = ModelCard(path.read_bytes().decode("utf-8-sig"))
    card.data["language"] = read_norwegian(card.data.get("language"))
    return card


def add_results(folder: Path, results: list[dict[str, Any]]) -> None:
    """
    Adds scores to a folder's card and to `.eval_results`. A score replaces an earlier one of the same metric on the
    same data. Of the card, only `model-index` and the section between its marks change.

    Args:
        folder (`Path`):
            A published folder. Its card is written first if there is none.
        results (`list[dict]`):
            `task`, `metric`, `value` and `num_questions` of each score and, for a data set of the Hub, its name
            `data_set`, `repository`, `config` and `split`.

    Raises:
        UserError: the card, the facts or the scores in the folder are damaged.
    """
    folder = Path(folder)
    if not (folder / CARD_FILE).is_file():
        write_card(folder)
    card, task_type = read_card(folder), _task_type(read_config(folder))
    problem = f"{folder / FACTS_FILE} does not describe a training"
    with explain_errors(problem, (KeyError, TypeError, ValueError, AttributeError)):
        name = card.data.get("model_name") or flatten(read_json(folder / FACTS_FILE)["name"])
    merged = merge_results(card.data.get("eval_results", []), [make_result(result, task_type) for result in results])
    card.data["model_name"], card.data["eval_results"] = name, merged
    card.text = replace_section(card.text, "evaluation", evaluation_section(merged))
    write_eval_results(folder, results)
    save_card(folder, card)


def renew_hashes(folder: Path) -> None:
    """Writes the section about a folder's code again, unless its marks were removed."""
    card = read_card(folder)
    card.text = replace_section(card.text, "code", code_section(folder))
    save_card(folder, card)


def _set_metadata(card: ModelCard, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        card.data[name] = value
    card.text = replace_section(card.text, "license", license_section(card.data.to_dict()))


def fill_card(folder: Path, facts: Mapping[str, Any]) -> bool:
    """
    Adds to the metadata of a card what it lacks and a recipe now says. Nothing else of the card changes.

    Args:
        folder (`Path`):
            A published folder with a card.
        facts (`Mapping[str, Any]`):
            Facts about the parts of the model, as for [`make_metadata`].

    Returns:
        `bool`: Whether the card has changed.

    Raises:
        UserError: the metadata of the card cannot be read.
    """
    card = read_card(folder)
    # The fields of a license belong together.
    known = [*LICENSE_FIELDS] if card.data.get("license") else []
    known += [name for name in card.data.to_dict() if name not in LICENSE_FIELDS]
    missing = {name: value for name, value in make_metadata(facts).items() if name not in known}
    if missing:
        _set_metadata(card, missing)
        save_card(folder, card)
    return bool(missing)


def complete_card(card: ModelCard, options: CardOptions) -> None:
    """
    Sets what an author says about a model in the metadata of its card; other fields and the text do not change.

    Args:
        card (`ModelCard`):
            The card, see [`read_card`].
        options (`CardOptions`):
            What to set; empty options change nothing.
    """
    fields: dict[str, Any] = {
        "language": options.language,
        "datasets": [each.repository for each in options.datasets if each.repository],
        "base_model": options.base_model,
        "base_model_relation": "finetune" if options.base_model else None,
    }
    fields = {name: value for name, value in fields.items() if value}
    if options.checked_license is not None:
        fields |= options.checked_license.metadata
    _set_metadata(card, fields)


def check_card(folder: Path, card: ModelCard) -> None:
    """
    Checks that a card can be published.

    Raises:
        UserError: it names no license, or one that the Hub would refuse.
    """
    remedy = (
        "give it with `--license mit` or another identifier (https://huggingface.co/docs/hub/repositories-licenses), "
        "or as `card: {license: mit}` in the recipe. It follows the licenses of the language model and of the data."
    )
    if not card.data.get("license"):
        raise UserError(f"{folder / CARD_FILE} names no license, so nobody could use the model: {remedy}")
    try:
        license = check_license({name: card.data.get(name) for name in LICENSE_FIELDS})
    except UserError as error:
        raise UserError(f"{folder / CARD_FILE}: {error} Correct it in the file, or {remedy}") from error
    if license.identifier == "unknown":
        raise UserError(
            f"{folder / CARD_FILE} says that the license is unknown, so nobody could use the model: {remedy}"
        )
