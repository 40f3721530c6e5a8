"""The three ways to compute the mixture have equal outputs and gradients, and are compared."""

from hawaii.benchmarks.model import mixture_lora


def test_each_way_is_compared_forward_and_backward(run_command):
    found = run_command(mixture_lora, size="tiny", batch_size=2, rounds=2)
    parts = ["the mixture of adapters, forward", "the mixture of adapters, forward and backward"]
    assert [(each["first"], each["subject"]) for each in found] == [
        (way, part) for way in ("torch.where over all adapters", "each adapter on its tokens") for part in parts
    ]
    assert {each["second"] for each in found} == {"HAWAII"}
