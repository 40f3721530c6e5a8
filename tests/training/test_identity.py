"""Another number of processes resumes exactly if every step has the same samples, and is refused otherwise."""

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import DistributedType
from torch.utils.data import BatchSampler, SequentialSampler

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import make_arguments
from hawaii.training.identity import check_processes, check_run, samples_per_epoch
from hawaii.training.sources.cache import cache_path


def steps_of(samples, batch_size, num_processes, accumulation, drop_last):
    """The samples of each optimizer step of an epoch, from accelerate's and transformers' own code."""
    sampler = BatchSampler(SequentialSampler(range(samples)), batch_size, drop_last)
    shards = [BatchSamplerShard(sampler, num_processes, index) for index in range(num_processes)]
    dealt = [list(shard) for shard in (shards if num_processes > 1 else [sampler])]
    return [
        Counter(index for batches in dealt for batch in batches[start : start + accumulation] for index in batch)
        for start in range(0, len(dealt[0]), accumulation)
    ]


def identity(samples, num_processes, accumulation, **changes):
    return {
        "options": {},
        "samples": samples,
        "mixed_precision": "no",
        "world_size": num_processes,
        "gradient_accumulation_steps": accumulation,
        **changes,
    }


@pytest.fixture
def check(monkeypatch):
    """Returns why a run may not continue with another identity, or `None`."""
    monkeypatch.setattr(
        "hawaii.training.identity.AcceleratorState",
        lambda: SimpleNamespace(distributed_type=DistributedType.MULTI_CPU),
    )

    def check(there, here, **kwargs):
        kwargs = {"per_device_train_batch_size": 3, "num_train_epochs": 2, **kwargs}
        try:
            check_processes(Path("checkpoint-1"), there, here, make_arguments(**kwargs))
        except UserError as error:
            return str(error)
        return None

    return check


LAYOUTS = [(1, 4), (2, 2), (4, 1), (1, 2), (2, 1), (8, 1), (3, 1)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("samples", [24, 25, 29, 31, 35, 36, 100])
def test_a_resume_is_allowed_exactly_where_every_step_has_the_same_samples(check, samples, drop_last):
    allowed = 0
    for old in LAYOUTS:
        for new in LAYOUTS:
            if old[0] == new[0]:
                continue
            there, here = (steps_of(samples, 3, *layout, drop_last) for layout in (old, new))
            reason = check(identity(samples, *old), identity(samples, *new), dataloader_drop_last=drop_last)
            assert (reason is None) == (there == here), (old, new, reason)
            allowed += reason is None
            assert sum(map(Counter.total, here)) == samples_per_epoch(samples, 3, new[0], drop_last)
    assert allowed or samples in (25, 29, 31, 35, 100)


def test_a_run_that_ends_before_the_end_of_an_epoch_does_not_see_how_it_is_filled(check):
    there, here = identity(100, 4, 1), identity(100, 2, 2)
    assert "an epoch of 100 samples would be filled up to 102 instead of 108" in check(there, here)
    assert check(there, here, max_steps=8) is None
    assert "would be filled up" in check(there, here, max_steps=9)


@pytest.mark.parametrize(
    ("there", "here", "kwargs", "reason"),
    [
        ((4, 1), (2, 1), {}, r"2 batches of 3 samples instead of 4 \(set gradient_accumulation_steps to 2\)"),
        ((2, 1), (4, 1), {}, "4 batches of 3 samples instead of 2"),
        ((4, 1), (3, 1), {}, r"3 batches of 3 samples instead of 4 \(no setting avoids it\)"),
        (
            (4, 1),
            (2, 2),
            {"train_sampling_strategy": "group_by_length"},
            "group_by_length depends on the number of processes",
        ),
    ],
)
def test_the_reason_of_a_refusal_is_named(check, there, here, kwargs, reason):
    error = check(identity(24, *there), identity(24, *here), **kwargs)
    start = (
        f"checkpoint-1 was written by {there[0]} processes and this run has {here[0]}: it cannot be resumed exactly"
    )
    assert error.startswith(start) and error.endswith(f"Start {there[0]} processes.")
    assert re.search(reason, error), error


def test_a_stream_and_a_sharded_run_need_the_same_number_of_processes(check, monkeypatch):
    there, here = identity(24, 4, 1), identity(24, 2, 2)
    assert check(there, here) is None
    assert "the order of a stream depends on the number of processes" in check(
        {**there, "samples": None}, {**here, "samples": None}
    )
    for name in ("max_batch_tokens", "max_batch_tiles"):
        options = {"options": {name: 9}}
        assert f"the batches of {name} depend on the number of processes" in check(there | options, here | options)
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP)
    monkeypatch.setattr("hawaii.training.identity.AcceleratorState", lambda: sharded)
    assert "the state of a sharded run needs the same number of processes" in check(there, here)
    assert check(there, there) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"samples": 23},
            "other usable records: 24 there and 23 here. If `hawaii check` has run since then, it leaves out the bad "
            f"ones: remove {cache_path('*.checked.json')}",
        ),
        ({"mixed_precision": "bf16"}, "other mixed precision: no there and bf16 here"),
    ],
)
def test_the_same_processes_need_the_same_records_and_precision(check, change, problem):
    there = identity(24, 4, 1)
    assert check(there, there) is None
    assert f"checkpoint-1 was trained with {problem}. Undo the change" in check(there, {**there, **change})


def test_the_same_processes_need_the_same_accumulation():
    there = {**identity(24, 4, 1), "data": [], "data_paths": [], "start": None}
    check_run(Path("run/model"), there, {**there, "world_size": 2, "gradient_accumulation_steps": 2})
    with pytest.raises(UserError, match="another recipe: gradient_accumulation_steps is 1 there and 2 here"):
        check_run(Path("run/model"), there, {**there, "gradient_accumulation_steps": 2})


def test_data_that_was_removed_is_not_data_that_has_changed(tmp_path):
    def described(*data):
        return {**identity(24, 1, 1), "data": [*data], "data_paths": ["gone.json", "user/set"], "start": None}

    check_run(Path("run/model"), described("0a", "user/set"), described("gone.json", "user/set"))
    moved = {**described("moved.json", "user/set"), "data_paths": ["moved.json", "user/set"]}
    with pytest.raises(UserError, match="run/model was trained on other data: moved.json has changed since"):
        check_run(Path("run/model"), described("0a", "user/set"), moved)
    other = {**described("0a", "user/other"), "data_paths": ["gone.json", "user/other"]}
    with pytest.raises(UserError, match="other data: user/other has changed"):
        check_run(Path("run/model"), described("0a", "user/set"), other)
