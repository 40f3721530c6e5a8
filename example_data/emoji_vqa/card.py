"""The card of EmojiVQA: what it was made of, whose that is, and under which licences it may be passed on."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ...files.atomic import write_text
from .concepts import Concept
from .packages import NAMES, TEST_VENDOR, VENDORS, read_members
from .questions import Question, guess_blindly


TEMPLATE = Path(__file__).parent / "card.md.jinja"


def write_data_card(
    output_dir: Path,
    archives: dict[str, Path],
    filtered: dict[str, list[Concept]],
    concepts: Sequence[Concept],
    test: Sequence[Question],
) -> None:
    """
    Writes `README.md`.

    Args:
        output_dir (`Path`):
            Folder of the data set.
        archives (`dict[str, Path]`):
            Each vendor's package, which names its author and licence.
        filtered (`dict[str, list[Concept]]`):
            What each rule left, see [`candidates`].
        concepts (`Sequence[Concept]`):
            What was chosen of it.
        test (`Sequence[Question]`):
            The questions of the test split.
    """
    vendors = [
        {
            "key": vendor,
            "package": f"{VENDORS[vendor].name} {VENDORS[vendor].version}",
            "is_test": vendor == TEST_VENDOR,
            **read_members(archive, "info.json")[0],
        }
        for vendor, archive in archives.items()
    ]
    licenses = sorted({vendor["license"]["spdx"].lower() for vendor in vendors} | {"mit"})
    groups: dict[str, list[str]] = {}
    for concept in concepts:
        groups.setdefault(concept.group, []).append(concept.name)
    blind, answers = guess_blindly(test), Counter(question.answer for question in test)
    num_asked = Counter(question.type for question in test)
    card = DatasetCard.from_template(
        DatasetCardData(
            pretty_name="EmojiVQA",
            language="en",
            license=licenses,
            task_categories=["visual-question-answering"],
            size_categories="10K<n<100K",
            configs=[{"config_name": "default", "data_files": [{"split": "test", "path": "data/test.parquet"}]}],
        ),
        template_path=str(TEMPLATE),
        vendors=vendors,
        names=f"{NAMES.name} {NAMES.version}",
        filtered={rule: len(left) for rule, left in filtered.items()},
        num_concepts=len(concepts),
        groups=groups,
        num_test=len(test),
        num_asked=dict(sorted(num_asked.items())),
        blind=blind,
        blind_mean=sum(share * num_asked[question_type] for question_type, share in blind.items()) / len(test),
        always_yes=answers["yes"] / len(test),
    )
    write_text(Path(output_dir) / "README.md", str(card))
