"""The data card of EmojiVQA: its sources, their authors, and the licenses for sharing it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ...files.atomic import write_text
from .concepts import Concept
from .packages import NAMES, TEST_VENDOR, VENDORS, read_members
from .questions import Question, blind_accuracy


TEMPLATE = Path(__file__).parent / "card.md.jinja"


def write_data_card(
    output_dir: Path,
    archives: dict[str, Path],
    filtered: dict[str, list[Concept]],
    concepts: Sequence[Concept],
    test: Sequence[Question],
) -> None:
    """
    Writes `README.md`: `archives` are the vendors' packages, which name authors and licenses, `filtered` comes from
    [`filter_concepts`], and `concepts` and `test` are the concepts and test questions of the data set.
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
    groups: dict[str, list[str]] = {}
    for concept in concepts:
        groups.setdefault(concept.group, []).append(concept.name)
    blind = blind_accuracy(test)
    num_asked = Counter(question.type for question in test)
    card = DatasetCard.from_template(
        DatasetCardData(
            pretty_name="EmojiVQA",
            language="en",
            license=sorted({vendor["license"]["spdx"].lower() for vendor in vendors} | {"mit"}),
            task_categories=["visual-question-answering"],
            size_categories="10K<n<100K",
            configs=[{"config_name": "default", "data_files": [{"split": "test", "path": "data/test.parquet"}]}],
        ),
        template_path=str(TEMPLATE),
        vendors=vendors,
        names=f"{NAMES.name} {NAMES.version}",
        filtered={rule: len(remaining) for rule, remaining in filtered.items()},
        num_concepts=len(concepts),
        groups=groups,
        num_test=len(test),
        num_asked=dict(sorted(num_asked.items())),
        blind=blind,
        blind_mean=sum(share * num_asked[question_type] for question_type, share in blind.items()) / len(test),
        always_yes=sum(question.answer == "yes" for question in test) / len(test),
    )
    write_text(Path(output_dir) / "README.md", str(card))
