"""The model card: made from what was recorded, nothing of it by hand."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..files.run_contents import FACTS_FILE


TEMPLATE = Path(__file__).parent / "model_card.md.jinja"


def _eval_result(result: dict) -> EvalResult:
    return EvalResult(
        task_type="image-text-to-text",
        dataset_type=result.get("repository", result["task"]),
        dataset_name=result.get("data_set", result["task"]),
        dataset_config=result.get("config"),
        dataset_split=result.get("split"),
        metric_type=result["metric"],
        metric_value=result["value"],
    )


def read_config(folder: Path) -> dict:
    """A folder's `config.json`; that of an encoder alone has no `text_config`."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def write_card(folder: Path, results: list[dict] | None = None) -> None:
    """
    Writes `README.md` from the folder's `config.json` and the training facts that [`export`] put beside it.

    Args:
        folder (`Path`):
            A published folder.
        results (`list[dict]`, *optional*):
            What was measured: `task`, `metric`, `value` and `num_questions` each, of a data set of the Hub also its
            name `data_set`, `repository`, `config` and `split`; they go into the model index too.

    Raises:
        FileNotFoundError: the folder lacks one of the two files.
    """
    folder = Path(folder)
    config = read_config(folder)
    is_encoder = "text_config" not in config
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    teachers = sorted({teacher for stage in facts["stages"].values() for teacher in stage["teachers"]})
    text_config = None
    if not is_encoder:
        fields = dict(config["text_config"])
        # Its class knows every name of its fields: GPT-2's width is n_embd.
        text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    data = ModelCardData(
        model_name=facts["name"],
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if is_encoder else "image-text-to-text",
        tags=["hawaii", "knowledge-distillation", "mixture-of-lora", "custom_code"],
        eval_results=[_eval_result(result) for result in results or []] or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=facts["name"],
        # In the words that it was trained on: a small model knows no others.
        question=list(facts["stages"].values())[-1].get("question") or "What is in this image?",
        num_parameters=facts["num_parameters"],
        teachers=teachers,
        stages=facts["stages"],
        vision=config if is_encoder else config["vision_config"],
        text=text_config,
        results=results,
    )
    card.save(folder / "README.md")
