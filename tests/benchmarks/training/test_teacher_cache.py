"""The features that are read are close to those that are computed, and int8 takes half of bfloat16's bytes."""

import re

from hawaii.benchmarks.training import teacher_cache


def test_both_storages_are_compared(run_command):
    *read, sizes = run_command(teacher_cache, size="tiny", batch_size=8, rounds=1)
    assert [each["second"] for each in read] == ["read in bfloat16", "read in int8"]
    for each in read:
        (cosine,) = re.findall(r"least cosine of a cell (\d\.\d+)", each["subject"])
        assert 0.999 < float(cosine) <= 1
    assert 0.49 < float(sizes["ratio"]) < 0.52
