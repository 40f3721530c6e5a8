"""A step of HAWAII and one of LLaVA have equal text losses; both are compared by part in both stages."""

import pytest
import torch

from hawaii.benchmarks.training import training_step


def test_each_part_of_each_stage_is_compared(run_command):
    found = run_command(training_step, size="tiny", batch_size=2, rounds=1)
    parts = (
        "a step with teachers",
        "a step without the teachers' passes, as with a cache",
        "forward pass",
        "backward pass",
    )
    *steps, passes = found
    assert [each["subject"] for each in steps] == [f"stage {stage}: {part}" for stage in (1, 2) for part in parts]
    assert (passes["first"], passes["second"]) == ("one batch", "one after the other")


@pytest.mark.parametrize("stage", training_step.STAGES)
def test_the_stage_decides_what_learns(stage):
    device = torch.device("cpu")
    teachers = training_step.make_teachers("tiny", device)
    modules = training_step.make_modules("tiny", teachers, device)
    for name, module in modules.items():
        training_step.train_parts(module, training_step.STAGES[stage])
        learning = {key for key, weight in module.named_parameters() if weight.requires_grad}
        assert any("multi_modal_projector" in key for key in learning)
        assert any("adapter" in key for key in learning) == (name == "hawaii")
        for part in ("language_model.layers.0", "feed_forward.fc1.weight", "embeddings.patch"):
            assert any(part in key for key, _ in module.named_parameters())
            assert any(part in key for key in learning) == (stage == "stage 2")
