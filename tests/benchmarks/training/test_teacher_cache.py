"""The features that are read are close to those that are computed, and int8 takes half of bfloat16's bytes."""

from hawaii.benchmarks.training import teacher_cache


def test_both_storages_are_compared(run_command):
    *read, sizes = run_command(teacher_cache, size="tiny", batch_size=8, rounds=1)
    assert [each["first"] for each in read[::2]] == ["bfloat16", "int8"]
    assert [each["second"] for each in read[1::2]] == ["read in bfloat16", "read in int8"]
    assert all(0.999 < float(each["ratio"]) <= 1 for each in read[::2])
    assert 0.49 < float(sizes["ratio"]) < 0.52
