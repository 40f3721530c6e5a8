"""`make bench` writes all results of a device and a page that names the goals that are missed."""

import json
import sys

import pytest

from hawaii.benchmarks import bench
from hawaii.benchmarks.measuring.comparison import Comparison
from hawaii.benchmarks.page import NOTES, SECTIONS, write_page


def encode(rounds):
    yield Comparison("features", "HAWAII", "LLaVA", [(2.0, 2.0)] * rounds, at_most=1.0)
    yield Comparison("passes", "one batch", "many", [(3.0, 4.0), (1.0, 4.0), (2.0, 4.0)])


def step(size):
    yield Comparison(f"a {size} step", "HAWAII", "LLaVA", [(1.5e3, 1e3)], "TFLOP", at_most=1.3)
    yield Comparison("a loop", "loop", "HAWAII", [(1.2, 1.0)], at_least=1.05)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "speed")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "speed.md")
    monkeypatch.setattr(
        bench,
        "MEASUREMENTS",
        {
            "encoder": (encode, {"rounds": 2}, {"rounds": 2}),
            "step": (step, {"size": "small"}, {"size": "small"}),
            "cache": (step, None, None),
        },
    )

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bench.py", *words])
        bench.main()
        return tmp_path

    return run


def test_all_results_are_written_and_shown(run, capsys):
    folder = run()
    printed = capsys.readouterr().out.splitlines()
    assert "features, HAWAII / LLaVA: 1.000 (2 / 2 ms, medians of 2 rounds whose ratios are 1.000 to 1.000)" in printed
    (file,) = (folder / "speed").iterdir()
    record = json.loads(file.read_text())
    assert list(record["results"]) == ["encoder", "step"]  # nothing is measured for `None`
    assert record["results"]["encoder"]["options"] == {"rounds": 2}
    assert record["versions"].keys() == {"torch", "transformers"}
    page = (folder / "speed.md").read_text()
    assert f"## {record['device']}" in page and f"commit {record['commit']}" in page
    assert "Goals that are missed: Seconds of a training step: a small step." in page
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "HAWAII" in line]
    assert ["features", "HAWAII / LLaVA", "1.00 [1.00, 1.00]", "2 / 2 ms", "≤ 1.00"] in rows
    assert ["a small step", "HAWAII / LLaVA", "1.50", "1,500 / 1,000 TFLOP", "≤ 1.30 **missed**"] in rows
    assert ["a loop", "loop / HAWAII", "1.20", "1.2 / 1 ms", "≥ 1.05"] in rows
    assert "| passes   | one batch / many | 0.50 [0.25, 0.75] | 2 / 4 ms |        |" in page


def test_the_results_of_other_devices_stay(run):
    folder = run()
    (file,) = (folder / "speed").iterdir()
    record = json.loads(file.read_text()) | {"device": "Another device"}
    (folder / "speed/other.json").write_text(json.dumps(record))
    page = (run() / "speed.md").read_text()
    assert page.count("\n## ") == 2 and "## Another device" in page


def test_a_part_alone_writes_nothing(run, capsys):
    folder = run("--only", "step")
    assert "features" not in capsys.readouterr().out
    assert not list(folder.iterdir())


def test_vllm_needs_an_environment(run, capsys):
    with pytest.raises(SystemExit):
        run("--only", "vllm")
    assert "vllm needs --vllm PYTHON" in capsys.readouterr().err


def test_each_measurement_has_a_title_and_a_note():
    assert set(SECTIONS) == set(NOTES) == {*bench.MEASUREMENTS, "vllm"}


def test_without_missed_goals_the_page_says_so(tmp_path):
    record = {"device": "A device", "date": "2026-01-01", "commit": "abc", "versions": {}, "minutes": 1, "results": {}}
    (tmp_path / "cpu.json").write_text(json.dumps(record))
    write_page(tmp_path, tmp_path / "speed.md")
    assert "All goals are met." in (tmp_path / "speed.md").read_text()
