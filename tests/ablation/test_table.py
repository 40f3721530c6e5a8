"""The table has the form of the paper's Table 2, and notes that explain its numbers and name missing runs."""

import pytest

from hawaii.ablation.rows import ROWS
from hawaii.ablation.statistics import make_columns, summarize_row
from hawaii.ablation.table import make_table


# Table 2 of the paper, Vicuna-1.5-7B.
TASKS = "textvqa_val vizwiz_vqa_val gqa scienceqa_img pope mme mmbench_en_dev_static mmmu_val ai2d seedbench".split()
TABLE_2 = {
    "llava": (58.2, 50.0, 62.0, 66.8, 85.9, 1510.7, 64.3, 34.7, 55.5, 66.1),
    "fine": (59.0, 52.5, 63.1, 70.1, 86.6, 1532.1, 66.8, 36.7, 54.6, 66.3),
    "token_scoring": (59.1, 52.5, 62.8, 70.2, 87.4, 1541.7, 67.3, 35.9, 56.1, 67.0),
    "hawaii": (58.7, 53.9, 62.8, 70.5, 87.3, 1540.2, 66.9, 36.6, 56.2, 67.5),
}


def make_run(name, seed, scores, speed=1.234):
    run = {"row": name, "seed": seed, "steps": 10, "train_seconds": 20.0, "seconds_per_step": speed}
    tasks = {task: {"score": score} for task, score in scores.items()}
    return {**run, "num_parameters": 7, "scores": tasks, "questions": {}}


def make_ablation(done, seeds, **changes):
    """Content of `ablation.json` for runs by row and seed."""
    columns = make_columns(next(run for runs in done.values() for run in runs.values())["scores"])
    rows = [
        {
            "name": name,
            "label": ROWS[name].label,
            "seeds": sorted(runs),
            "missing_seeds": [seed for seed in seeds if seed not in runs],
            **summarize_row(runs, done["llava"] if name != "llava" else None, columns),
        }
        for name, runs in done.items()
    ]
    labels = [{"label": column.label, "tasks": [part.task for part in column.parts]} for column in columns]
    return {"baseline": "llava", "limit": None, "seeds": seeds, "columns": labels, "rows": rows, **changes}


def cells(table):
    """Returns the header and rows of the table, and the notes below it."""
    lines = [line for line in table.splitlines() if line]
    rows = [line for line in lines if line.startswith("|")]
    read = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [read[0], *read[2:]], [line for line in lines if not line.startswith("|")]


def test_the_numbers_of_the_paper_give_its_table():
    done = {name: {0: make_run(name, 0, dict(zip(TASKS, scores)))} for name, scores in TABLE_2.items()}
    (header, *rows), notes = cells(make_table(make_ablation(done, [0])))
    names = "VQA-Text VizWiz GQA SQA POPE MME MMBench MMMU AI2D SeedBench-I".split()
    assert header == ["Methods", *names, "Avg.", "vs. LLaVA", "s/step", "seeds"]
    assert [row[0] for row in rows] == ["LLaVA", "+ FGKD (w/o token scoring)", "+ token scoring", "+ CGKD (HAWAII)"]
    assert [row[11].strip("*") for row in rows] == ["61.9", "63.2", "63.5", "63.7"]
    assert [row[6] for row in rows] == ["1510.7", "1532.1", "**1541.7**", "1540.2"]
    assert rows[3][1:11] == "58.7 **53.9** 62.8 **70.5** 87.3 1540.2 66.9 36.6 **56.2** **67.5**".split()
    assert "in percent (MME in points, but in percent in the average)" in notes[0]


def test_one_seed_without_question_scores_has_no_interval():
    done = {name: {0: make_run(name, 0, dict(zip(TASKS, scores)))} for name, scores in TABLE_2.items()}
    (_, *rows), notes = cells(make_table(make_ablation(done, [0])))
    assert [row[12] for row in rows] == ["-", "+1.3 [n/a]", "+1.6 [n/a]", "+1.8 [n/a]"]
    assert (
        "without an interval: there is only one seed, and the score of a task is not the mean over its questions"
        in notes[2]
    )


def test_several_seeds_have_a_deviation_and_an_interval():
    done = {
        name: {seed: make_run(name, seed, {"pope": score + seed}) for seed in range(3)}
        for name, score in (("llava", 80.0), ("hawaii", 85.0))
    }
    (header, llava, hawaii), notes = cells(make_table(make_ablation(done, [0, 1, 2])))
    assert header == ["Methods", "POPE", "vs. LLaVA", "s/step", "seeds"]
    assert llava == ["LLaVA", "81.0 ± 1.0", "-", "1.23", "3"]
    assert hawaii == ["+ CGKD (HAWAII)", "**86.0** ± 1.0", "+5.0 [+5.0, +5.0]", "1.23", "3"]
    assert notes[1] == (
        "vs. LLaVA: the difference, with the 95 % interval of a paired bootstrap over seeds only: "
        "the score of a task is not the mean over its questions."
    )


def test_the_interval_is_not_explained_if_no_row_is_compared():
    done = {"llava": {0: make_run("llava", 0, {"pope": 80.0})}, "radio": {1: make_run("radio", 1, {"pope": 81.0})}}
    for shown in (done, {"llava": done["llava"]}):
        (_, *rows), notes = cells(make_table(make_ablation(shown, [0, 1])))
        assert all(row[2] == "-" for row in rows)
        assert not any("vs. LLaVA" in note or "interval" in note for note in notes)


def test_equal_scores_are_not_bold():
    done = {name: {0: make_run(name, 0, {"pope": 80.0})} for name in ("llava", "radio")}
    assert "**" not in make_table(make_ablation(done, [0]))


def test_missing_runs_and_a_limit_are_named():
    done = {
        "llava": {seed: make_run("llava", seed, {"gqa": 60.0}) for seed in range(2)},
        "fine": {1: make_run("fine", 1, {"gqa": 62.0})},
        "radio": {},
    }
    (_, *rows), notes = cells(make_table(make_ablation(done, [0, 1], limit=8)))
    assert rows[1] == ["+ FGKD (w/o token scoring)", "**62.0**", "+2.0 [n/a]", "1.23", "1 of 2"]
    assert rows[2] == ["RADIO", "-", "-", "-", "0 of 2"]
    assert notes[-2:] == [
        "**Only the first 8 questions of each task were used.**",
        "**Not all runs are finished. Missing: + FGKD (w/o token scoring) with seed 0; RADIO with seed 0, 1.**",
    ]


@pytest.mark.parametrize(
    ("resampled", "note"),
    [
        ([["images", "seeds"]], "over images and seeds."),
        ([["images"]], "over images; it does not cover other seeds."),
        ([["images", "seeds"], ["images"]], "over images and seeds, for rows that have several of both."),
    ],
)
def test_the_note_names_what_is_resampled(resampled, note):
    done = {name: {0: make_run(name, 0, {"gqa": 60.0})} for name in ("llava", "fine", "radio")[: len(resampled) + 1]}
    ablation = make_ablation(done, [0])
    for row, names in zip(ablation["rows"][1:], resampled):
        row["columns"]["GQA"]["against_baseline"] = {"difference": 1.0, "low": 0.5, "high": 1.5, "resampled": names}
    assert make_table(ablation).endswith(note)


def test_the_share_of_the_teachers_has_a_column_if_teachers_ran():
    stages = {"finetune": {"steps": 10, "seconds_per_step": 2.0, "teacher_share": 0.254}}
    done = {name: {0: make_run(name, 0, {"t": 50.0})} for name in ("llava", "hawaii", "fine")}
    for name, share in (("llava", 0.0), ("hawaii", 0.254)):
        done[name][0]["stages"] = {"finetune": {**stages["finetune"], "teacher_share": share}}
    (header, *rows), notes = cells(make_table(make_ablation(done, [0])))
    assert header[-3:] == ["s/step", "teachers", "seeds"]
    assert [row[-2] for row in rows] == ["0%", "25%", "-"]
    assert "teachers: the share of the teachers' forward passes in the seconds of a step." in notes
    done["hawaii"][0]["stages"]["finetune"]["teacher_share"] = 0.0
    (header, *_), notes = cells(make_table(make_ablation(done, [0])))
    assert "teachers" not in header and not any("teachers" in note for note in notes)
