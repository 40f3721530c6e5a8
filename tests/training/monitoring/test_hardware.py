"""The devices and versions of each part of a training are recorded, over several processes and interruptions."""

from types import SimpleNamespace

import pytest
import torch

from hawaii.training.monitoring import hardware
from hawaii.training.monitoring.hardware import HardwareCallback, describe_software, device_name, processor_name


@pytest.fixture
def begin(monkeypatch):
    """Begins a training at a step, on processes with these devices."""

    def begin(callback, step, names):
        monkeypatch.setattr(hardware, "gather_object", lambda own: names)
        args, state = SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(global_step=step, max_steps=100)
        callback.on_train_begin(args, state, None)
        return callback

    return begin


def test_a_run_on_several_processes_counts_them_by_device(begin):
    (session,) = begin(HardwareCallback(), 0, ["NVIDIA H200", "NVIDIA H200", "NVIDIA A100"]).sessions
    assert session["devices"] == {"NVIDIA H200": 2, "NVIDIA A100": 1}
    assert (session["first_step"], session["software"]["torch"]) == (1, torch.__version__)


def test_a_resumed_run_adds_the_devices_it_continues_on(begin):
    first = begin(HardwareCallback(), 0, ["NVIDIA H200"])
    same = begin(HardwareCallback(**first.state()["args"]), 40, ["NVIDIA H200"])
    assert same.sessions == first.sessions
    other = begin(HardwareCallback(**same.state()["args"]), 60, ["NVIDIA A100"])
    assert [(each["first_step"], each["devices"]) for each in other.sessions] == [
        (1, {"NVIDIA H200": 1}),
        (61, {"NVIDIA A100": 1}),
    ]
    assert len(first.sessions) == 1


def test_a_resume_from_the_last_checkpoint_runs_nothing(begin):
    assert begin(HardwareCallback(), 100, ["cpu"]).sessions == []


def test_other_versions_are_another_session(begin, monkeypatch):
    first = begin(HardwareCallback(), 0, ["cpu"])
    monkeypatch.setattr(hardware, "describe_software", lambda: {"torch": "9"})
    assert [each["software"] for each in begin(first, 5, ["cpu"]).sessions][1:] == [{"torch": "9"}]


def test_a_cpu_has_its_name_and_threads(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    monkeypatch.setattr(hardware, "CPU_INFO", tmp_path / "cpuinfo")
    assert device_name(torch.device("cpu")) == f"Some CPU @ 2 GHz, {torch.get_num_threads()} threads"


def test_a_cpu_that_the_system_does_not_name_is_named_by_its_architecture(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "CPU_INFO", tmp_path / "absent")
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "riscv64")
    assert processor_name() == "riscv64"


def test_libraries_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(hardware, "LIBRARIES", ("torch", "no-such-library"))
    assert set(describe_software()) - {"cuda"} == {"python", "torch"}
