"""The loss with scores only at labels equals the loss with scores at every position."""

import pytest
import torch
import torch.nn.functional as F

from hawaii.tests.tiny.operations import CountOperations
from hawaii.tests.tiny.training import (
    RAGGED,
    count,
    gradients,
    make_dataset,
    make_module,
    save_data,
    without_labels,
)
from hawaii.training.data.conversation_dataset import Collator
from hawaii.training.objectives.encoder_passes import routed_pass
from hawaii.training.objectives.text_loss import text_loss


VOCABULARY = 32_000


def loss_of(module, batch):
    features, _ = routed_pass(module.student, batch["pixel_values"])
    return text_loss(module.student, features, batch)


def loss_of_every_position(module, batch):
    """The loss that transformers' causal language models compute from `labels`."""
    names = ("input_ids", "pixel_values", "attention_mask")
    logits = module.student(**{name: batch[name] for name in names}).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


@pytest.mark.parametrize("text", [{}, {"tie_word_embeddings": True}])
def test_the_loss_and_its_gradients_are_those_of_every_position(batch, text):
    module = make_module(text=text)
    loss, expected = loss_of(module, batch), loss_of_every_position(module, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    found, expected = gradients(module, loss), gradients(module, expected)
    assert found["student.model.multi_modal_projector.linear_1.weight"].any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_packed_samples_have_the_loss_and_gradients_of_padded_ones(tmp_path, processor):
    dataset = make_dataset(save_data(tmp_path, RAGGED), processor)
    samples = [dataset[index] for index in range(len(dataset))]
    padded, packed = (count(Collator(processor, 32, packing)(samples)) for packing in (False, True))
    num_tokens = sum(len(sample["input_ids"]) for sample in samples)
    assert packed["input_ids"].shape == (1, num_tokens) and padded["input_ids"].numel() > num_tokens
    assert "attention_mask" not in packed and len(packed["label_index"]) == len(padded["label_index"])
    module = make_module()
    loss, expected = loss_of(module, packed), loss_of(module, padded)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(module, loss), gradients(module, expected), rtol=1e-3, atol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_reaches_every_weight(batch):
    module = make_module()
    loss = loss_of(module, without_labels(batch))
    assert loss == 0
    found = gradients(module, loss)
    # Processes wait for each other's gradients, so none may be missing.
    reached = {name for name, gradient in found.items() if gradient is not None}
    assert {"student.lm_head.weight", "student.model.multi_modal_projector.linear_1.weight"} <= reached
    assert not any(gradient.any() for gradient in found.values() if gradient is not None)


def saved_bytes(module, batch, loss_function):
    """The bytes that the backward pass keeps in tensors as wide as the vocabulary, each once."""
    kept = {}

    def pack(tensor):
        if tensor.shape[-1:] == (VOCABULARY,) and tensor.data_ptr() != module.student.lm_head.weight.data_ptr():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_function(module, batch)
    return sum(kept.values())


def test_memory_for_scores_grows_with_the_labels_only(batch):
    module = make_module(text={"vocab_size": VOCABULARY})
    num_labels, num_positions = len(batch["label_index"]), (batch["labels"].shape[1] - 1) * len(batch["labels"])
    assert num_labels < num_positions / 5
    assert saved_bytes(module, batch, loss_of) == num_labels * VOCABULARY * 4
    assert saved_bytes(module, batch, loss_of_every_position) == num_positions * VOCABULARY * 4


def test_the_loss_waits_for_the_device_no_more_often_than_the_language_model_does(batch):
    module = make_module()
    embeddings = module.student.get_input_embeddings()(batch["input_ids"])
    with CountOperations() as alone:  # transformers checks for padding
        module.student.model.language_model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"])
    features, _ = routed_pass(module.student, batch["pixel_values"])
    with CountOperations() as loss:
        text_loss(module.student, features.detach(), batch).backward()
    assert loss.num_waits == alone.num_waits
    with CountOperations() as indices:
        count(batch)  # the collator computes this on the host
    assert indices.num_waits == 1
