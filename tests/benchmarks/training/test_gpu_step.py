"""What is counted on a GPU, with a stand-in for its functions: no test has a GPU."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from hawaii.benchmarks.training import gpu_step


GIB = 2**30


class Step:
    """A step of 2 x 3 x 4 operations twice, with one GiB of its own weights and as much as a teacher's."""

    def __init__(self, gpu, num_waits=0, peak=0):
        self.gpu, self.num_waits, self.peak, self.num_runs = gpu, num_waits, peak, 0
        self.module = SimpleNamespace(parameters=lambda: [SimpleNamespace(nbytes=GIB)])
        self.teachers = [SimpleNamespace(model=self.module)]

    def run(self):
        self.num_runs += 1
        self.gpu.highest = max(self.gpu.highest, self.gpu.allocated + self.peak)
        torch.ones(2, 3) @ torch.ones(3, 4)
        for _ in range(self.num_waits if self.gpu.mode == "warn" else 0):
            warnings.warn("called a synchronizing CUDA operation")
        warnings.warn("something else")


@pytest.fixture
def gpu(monkeypatch):
    gpu = SimpleNamespace(mode="default", allocated=10 * GIB, highest=99 * GIB, name="NVIDIA H100 80GB HBM3")
    functions = {
        "set_sync_debug_mode": lambda mode: setattr(gpu, "mode", mode),
        "memory_allocated": lambda: gpu.allocated,
        "max_memory_allocated": lambda: gpu.highest,
        "reset_peak_memory_stats": lambda: setattr(gpu, "highest", gpu.allocated),
        "synchronize": lambda: None,
        "get_device_name": lambda: gpu.name,
    }
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return gpu


def test_waits_are_those_of_one_step_and_the_mode_is_set_back(gpu):
    assert gpu_step.count_waits(Step(gpu, num_waits=3)) == 3
    assert gpu.mode == "default"


def test_the_mode_is_set_back_after_an_error(gpu):
    step = Step(gpu)
    step.run = lambda: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError):
        gpu_step.count_waits(step)
    assert gpu.mode == "default"


def test_the_peak_has_the_weights_of_the_step_and_not_those_of_others(gpu):
    # 10 GiB are in use, 2 of them by this step, which needs 5 more.
    assert gpu_step.peak_gib(Step(gpu, peak=5 * GIB)) == pytest.approx(7)


def test_operations_per_second_are_those_of_whole_steps(gpu, monkeypatch):
    times = iter([1.0, 3.0])
    monkeypatch.setattr(gpu_step.time, "perf_counter", lambda: next(times))
    step = Step(gpu)
    assert gpu_step.tera_per_second(step) == pytest.approx(gpu_step.NUM_STEPS * 2 * 2 * 3 * 4 / 2.0 / 1e12)
    assert step.num_runs == 1 + gpu_step.NUM_STEPS


@pytest.mark.parametrize(("name", "num_found"), [("NVIDIA H100 80GB HBM3", 4), ("A GPU that nobody knows", 3)])
def test_the_share_of_the_peak_needs_a_known_gpu(gpu, name, num_found):
    gpu.name = name
    found = list(gpu_step.measure_on_gpu("stage 1", Step(gpu, 1), Step(gpu, 1)))
    assert len(found) == num_found
    assert [each.at_least for each in found if each.unit == "TFLOP/s"] == [0.45][: num_found - 3]
    assert found[-2].ratio == 1.0


@pytest.mark.parametrize(("num_waits", "is_met"), [(0, True), (1, False)])
def test_the_goal_is_no_wait_at_all(gpu, num_waits, is_met):
    *_, waits = gpu_step.measure_on_gpu("stage 1", Step(gpu, num_waits), Step(gpu, num_waits))
    assert (waits.medians, waits.is_met) == ((num_waits, 0), is_met)
