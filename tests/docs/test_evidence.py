"""What docs/evidence.md says of its runs is in the numbers beside it."""

import json
import re

import pytest

from hawaii.evaluation.ablation_table import make_table
from hawaii.tests.documents import ROOT, links, read


EVIDENCE = read("docs/evidence.md")
SETTINGS = ("easy_vqa", "easy_vqa_5_percent", "emoji_vqa")
# The rows that a line of the differences compares.
COMPARED = {
    "HAWAII above LLaVA": ("hawaii", "llava"),
    "HAWAII above MoVE-KD": ("hawaii", "move_kd"),
    "HAWAII above MoVE-KD, repaired": ("hawaii", "move_kd_repaired"),
    "HAWAII above RADIO": ("hawaii", "radio"),
    "HAWAII above FGKD alone": ("hawaii", "fine"),
    "what FGKD adds to LLaVA": ("fine", "llava"),
    "what token scoring adds": ("token_scoring", "fine"),
    "what CGKD adds": ("hawaii", "token_scoring"),
}


def read_ablation(setting):
    return json.loads((ROOT / f"docs/evidence/{setting}.json").read_text(encoding="utf-8"))


def averages(setting):
    return {row["name"]: row["columns"]["Avg."] for row in read_ablation(setting)["rows"]}


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_table_is_what_the_command_made_of_its_numbers(setting):
    assert f"evidence/{setting}.json" in links(EVIDENCE)
    lines = [line for line in make_table(read_ablation(setting)).splitlines() if line.startswith("|")]
    assert len(lines) > 7 and "\n".join(lines) in EVIDENCE


def test_each_difference_is_that_of_the_tables():
    shown = dict(re.findall(r"^\| (HAWAII above .*?|what .*?) \| (.*) \|$", EVIDENCE, flags=re.MULTILINE))
    assert shown.keys() == COMPARED.keys()
    for words, (name, baseline) in COMPARED.items():
        for setting, cell in zip(SETTINGS, shown[words].split(" | "), strict=True):
            found = averages(setting)
            difference, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell).groups())
            assert difference == pytest.approx(found[name]["mean"] - found[baseline]["mean"], abs=0.051)
            assert low < difference < high
            if baseline == "llava":
                against = found[name]["against_baseline"]
                assert [low, high] == [round(against["low"], 1), round(against["high"], 1)]


@pytest.mark.parametrize("setting", SETTINGS)
def test_hawaii_is_the_best_of_the_seven_as_is_said(setting):
    assert "HAWAII is the best of the seven in every setting" in EVIDENCE
    seven = ("llava", "fine", "token_scoring", "hawaii", "move_kd", "move_kd_repaired", "radio")
    assert max(seven, key=lambda name: averages(setting)[name]["mean"]) == "hawaii"
