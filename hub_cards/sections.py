"""The sections of a card that are written again when more is known."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from ..configuration.card_hawaii import NOT_EVALUATED
from ..files.escape import escape_link, escape_markdown
from ..files.markdown_table import markdown_table


def license_section(metadata: Mapping[str, Any]) -> str:
    """The sentence about the license in a card's metadata."""
    if not metadata.get("license"):
        return "No license is given yet, so nobody but its author may use this model."
    name = escape_markdown(str(metadata.get("license_name") or metadata["license"]))
    if link := metadata.get("license_link"):
        name = f"[{name}]({escape_link(str(link))})"
    return f"The license of this model is {name}."


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape_markdown(str(value))


def evaluation_section(results: Sequence[EvalResult]) -> str:
    """The table of the scores in a card's metadata."""
    if not results:
        return NOT_EVALUATED
    rows = [
        [
            str(result.dataset_name),
            str(result.dataset_split or ""),
            str(result.metric_name or result.metric_type),
            _number(result.metric_value),
            _number((result.metric_args or {}).get("num_questions", "")),
        ]
        for result in results
    ]
    return markdown_table(["data", "split", "metric", "value", "questions"], rows, num_text_columns=3)
