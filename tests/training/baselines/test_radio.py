"""The objective of RADIO trains a head per teacher that predicts the teacher's features."""

import pytest
import torch
from torch.nn.functional import layer_norm

from hawaii.tests.tiny.models import make_model
from hawaii.tests.tiny.training import TEACHER_GRIDS, gradients, make_module, make_options, reached, without_labels
from hawaii.training.baselines.radio import RadioObjective
from hawaii.training.baselines.radio_losses import radio_loss
from hawaii.training.objectives.encoder_passes import routed_pass
from hawaii.training.teachers.grids import match_grid


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate"])
def test_the_loss_is_the_mean_over_teachers_and_every_term_is_logged(batch, run, teachers, grid_matching):
    module = make_module(objective="radio", grid_matching=grid_matching)
    with torch.no_grad():
        loss, terms = run(module, batch)
        routed, _ = routed_pass(module.student, batch["pixel_values"])
        logits = module.student(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).logits
        losses = []
        for teacher, head in zip(teachers, module.objective.heads.values()):
            matched = match_grid(teacher(batch["teacher_images"]), 4, grid_matching)
            losses.append(radio_loss(head(routed), layer_norm(matched, matched.shape[-1:])).mean())
    text = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(terms["text"], text)
    torch.testing.assert_close(terms["distillation"], (losses[0] + losses[1]) / 2)
    torch.testing.assert_close(loss, text + 0.5 * (losses[0] + losses[1]) / 2)
    for name, value in zip(TEACHER_GRIDS, losses):
        torch.testing.assert_close(terms[f"distillation/{name}"], value)
    names = {"text", "distillation", "distillation/vit", "distillation/convnext", "variance/student"}
    assert set(terms) == names


def test_the_student_has_no_adapters():
    vision = make_module(objective="radio").student.config.vision_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters) == (0, 0)


def test_a_head_maps_the_students_width_to_the_teachers_channels():
    heads = make_module(objective="radio").objective.heads
    assert [(head[0].in_features, head[-1].out_features) for head in heads.values()] == [(32, 16), (32, 4 * 16)]


@pytest.mark.parametrize("trainable", [None, ["projector"]])
def test_heads_are_always_trained_and_pass_gradients_to_the_encoder(batch, run, trainable):
    module = make_module(objective="radio", trainable=trainable)
    found = gradients(module, run(module, without_labels(batch))[0])
    assert reached(found, "objective.") == {f"objective.{name}" for name, _ in module.objective.named_parameters()}
    assert reached(found, "vision_tower.layers")


@pytest.mark.parametrize("trainable", [None, ["projector"]])
def test_layers_over_tokens_transform_the_targets(batch, run, trainable):
    module = make_module(objective="radio", grid_matching="learned", trainable=trainable)
    loss, terms = run(module, without_labels(batch))
    assert bool(reached(gradients(module, loss), "token_projections")) == (trainable is None)
    assert {"variance/student", "variance/vit", "variance/convnext"} <= terms.keys()  # they could collapse


def test_only_a_teachers_head_depends_on_its_features(batch, teachers):
    module = make_module(objective="radio")
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    before = gradients(module, module(features, without_labels(batch))[0])
    changed = [features[0], torch.randn(features[1].shape)]
    after = gradients(module, module(changed, without_labels(batch))[0])
    different = {name for name in before if "heads" in name and not torch.equal(before[name], after[name])}
    assert different == {name for name in before if "heads.1_convnext" in name}


def test_a_recipe_without_teachers_is_an_error():
    with pytest.raises(ValueError, match="names no teachers, and the objective radio needs some"):
        RadioObjective(make_options("radio"), make_model(), {})
