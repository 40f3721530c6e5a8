"""The encoder's features are CLIP's, those of one batch are those of single passes, and both are compared."""

from hawaii.benchmarks.model import vision_tower


def test_both_comparisons_are_printed(run_command):
    found = run_command(vision_tower, size="tiny", batch_size=2, rounds=1)
    assert [(each["subject"], each["first"], each["second"]) for each in found] == [
        ("the encoder's features", "HAWAII", "all 3 layers of CLIP"),
        ("the routed pass and 3 with one teacher's adapters each", "one batch", "one after the other"),
    ]
