"""`make bench` writes all results of a device and a page that names the goals that are missed, and what failed."""

import inspect
import json
import sys

import pytest

from hawaii.benchmarks import bench, page
from hawaii.benchmarks.measurements import MEASUREMENTS, VLLM, Measurement
from hawaii.benchmarks.measuring.comparison import Comparison
from hawaii.tests.documents import links


def encode(rounds):
    yield Comparison("features", "HAWAII", "LLaVA", [(2.0, 2.0)] * rounds, at_most=1.0)
    yield Comparison("passes", "one batch", "many", [(3.0, 4.0), (1.0, 4.0), (2.0, 4.0)])


def step(size):
    yield Comparison(f"a {size} step", "HAWAII", "LLaVA", [(1.5e3, 1e3)], "TFLOP", at_most=1.3)
    yield Comparison("a loop", "loop", "HAWAII", [(1.2, 1.0)], at_least=1.05)


def fail():
    yield Comparison("the first", "HAWAII", "LLaVA", [(1.0, 1.0)])
    raise RuntimeError("out of memory")


def serve(python):
    yield Comparison(f"a request with {python}", "HAWAII", "LLaVA", [(1.0, 1.0)])


@pytest.fixture
def measurements(monkeypatch):
    """What is measured instead."""
    measurements = {
        "encoder": Measurement("Encoder", "A note.", encode, {"rounds": 2}, {"rounds": 3}),
        VLLM: Measurement("vLLM", "Requests.", serve, {}, {}),
        "step": Measurement("Step", "Another note.", step, {"size": "small"}, {"size": "large"}),
    }
    for module in (bench, page):
        monkeypatch.setattr(module, "MEASUREMENTS", measurements)
    return measurements


@pytest.fixture
def run(monkeypatch, tmp_path, measurements):
    """Runs the command; returns its status and the folder of results and page."""
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "speed")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "speed.md")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bench.py", *words])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        return ended.value.code, tmp_path

    return run


def read(folder):
    (file,) = (folder / "speed").iterdir()
    return json.loads(file.read_text()), (folder / "speed.md").read_text()


def test_all_results_are_written_and_shown(run, capsys):
    status, folder = run()
    assert status == 0
    printed = capsys.readouterr().out.splitlines()
    assert "features, HAWAII / LLaVA: 1.000 (2 / 2 ms, medians of 2 rounds whose ratios are 1.000 to 1.000)" in printed
    record, text = read(folder)
    assert list(record["results"]) == ["encoder", "step"]
    assert record["results"]["encoder"]["options"] == {"rounds": 2}
    assert record["versions"].keys() == {"torch", "transformers"}
    assert f"## {record['device']}" in text and f"commit {record['commit']}" in text
    assert "A note. (rounds 2.)" in text
    assert "Goals that are missed: Step: a small step." in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if " / " in line]
    assert ["features", "HAWAII / LLaVA", "1.00 [1.00, 1.00]", "2 / 2 ms", "≤ 1.00"] in rows
    assert ["a small step", "HAWAII / LLaVA", "1.50", "1,500 / 1,000 TFLOP", "≤ 1.30 **missed**"] in rows
    assert ["a loop", "loop / HAWAII", "1.20", "1.2 / 1 ms", "≥ 1.05"] in rows
    assert ["passes", "one batch / many", "0.50 [0.25, 0.75]", "2 / 4 ms", ""] in rows


def test_a_measurement_that_fails_is_named_and_keeps_what_it_measured(run, measurements, monkeypatch):
    monkeypatch.setitem(measurements, "encoder", Measurement("Encoder", "A note.", fail, {}, {}))
    status, folder = run()
    assert status == 1
    record, text = read(folder)
    assert record["results"]["encoder"]["error"] == "RuntimeError: out of memory"
    assert "**It failed.** RuntimeError: out of memory" in text
    assert "| the first |" in text and "| a small step |" in text


def test_each_device_keeps_its_results(run, monkeypatch):
    monkeypatch.setattr(bench, "name_device", lambda: "NVIDIA H200")
    run()
    monkeypatch.setattr(bench, "name_device", lambda: "Another CPU, one thread")
    run()
    _, folder = run()
    assert sorted(path.name for path in (folder / "speed").iterdir()) == [
        "another_cpu_one_thread.json",
        "nvidia_h200.json",
    ]
    text = (folder / "speed.md").read_text()
    assert text.count("\n## ") == 2 and text.count("## NVIDIA H200") == 1


def test_vllm_is_measured_in_its_environment(run):
    _, folder = run("--vllm", "/somewhere/python")
    record, text = read(folder)
    assert "a request with /somewhere/python" in text
    assert record["results"][VLLM]["options"] == {}  # without the path


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_each_measurement_accepts_its_arguments_on_both_devices(name):
    measurement = MEASUREMENTS[name]
    python = {"python": "python"} if name == VLLM else {}
    for options in (measurement.on_cpu, measurement.on_gpu):
        inspect.signature(measurement.function).bind(**options, **python)


def test_without_missed_goals_the_page_says_so_and_has_no_link_to_a_folder(tmp_path):
    record = {"device": "A device", "date": "2026-01-01", "commit": "abc", "versions": {}, "minutes": 1, "results": {}}
    (tmp_path / "device.json").write_text(json.dumps(record))
    page.write_page(tmp_path, tmp_path / "speed.md")
    text = (tmp_path / "speed.md").read_text()
    assert "All goals are met." in text
    assert links(text) == []
