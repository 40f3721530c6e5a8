"""HAWAII's objective equals equation 7, and each term equals its equation."""

import math

import pytest
import torch

from hawaii.tests.naive import naive_importance, naive_mean
from hawaii.tests.tiny.models import make_model
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_module, make_options, select
from hawaii.training.objectives.hawaii import HawaiiObjective
from hawaii.training.objectives.hawaii_losses import load_balance_loss, token_importance


def naive_cross_entropy(logits, labels):
    """Eq. 1: mean over the label tokens of the batch, each predicted by the position before it."""
    terms = []
    for row, targets in zip(logits.double().tolist(), labels.tolist()):
        for scores, target in zip(row, targets[1:]):
            if target != -100:
                top = max(scores)
                terms.append(math.log(sum(math.exp(score - top) for score in scores)) + top - scores[target])
    return naive_mean(terms)


def naive_error(student, teacher):
    """Squared difference of each token, averaged over channels."""
    rows = zip(student.double().tolist(), teacher.double().tolist())
    return [naive_mean((s - t) ** 2 for s, t in zip(*row)) for row in rows]


def test_the_loss_is_equation_7_and_each_term_is_its_equation(batch, run, recorded):
    module = make_module()
    student = module.student
    with torch.no_grad():
        loss, terms = run(module, batch)
        (_, projected, _), _ = recorded["fine_grained_loss"][0]
        (_, summary), _ = recorded["coarse_grained_loss"][0]
        logits = student(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).logits
        routed = student.model.vision_tower(batch["pixel_values"], output_routing=True)
        forced = [student.model.vision_tower(batch["pixel_values"], adapters=torch.full((2,), i)) for i in range(2)]
        embeddings = student.get_input_embeddings()(batch["prompt_ids"])
        prompts = [
            module.objective.text_projection(embeddings[sample][batch["prompt_mask"][sample]])
            for sample in batch["image_index"].tolist()
        ]
    fine = [
        naive_mean(
            sum(
                score * error
                for score, error in zip(
                    naive_importance(projected[image, teacher].tolist(), prompts[image].tolist()),
                    naive_error(forced[teacher].last_hidden_state[image, 1:], projected[image, teacher]),
                )
            )
            for image in range(2)
        )
        for teacher in range(2)
    ]
    coarse = naive_mean(
        error for image in range(2) for error in naive_error(routed.last_hidden_state[image, 1:], summary[image])
    )
    banks = routed.router_probabilities.split([2, 3], dim=-1)
    balance = sum(load_balance_loss(bank, torch.tensor([True, True])) for bank in banks)
    expected = {
        "text": naive_cross_entropy(logits, batch["labels"]),
        "fine": naive_mean(fine),
        "coarse": coarse,
        "balance": balance.item(),
        "fine/vit": fine[0],
        "fine/convnext": fine[1],
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=2e-5), name
    total = expected["text"] + 0.5 * (expected["fine"] + expected["coarse"]) + 0.05 * expected["balance"]
    assert loss.item() == pytest.approx(total, rel=2e-5)


def test_the_scale_of_a_teachers_features_does_not_matter(batch, teachers):
    module = make_module()
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    with torch.no_grad():
        _, terms = module(features, batch)
        _, scaled = module([features[0], 10 * features[1]], batch)
    for name, value in terms.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_the_losses_are_weighted_by_the_options(batch, run):
    module = make_module(lambda_1=2.0, lambda_2=3.0)
    loss, terms = run(module, batch)
    expected = terms["text"] + 2 * (terms["fine"] + terms["coarse"]) + 3 * terms["balance"]
    torch.testing.assert_close(loss, expected)


def test_each_forced_pass_uses_its_adapter_and_drops_the_class_token(batch, run, recorded):
    module = make_module()
    with torch.no_grad():
        run(module, batch)
        tower = module.student.model.vision_tower
        forced = recorded["fine_grained_loss"][0][0][0]
        for teacher in range(2):
            expected = tower(batch["pixel_values"], adapters=torch.full((2,), teacher)).last_hidden_state[:, 1:]
            torch.testing.assert_close(forced[:, teacher], expected)
        routed = recorded["coarse_grained_loss"][0][0][0]
        torch.testing.assert_close(routed, tower(batch["pixel_values"]).last_hidden_state[:, 1:])


def test_each_teacher_is_projected_separately_and_the_summary_depends_on_all(batch, teachers, recorded):
    module = make_module()
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    changed = [features[0], features[1] + torch.randn(features[1].shape)]
    with torch.no_grad():
        for inputs in (features, changed):
            module(inputs, batch)
    before, after = (arguments[1] for arguments, _ in recorded["fine_grained_loss"])
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().amax(dim=-1).min() > 0
    before, after = (arguments[1] for arguments, _ in recorded["coarse_grained_loss"])
    assert (before - after).abs().amax(dim=-1).min() > 0


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate", "learned"])
def test_a_cell_of_a_teacher_maps_to_the_token_at_the_same_position(batch, teachers, recorded, grid_matching):
    module = make_module(grid_matching=grid_matching)
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    changed = [grid.clone() for grid in features]
    changed[0][:, 2, 1] += torch.randn(16)  # one of 4 x 4
    changed[1][:, 5, 3] += torch.randn(16)  # one of 8 x 8, in the block of row 2 and column 1
    with torch.no_grad():
        for inputs in (features, changed):
            module(inputs, batch)
    for loss in ("fine_grained_loss", "coarse_grained_loss"):
        before, after = (arguments[1] for arguments, _ in recorded[loss])
        change = (before - after).abs().sum(dim=-1)  # the tokens are last
        assert change.argmax(dim=-1).unique().tolist() == [2 * 4 + 1]
        # The other grid matchings smooth, so neighbouring tokens change, too.
        assert grid_matching != "unshuffle" or change.nonzero()[:, -1].unique().tolist() == [2 * 4 + 1]


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate", "learned"])
def test_standardized_targets_have_mean_zero_and_variance_one(batch, teachers, recorded, grid_matching):
    module = make_module(grid_matching=grid_matching)
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    module.objective.standardize(features)
    with torch.no_grad():
        module(features, batch)
    projected = recorded["fine_grained_loss"][0][0][1].transpose(1, 2)  # images, tokens, teachers, channels
    summary = recorded["coarse_grained_loss"][0][0][1]
    for targets in (projected, summary):
        variance, mean = torch.var_mean(targets, dim=(0, 1), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0)


def test_the_loss_of_constant_teacher_features_is_finite(batch, teachers):
    module = make_module()
    features = [torch.full_like(teacher(batch["teacher_images"]), 0.3) for teacher in teachers]
    module.objective.standardize(features)
    loss, _ = module(features, batch)
    assert loss.isfinite() and loss < 100


def test_the_images_of_a_sample_are_scored_with_its_instruction(batch, run, recorded):
    batch = select(batch, [0, 2])
    two = {**batch, "image_index": torch.tensor([0, 1, 1]), "num_squares": torch.tensor(3)}
    for name in ("pixel_values", "teacher_images"):
        two[name] = torch.cat([batch[name], batch[name][1:]])
    with torch.no_grad():
        run(make_module(), two)
    (keys, prompt, mask), scores = recorded["token_importance"][0]
    assert torch.equal(scores[1], scores[2]) and not torch.equal(scores[0], scores[1])
    assert torch.equal(mask, batch["prompt_mask"][[0, 1, 1]])


def test_the_balance_loss_ignores_forced_passes(batch, run, recorded):
    module = make_module()
    with torch.no_grad():
        run(module, batch)
        routed = module.student.model.vision_tower(batch["pixel_values"], output_routing=True).router_probabilities
    given = torch.cat([arguments[0] for arguments, _ in recorded["load_balance_loss"]], dim=-1)
    torch.testing.assert_close(given, routed)


def test_without_token_scoring_the_fine_grained_loss_is_the_mean_squared_error(batch, run, recorded):
    module = make_module(token_scoring=False)
    _, terms = run(module, batch)
    (student, projected, _), _ = recorded["fine_grained_loss"][0]
    torch.testing.assert_close(terms["fine"], torch.nn.functional.mse_loss(student, projected).detach())
    assert "token_importance" not in recorded


def test_the_instruction_is_embedded_by_the_students_language_model(batch, run, recorded):
    module = make_module()
    with torch.no_grad():
        run(module, batch)
        (keys, prompt, mask), scores = recorded["token_importance"][0]
        for image, sample in enumerate([0, 2]):
            words = module.student.model.language_model.embed_tokens(batch["prompt_ids"][sample][mask[image]])
            instruction = module.objective.text_projection(words).unsqueeze(0)
            expected = token_importance(
                keys[[image]], instruction, torch.ones(instruction.shape[:2], dtype=torch.bool)
            )
            torch.testing.assert_close(scores[[image]], expected)


def test_the_variance_of_a_collapsed_target_is_zero(batch, run):
    module = make_module()
    _, terms = run(module, batch)
    assert terms["variance/student"] > 0 and terms["variance/convnext"] > 0
    for parameter in module.objective.fine_projections["1_convnext"].parameters():
        parameter.data.zero_()
    assert run(module, batch)[1]["variance/convnext"] == 0


def test_different_numbers_of_teachers_and_adapters_are_an_error():
    student = make_model(vision={"num_teacher_adapters": 3})
    problem = r"has 3 teacher-specific adapters but the recipe names 2 teachers \(vit, convnext\)"
    with pytest.raises(ValueError, match=problem):
        HawaiiObjective(make_options(), student, TEACHER_GRIDS)


def test_a_recipe_without_teachers_is_an_error():
    student = make_model(vision={"num_teacher_adapters": 0})
    with pytest.raises(ValueError, match="names no teachers"):
        HawaiiObjective(make_options(), student, {})
