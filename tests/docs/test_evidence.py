"""What docs/evidence.md says of its runs is in the numbers beside it."""

import json
import re

import pytest

from hawaii.ablation.table import make_table
from hawaii.tests.documents import links, read


EVIDENCE = read("docs/evidence.md")
SETTINGS = ("easy_vqa", "easy_vqa_5_percent", "emoji_vqa")
# The rows that a line of the differences compares.
COMPARED = {
    "HAWAII above LLaVA": ("hawaii", "llava"),
    "HAWAII above MoVE-KD": ("hawaii", "move_kd"),
    "HAWAII above MoVE-KD, repaired": ("hawaii", "move_kd_repaired"),
    "HAWAII above RADIO": ("hawaii", "radio"),
    "HAWAII above RADIO for longer": ("hawaii", "radio_longer"),
    "HAWAII above FGKD alone": ("hawaii", "fine"),
    "HAWAII above general adapters only": ("hawaii", "general_adapters"),
    "what FGKD adds to LLaVA": ("fine", "llava"),
    "what token scoring adds": ("token_scoring", "fine"),
    "what CGKD adds": ("hawaii", "token_scoring"),
}


def read_numbers(name):
    return json.loads(read(f"docs/evidence/{name}.json"))


def averages(setting):
    """`Avg.` of each row, that of RADIO with more steps among them."""
    (longer,) = read_numbers(f"{setting}_radio_longer")["rows"]
    rows = {row["name"]: row for row in read_numbers(setting)["rows"]} | {"radio_longer": longer}
    return {name: row["columns"]["Avg."] for name, row in rows.items()}


def tells(setting, baseline):
    """Whether HAWAII is above a row by an interval that does not hold zero."""
    return read_numbers("differences")[setting]["hawaii"][baseline]["low"] > 0


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_table_is_what_the_command_made_of_its_numbers(setting):
    assert f"evidence/{setting}.json" in links(EVIDENCE)
    lines = [line for line in make_table(read_numbers(setting)).splitlines() if line.startswith("|")]
    assert len(lines) > 7 and "\n".join(lines) in EVIDENCE


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_difference_is_that_of_two_rows(setting):
    found = averages(setting)
    differences = read_numbers("differences")[setting]
    pairs = [(name, baseline) for name, baselines in differences.items() for baseline in baselines]
    assert set(pairs) >= set(COMPARED.values())
    for name, baseline in pairs:
        difference = differences[name][baseline]
        assert difference["difference"] == pytest.approx(found[name]["mean"] - found[baseline]["mean"])
        assert difference["low"] < difference["difference"] < difference["high"]
        if baseline == "llava":
            against = found[name]["against_baseline"]
            assert difference == {key: against[key] for key in ("difference", "low", "high")}


def test_the_differences_are_shown_and_those_that_tell_are_bold():
    shown = dict(re.findall(r"^\| (HAWAII above .*?|what .*?) \| (.*) \|$", EVIDENCE, flags=re.MULTILINE))
    assert shown.keys() == COMPARED.keys()
    differences = read_numbers("differences")
    for words, (name, baseline) in COMPARED.items():
        cells = shown[words].split(" | ")
        for setting, cell in zip(SETTINGS, cells, strict=True):
            found = differences[setting][name][baseline]
            wanted = f"{found['difference']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"
            assert cell == (f"**{wanted}**" if found["low"] > 0 or found["high"] < 0 else wanted)


def test_what_the_intervals_tell_of_peers_is_as_is_said():
    text = " ".join(EVIDENCE.split())
    assert "HAWAII is above LLaVA, MoVE-KD and RADIO in every setting**: the difference to LLaVA and" in text
    assert "is significant in all three, to RADIO and the repaired MoVE-KD in two of three." in text
    assert "HAWAII's mean is above FGKD's in each setting, significantly only on EmojiVQA." in text
    told = {"llava": 3, "move_kd": 3, "move_kd_repaired": 2, "radio": 2, "fine": 1, "token_scoring": 2}
    for baseline, number in told.items():
        assert sum(tells(setting, baseline) for setting in SETTINGS) == number
        assert all(averages(setting)["hawaii"]["mean"] > averages(setting)[baseline]["mean"] for setting in SETTINGS)
    assert [setting for setting in SETTINGS if tells(setting, "fine")] == ["emoji_vqa"]


def test_one_teacher_alone_is_as_is_said():
    found = read_numbers("differences")["easy_vqa_5_percent"]["hawaii"]
    for baseline in ("only_resnet", "only_poolformer", "only_vit"):
        difference = found[baseline]
        said = f"{difference['difference']:.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        assert said in EVIDENCE
    assert found["only_vit"]["low"] < 0 < min(found["only_resnet"]["low"], found["only_poolformer"]["low"])


def test_looking_at_nothing_is_as_right_as_in_the_data_sets_own_document():
    table = re.findall(r"^\| ([a-z]+) \| .* \| ([\d.]+) % \|$", read("docs/emoji_vqa.md"), flags=re.MULTILINE)
    section = EVIDENCE.split("### EmojiVQA")[1]
    header, *_, blind = (
        re.split(r" *\| *", line)[1:-1] for line in re.findall(r"^\|.*\|$", section, flags=re.MULTILINE)[:11]
    )
    assert blind[0] == "*blind*" and dict(table).items() <= dict(zip(header, blind)).items()
