"""With tiles, HAWAII's features, logits and tokens are LLaVA-NeXT's, and both are compared."""

import pytest

from hawaii.benchmarks.model import tiles


@pytest.mark.parametrize("feature_layer", [-2, -1])
def test_each_batch_is_compared_in_each_part(run_command, feature_layer):
    found = run_command(tiles, size="tiny", rounds=1, feature_layer=feature_layer)
    parts = [f"{batch}, {part}" for batch in tiles.BATCHES for part in ("features", "prefill", "generate")]
    assert [each["subject"] for each in found] == parts
