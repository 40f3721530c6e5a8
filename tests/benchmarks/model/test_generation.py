"""A converted LLaVA gives its logits and tokens, and both are compared."""

import pytest

from hawaii.benchmarks.model import generation


@pytest.mark.parametrize("feature_layer", [-2, -1])
def test_prefill_decoding_and_generation_are_compared(run_command, feature_layer):
    found = run_command(generation, size="tiny", new_tokens=3, rounds=2, feature_layer=feature_layer)
    assert [each["subject"] for each in found] == [
        "prompt with an image, to the first token",
        "3 further tokens",
        "generate with 3 tokens",
    ]
    assert {(each["first"], each["second"]) for each in found} == {("HAWAII", "LLaVA")}
