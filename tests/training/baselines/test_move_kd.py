"""MoVE-KD's objective equals its formula, and its anchor is the first teacher with a class token."""

import pytest
import torch
from torch.nn.functional import gelu
from transformers import CLIPVisionConfig, CLIPVisionModel

from hawaii.tests.naive import naive_mean, naive_softmax
from hawaii.tests.tiny.models import VISION, draw_weights, make_model
from hawaii.tests.tiny.teachers import make_teacher
from hawaii.tests.tiny.training import TEACHER_GRIDS, gradients, make_module, make_options, reached, without_labels
from hawaii.training.baselines.class_token_teacher import ClassTokenFeatures, ClassTokenGrid, ClassTokenTeacher
from hawaii.training.baselines.move_kd import EncoderAdapter, MoveKdObjective
from hawaii.training.objectives.encoder_passes import routed_pass
from hawaii.training.teachers.grids import resize_grid


REPAIRS = [{}, {"single_softmax": True}, {"detached_teacher_weights": True}]
WIDTH, SIDE = VISION["hidden_size"], 4


@pytest.fixture
def make():
    """Makes a module with the objective of MoVE-KD."""

    def make(**kwargs):
        return make_module(objective="move_kd", **kwargs)

    return make


@pytest.fixture
def features(batch, teachers_of):
    return [teacher(batch["teacher_images"]) for teacher in teachers_of[MoveKdObjective]]


def naive_distillation(student, projected, class_token, attention, anchor, is_repaired):
    """Returns sum_t W_t L_t of one image, and the losses and the weights of its teachers."""
    total = sum(attention)
    weights = [value / total for value in attention] if is_repaired else naive_softmax(attention)
    losses, agreement = [], []
    for teacher in projected:
        errors = [naive_mean((s - z) ** 2 for s, z in zip(*tokens)) for tokens in zip(student, teacher)]
        losses.append(naive_mean(errors) + sum(weight * error for weight, error in zip(weights, errors)))
        agreement.append(naive_mean(sum(c * z for c, z in zip(class_token, token)) for token in teacher))
    shares = [0.2 * share for share in naive_softmax([a for index, a in enumerate(agreement) if index != anchor])]
    shares.insert(anchor, 0.8)
    return sum(share * loss for share, loss in zip(shares, losses)), losses, shares


def naive_adapter(adapter, grid):
    """Linear over channels, GELU, Linear over tokens."""
    hidden = gelu(grid.flatten(1, 2) @ adapter.channel_layer.weight.T + adapter.channel_layer.bias)  # (I, h * w, D)
    mixed = torch.einsum("nc,icd->ind", adapter.token_layer.weight, hidden)
    return mixed + adapter.token_layer.bias[None, :, None]


@pytest.mark.parametrize("repair", REPAIRS, ids=str)
def test_the_loss_and_its_terms_are_those_of_the_formula(batch, features, make, repair):
    module = make(**repair)
    # Two teachers besides the anchor, so that they share a weight.
    names = ("vit", "convnext", "sam")
    grids = dict(zip(names, (ClassTokenGrid(4, 4, 16), (8, 8, 16), (2, 2, 8))))
    module.objective = MoveKdObjective(module.objective.options, module.student, grids)
    features = [*features, torch.randn(2, 2, 2, 8)]
    adapters = module.objective.adapters.values()
    with torch.no_grad():
        loss, terms = module(features, batch)
        routed, probabilities = routed_pass(module.student, batch["pixel_values"])
        logits = module.student(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).logits
        anchor = features[0]
        inputs = [anchor.grid, *features[1:]]
        projected = [naive_adapter(adapter, grid) for adapter, grid in zip(adapters, inputs, strict=True)]
        class_token = gelu(module.objective.adapters["0_vit"].channel_layer(anchor.class_token))
    images = [
        naive_distillation(
            routed[image].double().tolist(),
            [tokens[image].double().tolist() for tokens in projected],
            class_token[image].double().tolist(),
            anchor.class_attention[image].double().tolist(),
            anchor=0,
            is_repaired="single_softmax" in repair,
        )
        for image in range(2)
    ]
    chosen = torch.nn.functional.one_hot(probabilities.argmax(dim=-1), 3).double()
    balance = [
        sum((probabilities[:, i, :, e].double().mean() * chosen[:, i, :, e].mean()).item() for e in range(3))
        for i in range(2)
    ]
    shifted = batch["labels"][:, 1:].flatten()
    expected = {
        "text": torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), shifted).item(),
        "distillation": naive_mean(image[0] for image in images),
        "balance": naive_mean(balance),
    }
    for index, name in enumerate(names):
        expected[f"distillation/{name}"] = naive_mean(image[1][index] for image in images)
        expected[f"weight/{name}"] = naive_mean(image[2][index] for image in images)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=2e-5), name
    total = expected["text"] + 0.5 * expected["distillation"] + 0.01 * expected["balance"]
    assert loss.item() == pytest.approx(total, rel=2e-5)
    variances = {"variance/student", *(f"variance/{name}" for name in names)}
    assert set(terms) == set(expected) | variances


def test_the_losses_are_weighted_by_the_options(batch, run, make):
    loss, terms = run(make(lambda_1=2.0, lambda_2=3.0), batch)
    torch.testing.assert_close(loss.detach(), terms["text"] + 2 * terms["distillation"] + 3 * terms["balance"])


@pytest.fixture
def clip():
    """A tiny CLIP with the student's grid and width."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
    )
    return ClassTokenTeacher(make_teacher(draw_weights(CLIPVisionModel(config)), 16, name="clip"))


def test_an_anchor_with_the_students_grid_and_width_has_no_adapter(batch, clip, recorded_losses):
    student = make_model(vision=MoveKdObjective.vision_fields(2))
    grids = {"convnext": TEACHER_GRIDS["convnext"], "clip": clip.grid}
    objective = MoveKdObjective(make_options("move_kd"), student, grids)
    assert list(objective.adapters) == ["0_convnext"]
    features = [torch.randn(2, 8, 8, 16), clip(batch["teacher_images"])]
    objective(student, features, batch)
    (_, projected, _), _ = recorded_losses["move_kd_loss"][0]
    assert torch.equal(projected[:, 1], features[1].grid.flatten(1, 2))
    (class_token, _, anchor), _ = recorded_losses["weigh_teachers"][0]
    assert anchor == 1 and torch.equal(class_token, features[1].class_token)
    (attention,), _ = recorded_losses["softmax_of_attention"][0]
    assert torch.equal(attention, features[1].class_attention)


@pytest.fixture
def recorded_losses(monkeypatch):
    """Arguments and result of each call of a loss function by the objective."""
    from hawaii.training.baselines import move_kd as move_kd_objective

    calls = {}
    for name in ("move_kd_loss", "weigh_teachers", "softmax_of_attention", "renormalized_attention"):
        function = getattr(move_kd_objective, name)

        def spy(*args, name=name, function=function):
            calls.setdefault(name, []).append((args, function(*args)))
            return calls[name][-1][1]

        monkeypatch.setattr(move_kd_objective, name, spy)
    return calls


def test_the_loss_of_a_student_equal_to_its_only_teacher_is_zero(batch, clip):
    student = make_model(vision=MoveKdObjective.vision_fields(1))
    objective = MoveKdObjective(make_options("move_kd"), student, {"clip": clip.grid})
    assert not list(objective.parameters()) and not objective.state_dict()
    features = clip(batch["teacher_images"])
    routed, _ = routed_pass(student, batch["pixel_values"])
    same = ClassTokenFeatures(routed.detach().unflatten(1, (SIDE, SIDE)), *features[1:])
    _, terms = objective(student, [same], batch)
    assert terms["distillation/clip"] == 0 and terms["weight/clip"] == pytest.approx(0.8)


def test_the_attention_of_an_anchor_with_another_grid_is_resampled_with_the_same_sum(batch, recorded_losses):
    student = make_model(vision=MoveKdObjective.vision_fields(1))
    objective = MoveKdObjective(make_options("move_kd"), student, {"vit": ClassTokenGrid(6, 6, WIDTH)})
    assert list(objective.adapters) == ["0_vit"]
    attention = torch.randn(2, 37).softmax(dim=-1)[:, 1:]
    objective(student, [ClassTokenFeatures(torch.randn(2, 6, 6, WIDTH), torch.randn(2, WIDTH), attention)], batch)
    (resampled,), _ = recorded_losses["softmax_of_attention"][0]
    assert resampled.shape == (2, 16)
    torch.testing.assert_close(resampled.sum(dim=1), attention.sum(dim=1))
    means = resize_grid(attention.view(2, 6, 6, 1), 4).flatten(1)
    torch.testing.assert_close(resampled / resampled.sum(dim=1, keepdim=True), means / means.sum(dim=1, keepdim=True))


def test_the_first_teacher_with_a_class_token_is_the_anchor(clip):
    class Other:
        """A teacher without a class token."""

        model = torch.nn.Linear(1, 1)
        name, image_size, grid = "other", 16, (8, 8, 16)

        def class_token_attention(self):
            return None

    second = make_teacher(clip.model, 16)
    other, first, last = MoveKdObjective.prepare_teachers([Other(), clip.teacher, second])
    assert isinstance(first, ClassTokenTeacher) and first.name == "clip"
    assert isinstance(other, Other) and last is second


def test_a_recipe_without_an_anchor_is_an_error():
    student = make_model(vision=MoveKdObjective.vision_fields(2))
    problem = r"None of the teachers \(vit, convnext\) is a vision transformer with a class token .*: add one, such as"
    with pytest.raises(ValueError, match=problem):
        MoveKdObjective(make_options("move_kd"), student, TEACHER_GRIDS)


def test_a_recipe_without_teachers_is_an_error():
    with pytest.raises(ValueError, match="names no teachers, and the objective move_kd needs some"):
        MoveKdObjective(make_options("move_kd"), make_model(), {})


def test_the_student_has_the_adapters_and_routers_of_move_kd():
    vision = make_model(vision=MoveKdObjective.vision_fields(3)).config.vision_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters) == (0, 3)
    assert (vision.adapter_placement, vision.lora_rank, vision.lora_alpha, vision.lora_bias) == ("linear", 32, 1, True)
    assert (vision.router_hidden_size, vision.router_gradient) == (None, "none")


def test_only_the_balance_loss_trains_the_routers(batch, run, make):
    for lambda_2, learns in ((None, True), (0.0, False)):
        module = make(lambda_2=lambda_2)
        found = gradients(module, run(module, batch)[0])
        routers = {name for name in found if "routing" in name}
        assert routers and reached(found, "routing") == (routers if learns else set())


@pytest.mark.parametrize("is_detached", [False, True])
def test_the_teacher_weights_train_the_adapters_unless_they_are_detached(batch, run, monkeypatch, make, is_detached):
    from hawaii.training.baselines import move_kd as move_kd_objective

    # The losses are constants, so the only gradient is through the weights, which two teachers share.
    module = make(detached_teacher_weights=is_detached, lambda_2=0.0)
    student = module.student
    grids = {"vit": ClassTokenGrid(4, 4, 16), "convnext": (8, 8, 16), "sam": (2, 2, 8)}
    objective = MoveKdObjective(module.objective.options, student, grids)
    constants = torch.arange(6.0).view(2, 3)
    monkeypatch.setattr(move_kd_objective, "move_kd_loss", lambda *args: constants + 0 * args[1].sum())
    anchor = ClassTokenFeatures(torch.randn(2, 4, 4, 16), torch.randn(2, 16), torch.rand(2, 16))
    features = [anchor, torch.randn(2, 8, 8, 16), torch.randn(2, 2, 2, 8)]
    loss, _ = objective(student, features, without_labels(batch))
    found = gradients(objective, loss)
    # The class token passes through the channel layer of the anchor's adapter.
    expected = set() if is_detached else {name for name in found if "0_vit.token_layer" not in name}
    assert reached(found, "") == expected


def test_adapters_are_trainable_if_projections_are(make):
    for trainable, learns in ((None, True), (["projector"], False)):
        parameters = make(trainable=trainable).objective.parameters()
        assert {parameter.requires_grad for parameter in parameters} == {learns}


def test_standardized_targets_have_mean_zero_and_variance_one(run, batch, make, features, recorded_losses):
    module = make()
    module.objective.standardize(features)
    with torch.no_grad():
        run(module, batch)
    (_, projected, _), _ = recorded_losses["move_kd_loss"][0]
    for teacher in range(2):
        variance, mean = torch.var_mean(projected[:, teacher], correction=0)
        assert mean.abs() < 1e-4 and variance.item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("side", [2, 4, 6, 8])
def test_a_standardized_adapter_keeps_the_position_of_every_cell(side):
    adapter = EncoderAdapter(side, side, 8, SIDE * SIDE, WIDTH)
    grid = torch.randn(3, side, side, 8)
    adapter.standardize(grid)
    hidden = gelu(adapter.channel_layer(grid))
    resampled = resize_grid(hidden, SIDE).flatten(1, 2)
    std, mean = torch.std_mean(resampled, correction=0)
    torch.testing.assert_close(adapter(grid), (resampled - mean) / std, rtol=1e-4, atol=1e-5)


def test_the_loss_of_constant_teacher_features_is_finite(batch, make, features, run):
    module = make()
    constant = [
        ClassTokenFeatures(*(torch.full_like(part, 0.3) for part in features[0])),
        torch.zeros_like(features[1]),
    ]
    module.objective.standardize(constant)
    loss, _ = module(constant, batch)
    assert loss.isfinite() and loss < 100
