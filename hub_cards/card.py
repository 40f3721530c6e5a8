"""The model card, generated from the recorded facts of training and evaluation."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..files.atomic import read_json
from ..files.escape import escape_all, flatten
from ..files.run_contents import CARD_FILE, FACTS_FILE
from ..files.user_error import explain_errors


TEMPLATE = Path(__file__).parent / "model_card.md.jinja"


def read_config(folder: Path) -> dict:
    """Reads a folder's `config.json`; an encoder's has no `text_config`."""
    return read_json(folder / "config.json")


def write_card(folder: Path, results: list[dict] | None = None) -> None:
    """
    Writes `README.md` from the folder's `config.json` and the training facts that [`export`] saved there.

    Args:
        folder (`Path`):
            A published folder.
        results (`list[dict]`, *optional*):
            Scores for the card and its model index: `task`, `metric`, `value` and `num_questions` each and, for a data
            set of the Hub, its name `data_set`, `repository`, `config` and `split`.

    Raises:
        OSError: the folder lacks one of the two files.
        UserError: one of them is damaged.
    """
    folder = Path(folder)
    config, facts = read_config(folder), read_json(folder / FACTS_FILE)
    problem = f"{folder / FACTS_FILE} does not describe a training"
    with explain_errors(problem, (KeyError, TypeError, ValueError, AttributeError, IndexError)):
        _make_card(folder, config, facts, results).save(folder / CARD_FILE)


def _make_card(folder: Path, config: dict, facts: dict, results: list[dict] | None) -> ModelCard:
    text_config = None
    if "text_config" in config:
        fields = dict(config["text_config"])
        with explain_errors(f"The text_config in {folder / 'config.json'} is invalid"):
            # The class maps every name of its fields: GPT-2's width is n_embd.
            text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    data = ModelCardData(
        model_name=flatten(facts["name"]),
        library_name="transformers",
        pipeline_tag="image-text-to-text" if text_config else "image-feature-extraction",
        tags=["hawaii", "knowledge-distillation", "mixture-of-lora", "custom_code"],
        eval_results=[
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=flatten(result.get("repository", result["task"])),
                dataset_name=flatten(result.get("data_set", result["task"])),
                dataset_config=result.get("config"),
                dataset_split=result.get("split"),
                metric_type=flatten(result["metric"]),
                metric_value=result["value"],
            )
            for result in results or []
        ]
        or None,
    )
    shown = escape_all(facts)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=shown["name"],
        # Phrased as in training: a small model knows no other words. The template writes it as a Python string.
        question=list(facts["stages"].values())[-1].get("question") or "What is in this image?",
        num_parameters=facts["num_parameters"],
        teachers=sorted({teacher for stage in shown["stages"].values() for teacher in stage["teachers"]}),
        stages=shown["stages"],
        vision=escape_all(config["vision_config"] if text_config else config),
        text=text_config,
        results=escape_all(results),
    )
