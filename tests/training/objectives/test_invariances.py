"""The objective does not depend on how passes and samples are batched and padded, or on fill-in images."""

import pytest
import torch

from hawaii.tests.tiny.training import (
    CHECKPOINTING,
    count,
    gradients,
    make_module,
    make_options,
    reached,
    select,
)


def test_sequential_passes_equal_the_batched_ones(batch, run):
    module = make_module()
    batched, batched_terms = run(module, batch)
    expected = gradients(module, batched)
    module.objective.options = make_options(sequential_passes=True)
    sequential, sequential_terms = run(module, batch)
    torch.testing.assert_close(sequential, batched)
    for name in batched_terms:
        torch.testing.assert_close(sequential_terms[name], batched_terms[name])
    actual = gradients(module, sequential)
    assert reached(actual, "adapters.") and reached(actual, "routing")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def pad(batch, processor, text=0, prompt=0):
    """Returns the batch with more padding after its texts and its instructions."""

    def extend(name, value, number):
        return torch.nn.functional.pad(batch[name], (0, number), value=value)

    pad_token = processor.tokenizer.pad_token_id
    padded = {
        **batch,
        "input_ids": extend("input_ids", pad_token, text),
        "attention_mask": extend("attention_mask", 0, text),
        "labels": extend("labels", -100, text),
        "prompt_ids": extend("prompt_ids", pad_token, prompt),
        "prompt_mask": extend("prompt_mask", False, prompt),
    }
    return count(padded)


@pytest.mark.parametrize("padding", [{"text": 7}, {"prompt": 5}, {"text": 3, "prompt": 1}])
def test_padding_changes_nothing(batch, run, recorded, processor, padding):
    module = make_module()
    loss, terms = run(module, batch)
    expected = gradients(module, loss)
    padded_loss, padded_terms = run(module, pad(batch, processor, **padding))
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_terms, terms)
    torch.testing.assert_close(gradients(module, padded_loss), expected, rtol=1e-4, atol=1e-6)
    scores = [result for _, result in recorded["token_importance"]]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("sample", [0, 2])
def test_scores_and_losses_of_an_image_do_not_depend_on_the_batch(batch, run, recorded, sample):
    module = make_module()
    alone = select(batch, [sample])
    with torch.no_grad():
        run(module, batch)
        run(module, alone)
        other = {**batch, "pixel_values": batch["pixel_values"].clone(), "prompt_ids": batch["prompt_ids"].clone()}
        others = [index for index in range(3) if index != sample]
        other["prompt_ids"][others] = batch["prompt_ids"][others].flip(0)
        other["pixel_values"][1 - sample // 2] = 0
        run(module, other)
    image = sample // 2  # images of samples 0 and 2
    for name in ("token_importance", "fine_grained_loss", "coarse_grained_loss"):
        together, single, with_others = (result for _, result in recorded[name])
        torch.testing.assert_close(single[0], together[image], msg=name)
        torch.testing.assert_close(with_others[image], together[image], msg=name)


def test_the_instruction_of_a_sample_without_images_has_no_effect(batch, run):
    module = make_module()
    with torch.no_grad():
        _, terms = run(module, batch)
        changed = {**batch, "prompt_ids": batch["prompt_ids"].clone()}
        changed["prompt_ids"][1] = changed["prompt_ids"][1].flip(0)
        _, other = run(module, changed)
    assert all(torch.equal(terms[name], other[name]) for name in terms)


def test_an_image_that_only_fills_the_batch_has_no_effect(batch, run):
    module = make_module()
    batch = select(batch, [0, 2])
    filled = {**batch, "image_index": torch.tensor([0, 1, -1])}
    for name in ("pixel_values", "teacher_images"):
        filled[name] = torch.cat([batch[name], batch[name][:1].flip(-1)])
    _, terms = run(module, batch)
    _, filled_terms = run(module, filled)
    for name in ("text", "fine", "coarse", "balance"):
        torch.testing.assert_close(filled_terms[name], terms[name], msg=name)


@pytest.mark.parametrize("enable", [f"{name}_enable" for name in CHECKPOINTING])
def test_gradient_checkpointing_does_not_change_gradients(batch, run, enable):
    module = make_module().train()
    expected = gradients(module, run(module, batch)[0])
    getattr(module, enable)()
    calls = []
    module.student.model.vision_tower.layers[0].feed_forward.register_forward_pre_hook(lambda *args: calls.append(1))
    found = gradients(module, run(module, batch)[0])
    assert len(calls) == 2
    torch.testing.assert_close(found, expected)
