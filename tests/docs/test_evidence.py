"""The figures of docs/evidence.md are those of the JSON files next to it."""

import itertools
import json
import re
import statistics
from dataclasses import replace

import pytest

from hawaii.ablation.rows import make_recipe, read_rows, rows_of
from hawaii.ablation.table import make_table
from hawaii.tests.documents import ROOT, links, read
from hawaii.training.recipes.recipe import first_difference, read_recipe


EVIDENCE = read("docs/evidence.md")
SETTINGS = ("easy_vqa", "easy_vqa_5_percent", "emoji_vqa")
# The two rows that each line of the table of differences compares.
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
CLIP_SETTINGS = ("easy_vqa_clip", "emoji_vqa_clip")
CONFLICT = "emoji_vqa_conflict"
# As the tables about all of them name them.
CLIP_TITLES = {"easy-VQA": "easy_vqa_clip", "EmojiVQA": "emoji_vqa_clip", "contradicting teachers": CONFLICT}
LETTER = "emoji_vqa_letter"
# With as many seconds for each row.
SECONDS_TITLES = {
    "easy-VQA, from a CLIP": "easy_vqa_clip_seconds",
    "EmojiVQA, from a CLIP": "emoji_vqa_clip_seconds",
    "easy-VQA, from random weights": "easy_vqa_seconds",
}
NOT_RUN = {"emoji_vqa_clip_seconds": ("move_kd",), "easy_vqa_seconds": ("llava", "move_kd")}
CLIP_COMPARED = {
    "HAWAII minus LLaVA": ("hawaii", "llava"),
    "HAWAII minus MoVE-KD": ("hawaii", "move_kd"),
    "HAWAII minus RADIO": ("hawaii", "radio"),
    "CGKD alone minus MoVE-KD": ("coarse", "move_kd"),
    "what FGKD adds to CGKD alone": ("hawaii", "coarse"),
    "CGKD alone minus RADIO": ("coarse", "radio"),
}
SECONDS_COMPARED = {**CLIP_COMPARED, "CGKD alone minus LLaVA": ("coarse", "llava")}


WHAT_IT_SHOWS = EVIDENCE.partition("## What this shows")[2].partition("\n## ")[0]


def read_numbers(name):
    return json.loads(read(f"docs/evidence/{name}.json"))


def averages(setting):
    """Returns `Avg.` of each row, including RADIO with more steps."""
    (longer,) = read_numbers(f"{setting}_radio_longer")["rows"]
    rows = {row["name"]: row for row in read_numbers(setting)["rows"]} | {"radio_longer": longer}
    return {name: row["columns"]["Avg."] for name, row in rows.items()}


def interval(numbers):
    """A difference as the document writes it."""
    return f"{numbers['difference']:+.1f} [{numbers['low']:+.1f}, {numbers['high']:+.1f}]"


def cell_of(numbers):
    """The same in a table, bold if it is significant."""
    return f"**{interval(numbers)}**" if numbers["low"] > 0 or numbers["high"] < 0 else interval(numbers)


def is_significantly_above(setting, baseline):
    """Returns whether HAWAII is above a row and the interval excludes zero."""
    return read_numbers("differences")[setting]["hawaii"][baseline]["low"] > 0


@pytest.mark.parametrize("setting", [*CLIP_TITLES.values(), LETTER, *SECONDS_TITLES.values(), *SETTINGS])
def test_each_table_is_made_from_its_numbers(setting):
    assert f"evidence/{setting}.json" in links(EVIDENCE)
    lines = [line for line in make_table(read_numbers(setting)).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(read_numbers(setting)["rows"]) and "\n".join(lines) in EVIDENCE


def check_differences(setting, columns, baseline):
    """Checks the differences of a setting against `Avg.` of its rows, and those to the baseline against the table."""
    for name, baselines in read_numbers("differences")[setting].items():
        for other, numbers in baselines.items():
            assert numbers["difference"] == pytest.approx(columns[name]["mean"] - columns[other]["mean"])
            assert numbers["low"] < numbers["difference"] < numbers["high"]
            if other == baseline:
                against = columns[name]["against_baseline"]
                assert numbers == {key: against[key] for key in ("difference", "low", "high")}


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_difference_is_that_of_the_means_of_two_rows(setting):
    differences = read_numbers("differences")[setting]
    pairs = {(name, baseline) for name, baselines in differences.items() for baseline in baselines}
    assert pairs >= set(COMPARED.values())
    check_differences(setting, averages(setting), "llava")


def test_the_table_has_all_differences_and_the_significant_ones_are_bold():
    table = dict(re.findall(r"^\| (HAWAII above .*?|what .*?) \| (.*) \|$", WHAT_IT_SHOWS, flags=re.MULTILINE))
    assert table.keys() == COMPARED.keys()
    differences = read_numbers("differences")
    for words, (name, baseline) in COMPARED.items():
        cells = table[words].split(" | ")
        for setting, cell in zip(SETTINGS, cells, strict=True):
            assert cell == cell_of(differences[setting][name][baseline])


FROM_CLIP, _, AFTER_CLIP = EVIDENCE.partition("## A student that starts from a CLIP")[2].partition("\n## With as many")
SAME_SECONDS = AFTER_CLIP.partition("\n## ")[0]


def rows_of_table(header, section=FROM_CLIP):
    """The cells of the table that begins with this header, row by row."""
    lines = section.partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def rows_by_name(setting):
    return {row["name"]: row for row in read_numbers(setting)["rows"]}


@pytest.mark.parametrize("setting", [*CLIP_TITLES.values(), *SECONDS_TITLES.values()])
def test_each_difference_from_a_clip_or_with_as_many_seconds_is_that_of_the_means_of_two_rows(setting):
    rows = rows_by_name(setting)
    assert all(row["seeds"] == [0, 1, 2, 3, 4] for row in rows.values())
    columns = {name: row["columns"]["Avg."] for name, row in rows.items()}
    check_differences(setting, columns, read_numbers(setting)["baseline"])


def test_the_table_from_a_clip_has_all_differences_and_the_significant_ones_are_bold():
    table = {words: cells for words, *cells in rows_of_table(f"| | {' | '.join(CLIP_TITLES)} |")}
    assert table.keys() == CLIP_COMPARED.keys()
    differences = read_numbers("differences")
    for words, (name, baseline) in CLIP_COMPARED.items():
        found = [differences[setting].get(name, {}).get(baseline) for setting in CLIP_TITLES.values()]
        assert table[words] == ["-" if numbers is None else cell_of(numbers) for numbers in found]
        assert (found[-1] is None) == (baseline in ("llava", "move_kd"))


def test_the_table_with_as_many_seconds_has_all_differences_and_the_significant_ones_are_bold():
    table = {words: cells for words, *cells in rows_of_table(f"| | {' | '.join(SECONDS_TITLES)} |", SAME_SECONDS)}
    assert table.keys() == SECONDS_COMPARED.keys()
    for column, setting in enumerate(SECONDS_TITLES.values()):
        differences = read_numbers("differences")[setting]
        trained = set(rows_by_name(setting))
        for words, pair in SECONDS_COMPARED.items():
            # From a CLIP, the rows have the settings that were chosen at equal steps.
            names = [name if name in trained else f"tuned_{name}" for name in pair]
            is_missing = not trained >= {*names}
            assert is_missing == (pair[1] in NOT_RUN.get(setting, ()))
            assert table[words][column] == ("-" if is_missing else cell_of(differences[names[0]][names[1]]))


@pytest.mark.parametrize(("title", "setting"), SECONDS_TITLES.items())
def test_each_row_is_trained_for_as_many_seconds(title, setting):
    rows = rows_by_name(setting)
    labels = {name: row["label"] for name, row in rows.items()}
    times = read_numbers(f"{setting}_matching")["rows"]
    assert times.keys() == labels.keys()
    for name, row in rows.items():
        assert row["steps"]["mean"] == sum(stage["steps"] for stage in times[name].values())
    for stage in ("pretrain", "finetune"):
        spent = [row[stage]["steps"] * row[stage]["seconds"] for row in times.values()]
        assert max(spent) < 1.01 * min(spent)
    shown = {}
    for found, label, *cells in rows_of_table("| setting | row | steps |", SAME_SECONDS):
        if found == title:
            shown[label] = cells
    stages = {labels[name]: (row["pretrain"], row["finetune"]) for name, row in times.items()}
    assert shown == {
        label: [
            " + ".join(str(stage["steps"]) for stage in pair),
            ", ".join(f"{stage['seconds']:.3f}" for stage in pair),
            ", ".join(f"{stage['seconds'] - stage['student_seconds']:.3f}" for stage in pair),
        ]
        for label, pair in stages.items()
    }


def test_the_claims_about_as_many_seconds_are_those_of_its_numbers():
    text, differences = " ".join(SAME_SECONDS.split()), read_numbers("differences")
    easy, emoji, scratch = (
        {
            (name.removeprefix("tuned_"), baseline.removeprefix("tuned_")): numbers
            for name, baselines in differences[setting].items()
            for baseline, numbers in baselines.items()
        }
        for setting in SECONDS_TITLES.values()
    )
    level = [easy["hawaii", "llava"], easy["coarse", "radio"], emoji["coarse", "radio"]]
    assert all(numbers["low"] < 0 < numbers["high"] for numbers in level)
    below = [each["hawaii", name] for each in (easy, emoji, scratch) for name in ("coarse", "radio")]
    assert max(numbers["high"] for numbers in (*below, easy["hawaii", "move_kd"])) < 0
    above = {"RADIO": scratch["coarse", "radio"], "MoVE-KD": easy["coarse", "move_kd"]}
    above |= {"easy": easy["coarse", "llava"], "emoji": emoji["coarse", "llava"], "hawaii": emoji["hawaii", "llava"]}
    assert min(numbers["low"] for numbers in above.values()) > 0
    points = {name: f"{numbers['difference']:.1f}" for name, numbers in above.items()}
    for sentence in (
        f"LLaVA on EmojiVQA, {interval(above['hawaii'])}, but on easy-VQA level with LLaVA, {interval(level[0])},",
        f"is above RADIO by {points['RADIO']} points from random weights",
        f"LLaVA by {points['easy']} on easy-VQA and {points['emoji']} on EmojiVQA, and above",
        f"and above MoVE-KD by {points['MoVE-KD']}.",
    ):
        assert sentence in text


def test_from_random_weights_each_row_was_tuned_with_the_same_grid():
    tuning = read_numbers("easy_vqa_seconds_tuning")
    assert tuning["rows"].keys() == rows_by_name("easy_vqa_seconds").keys()
    grids = [[each["options"] for each in row["tried"]] for row in tuning["rows"].values()]
    assert len(grids[0]) == 3 and all(grid == grids[0] for grid in grids)
    for row in tuning["rows"].values():
        assert row["chosen"] == max(row["tried"], key=lambda each: each["accuracy"])["options"]


def test_the_figures_in_the_readme_are_those_with_as_many_seconds():
    means = {name: row["columns"]["Avg."]["mean"] for name, row in rows_by_name("easy_vqa_seconds").items()}
    assert (
        f"In equal time it reaches {means['coarse']:.1f} % on easy-VQA, RADIO {means['radio']:.1f} and HAWAII "
        f"with both distillations {means['hawaii']:.1f}."
    ) in " ".join(read("README.md").split())


def test_the_claims_about_the_student_that_starts_from_a_clip_are_those_of_its_numbers():
    """What is said to be significant is, and what is said not to be is not."""
    text = " ".join(FROM_CLIP.split())
    easy, emoji = (read_numbers("differences")[setting] for setting in CLIP_SETTINGS)
    easy_means, emoji_means = (
        {name: row["columns"]["Avg."]["mean"] for name, row in rows_by_name(setting).items()}
        for setting in CLIP_SETTINGS
    )

    assert min(differences["hawaii"]["llava"]["low"] for differences in (easy, emoji)) > 0
    assert all(easy["hawaii"][baseline]["high"] < 0 for baseline in ("move_kd", "radio"))
    assert easy["coarse"]["radio"]["high"] < 0
    conflict = read_numbers("differences")[CONFLICT]["hawaii"]["coarse"]
    unclear = [easy["hawaii"]["coarse"], easy["fine_then_coarse"]["coarse"], conflict]
    distilled = set(emoji_means) - {"llava"}
    pairs = {(name, baseline) for name in emoji for baseline in emoji[name] if baseline != "llava"}
    assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in itertools.combinations(distilled, 2)}
    unclear += [emoji[name][baseline] for name, baseline in pairs]
    assert all(numbers["low"] < 0 < numbers["high"] for numbers in unclear)
    spread = [emoji_means[name] for name in distilled]
    assert max(spread) - min(spread) < 0.6
    fine = [f"{each['hawaii']['coarse']['difference']:+.1f}" for each in (easy, emoji)]
    for sentence in (
        f"{easy_means['hawaii']:.1f} % against {easy_means['move_kd']:.1f} and {easy_means['radio']:.1f}",
        f"{emoji_means['hawaii']:.1f} against {emoji_means['move_kd']:.1f} and {emoji_means['radio']:.1f}.",
        f"{fine[0]} and {fine[1]} points next to CGKD alone, and {conflict['difference']:+.1f} with [teachers",
        f"RADIO is above CGKD alone by {-easy['coarse']['radio']['difference']:.1f} points, which is",
    ):
        assert sentence in text


def test_fine_grained_distillation_does_not_help_with_teachers_that_contradict_each_other():
    change = read_numbers("differences")[CONFLICT]["hawaii"]["coarse"]
    assert change["low"] < 0 < change["high"]
    assert f"FGKD changes CGKD alone by {interval(change)}." in " ".join(FROM_CLIP.split())


def test_heads_in_hawaii_are_described_with_their_numbers():
    text = " ".join(EVIDENCE.partition("- **Heads in HAWAII.**")[2].partition("\n- ")[0].split())
    numbers = read_numbers("heads")
    differences = numbers["from_a_clip"]
    pairs = [("heads", "coarse"), ("hawaii_heads", "hawaii"), ("heads", "radio")]
    pairs += [("hawaii_heads", "heads"), ("hawaii_heads", "radio")]
    for setting in CLIP_TITLES.values():
        found = [differences[setting][name][baseline] for name, baseline in pairs]
        assert [numbers["low"] > 0 for numbers in found[:2]] == [setting == "easy_vqa_clip"] * 2
        assert [numbers["high"] < 0 for numbers in found] == [False] * 3 + [setting == CONFLICT, False]
    easy, emoji, conflict = (
        [interval(differences[setting][name][baseline]) for name, baseline in pairs]
        for setting in CLIP_TITLES.values()
    )
    best = max(each["accuracy"] for each in numbers["from_random_weights"]["tried"])
    summary = max(each["accuracy"] for each in read_numbers("easy_vqa_seconds_tuning")["rows"]["coarse"]["tried"])
    for sentence in (
        f"heads add {easy[0]} to CGKD alone and {easy[1]} to HAWAII on easy-VQA, {emoji[0]} and {emoji[1]} on Emoji",
        f"and {conflict[0]} and {conflict[1]} with contradicting teachers.",
        f"CGKD alone with heads minus RADIO is {easy[2]}, {emoji[2]} and {conflict[2]}, and HAWAII with heads minus",
        f"RADIO {easy[4]}, {emoji[4]} and {conflict[4]}.",
        f"Next to heads FGKD adds {easy[3]}, {emoji[3]} and, a significant loss, {conflict[3]}.",
        f"from {100 * summary:.1f} to {100 * best:.1f} % of the validation questions",
    ):
        assert sentence in text


def test_fine_grained_distillation_makes_a_step_as_much_longer_as_the_document_says():
    assert "A step takes 1.5 to 1.6 times as long." in " ".join(FROM_CLIP.split())
    for setting in CLIP_SETTINGS:
        seconds = {name: row["seconds_per_step"]["mean"] for name, row in rows_by_name(setting).items()}
        assert 1.45 < seconds["hawaii"] / seconds["coarse"] < 1.65


def test_each_row_was_tuned_with_the_same_grid_and_has_the_best_setting():
    header = next(line for line in FROM_CLIP.splitlines() if line.startswith("| | `lambda_1` |"))
    labels = {row["label"]: name for setting in CLIP_SETTINGS for name, row in rows_by_name(setting).items()}
    names = [labels[label] for label in header.strip("| ").split(" | ")[2:]]
    rates = {
        "2e-3, 1e-3": {},
        "4e-3, 2e-3": {"stages.pretrain.learning_rate": 4e-3, "stages.finetune.learning_rate": 2e-3},
    }
    shown = {setting: {name: {} for name in names} for setting in CLIP_TITLES.values()}
    for title, weight, learning_rates, *cells in rows_of_table(header):
        for name, cell in zip(names, cells, strict=True):
            options = {"lambda_1": int(weight)} if name != "llava" else {}
            if cell != "-":
                shown[CLIP_TITLES[title]][name][str(options | rates[learning_rates])] = cell
    for setting in CLIP_TITLES.values():
        tuning = read_numbers(f"{setting}_tuning")
        assert tuning["seed"] not in read_numbers(setting)["seeds"]
        assert tuning["rows"].keys() == rows_by_name(setting).keys()
        for name in names:
            row = tuning["rows"].get(name, {"tried": [], "chosen": None})
            assert len(row["tried"]) == (0 if name not in tuning["rows"] else 2 if name == "llava" else 3)
            best = max(row["tried"], key=lambda each: each["accuracy"], default={"options": None})["options"]
            assert row["chosen"] == best
            expected = {str(each["options"]): f"{100 * each['accuracy']:.1f}" for each in row["tried"]}
            bold = {} if best is None else {str(best): f"**{expected[str(best)]}**"}
            assert shown[setting][name] == expected | bold


def test_the_differences_to_the_paper_to_the_letter_are_those_of_its_numbers():
    text, differences = " ".join(FROM_CLIP.split()), read_numbers("differences")[LETTER]
    rows = rows_by_name(LETTER)
    rows["llava"] = rows_by_name("emoji_vqa_clip")["llava"]
    check_differences(LETTER, {name: row["columns"]["Avg."] for name, row in rows.items()}, "hawaii")
    fixed, plain = differences["fixed_projections"]["hawaii"], differences["plain_second_stage"]["llava"]
    tuned = rows_by_name("emoji_vqa_clip")["hawaii"]["columns"]["Avg."]["mean"]
    assert differences["hawaii"]["llava"]["low"] > 0 and fixed["low"] > 0
    for name in ("weight_2", "weight_5", "weight_10", "plain_second_stage"):
        assert differences[name]["llava"]["low"] < 0 < differences[name]["llava"]["high"]
        assert differences[name]["hawaii"]["high"] < 0
    for sentence in (
        f"hardly above LLaVA**, {interval(differences['hawaii']['llava'])}, and fixed projections add",
        f"fixed projections add {fixed['difference']:.1f}. With a `lambda_1` of 2, tuned as above, they",
        f"tuned as above, they reach {tuned:.1f}.",
        f"nothing is left of it**: {interval(plain)} to LLaVA.",
    ):
        assert sentence in text


def test_the_variance_of_targets_that_learn_is_that_of_the_logs():
    header = next(line for line in FROM_CLIP.splitlines() if line.startswith("| | stage |"))
    labels = {row["label"]: name for name, row in rows_by_name(LETTER).items()}
    numbers, stages = read_numbers("emoji_vqa_letter_variance"), {"first": "pretrain", "second": "finetune"}
    table = rows_of_table(header)
    assert len(table) == 2 * len(labels)
    for label, stage, *cells in table:
        found = numbers[labels[label]][stages[stage]]
        for name, cell in zip(("coarse", "clip", "convnext", "eva", "student"), cells, strict=True):
            assert cell == (f"{statistics.mean(found[name].values()):.3f}" if name in found else "-")
            assert len(found.get(name, range(5))) == 5


def test_the_number_of_settings_with_a_significant_difference_is_correct():
    text = " ".join(EVIDENCE.split())
    assert "HAWAII is above LLaVA, MoVE-KD and RADIO in each of these settings**: the difference to LLaVA and" in text
    assert "is significant in all three, to RADIO and the repaired MoVE-KD in two of three." in text
    assert "HAWAII's mean is above FGKD's in each setting, significantly only on EmojiVQA." in text
    num_significant = {"llava": 3, "move_kd": 3, "move_kd_repaired": 2, "radio": 2, "fine": 1, "token_scoring": 2}
    for baseline, number in num_significant.items():
        assert sum(is_significantly_above(setting, baseline) for setting in SETTINGS) == number
        assert all(averages(setting)["hawaii"]["mean"] > averages(setting)[baseline]["mean"] for setting in SETTINGS)
    assert [setting for setting in SETTINGS if is_significantly_above(setting, "fine")] == ["emoji_vqa"]


def test_the_differences_to_one_teacher_alone_are_correct():
    differences = read_numbers("differences")["easy_vqa_5_percent"]["hawaii"]
    for baseline in ("only_resnet", "only_poolformer", "only_vit"):
        difference = differences[baseline]
        expected = f"{difference['difference']:.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        assert expected in " ".join(EVIDENCE.split())
    assert differences["only_vit"]["low"] < 0
    assert min(differences["only_resnet"]["low"], differences["only_poolformer"]["low"]) > 0


def test_the_accuracy_of_blind_guesses_equals_that_in_the_document_of_emoji_vqa():
    _, questions = read("docs/emoji_vqa.md").split("## Questions")
    table = re.findall(r"^\| ([a-z]+) \| .* \| ([\d.]+) % \|$", questions.split("##")[0], flags=re.MULTILINE)
    section = EVIDENCE.split("### EmojiVQA")[1]
    header, *_, blind = (
        re.split(r" *\| *", line)[1:-1] for line in re.findall(r"^\|.*\|$", section, flags=re.MULTILINE)[:11]
    )
    assert blind[0] == "*blind*" and dict(table).items() <= dict(zip(header, blind)).items()


@pytest.mark.parametrize("name", ["emoji_vqa", "easy_vqa"])
def test_the_rows_with_as_many_seconds_have_the_settings_that_the_tuning_chose(tmp_path, name):
    recipe = read_recipe(f"{name}_clip", use_cpu=True)
    known = rows_of(recipe.stages["pretrain"].teachers)
    tuned = read_rows(ROOT / f"docs/evidence/{name}_tuned_rows.yaml", known, recipe.output_dir)
    not_run = ("llava", "fine_then_coarse", *NOT_RUN.get(f"{name}_clip_seconds", ()))
    for row, report in read_numbers(f"{name}_clip_tuning")["rows"].items():
        if row in not_run:
            continue
        chosen = replace(known[row], options={**known[row].options, **report["chosen"]})
        expected, found = (make_recipe(recipe, each, 0, tmp_path) for each in (chosen, tuned.pop(f"tuned_{row}")))
        assert first_difference(expected, found) is None
    assert not tuned and read_numbers(f"{name}_clip_tuning")["rows"]["llava"]["chosen"] == {}


@pytest.mark.parametrize("name", ["emoji_vqa_clip", "easy_vqa_clip"])
def test_the_further_rows_fit_the_recipes_that_start_from_a_clip(tmp_path, name):
    recipe = read_recipe(name, use_cpu=True)
    known = rows_of(recipe.stages["pretrain"].teachers)
    rows = read_rows(ROOT / "docs/evidence/pretrained_rows.yaml", known, recipe.output_dir)
    made = {row: make_recipe(recipe, options, 0, tmp_path).stages for row, options in rows.items()}
    assert [made[f"weight_{weight}"]["finetune"].options.lambda_1 for weight in (2, 5, 10)] == [2, 5, 10]
    assert [stage.options.lambda_1 for stage in made["plain_second_stage"].values()] == [0.5, 0]
    assert not any("projections" in stage.training.trainable for stage in made["fixed_projections"].values())
