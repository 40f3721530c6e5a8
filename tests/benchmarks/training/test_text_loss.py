"""Scores at label positions only give the same loss and gradients as at every position, and need less memory."""

import re

from hawaii.benchmarks.training import text_loss


def test_scores_at_label_positions_need_less_memory(run_command):
    seconds, memory = run_command(
        text_loss, vocabulary=2000, batch_size=4, image_size=16, length=256, answer=4, rounds=1
    )
    assert (seconds["first"], seconds["second"]) == ("scores at labels", "scores at every position")
    labels, every = (float(value) for value in re.findall(r"[\d.]+", memory["costs"])[:2])
    # The scores of every position and their gradient; 4 x 252 positions have no label.
    assert every - labels > 2 * 1008 * 2000 * 4 / 2**20
