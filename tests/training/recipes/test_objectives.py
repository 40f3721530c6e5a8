"""Properties of every objective: number of forward passes, gradients, terms, and independence of the batching."""

import pytest
import torch

from hawaii.modeling_hawaii.vision_hawaii import HawaiiVisionModel
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import (
    RAGGED,
    gradients,
    make_batch,
    make_module,
    make_options,
    make_record,
    reached,
    select,
)
from hawaii.training.recipes.arguments import ModelArguments
from hawaii.training.recipes.objectives import OBJECTIVES
from hawaii.training.students.student import vision_fields


# Every objective, and HAWAII with sequential passes.
SETTINGS = [*({"objective": name} for name in OBJECTIVES), {"sequential_passes": True}]


def count_calls(module):
    calls = []
    module.register_forward_pre_hook(lambda *args: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("settings", "num_calls"),
    [
        ({"objective": "hawaii"}, 1),
        ({"objective": "hawaii", "sequential_passes": True}, 3),
        ({"objective": "hawaii", "distillation": ["fine"]}, 1),
        ({"objective": "hawaii", "distillation": ["fine"], "sequential_passes": True}, 3),
        ({"objective": "hawaii", "distillation": ["coarse"], "sequential_passes": True}, 1),
        ({"objective": "llava", "sequential_passes": True}, 1),
        ({"objective": "move_kd", "sequential_passes": True}, 1),
        ({"objective": "radio", "sequential_passes": True}, 1),
    ],
    ids=str,
)
def test_the_number_of_forward_passes_of_the_encoder_and_the_language_model(batch, run, settings, num_calls):
    module = make_module(**settings)
    towers, texts = count_calls(module.student.model.vision_tower), count_calls(module.student.model.language_model)
    run(module, batch)
    assert (len(towers), len(texts)) == (num_calls, 1)


def test_coarse_distillation_runs_the_encoder_once_per_image(batch, run):
    sizes = []
    for distillation in (["coarse"], ["fine", "coarse"]):
        module = make_module(distillation=distillation)
        module.student.model.vision_tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        run(module, batch)
    assert sizes == [2, 6]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_teacher_runs_once(batch, run, teachers_of, objective):
    calls = [count_calls(teacher.model) for teacher in teachers_of[OBJECTIVES[objective]]]
    run(make_module(objective=objective), batch)
    assert [len(each) for each in calls] == [1] * len(calls)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_trainable_parameter_has_a_gradient(batch, run, settings):
    module = make_module(**settings)
    loss, terms = run(module, batch)
    found = gradients(module, loss)
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert not any(value.requires_grad for value in terms.values())
    for part in ("vision_tower.layers", "multi_modal_projector", "language_model", "lm_head"):
        assert reached(found, part)
    assert bool(reached(found, "objective.")) == (settings.get("objective") != "llava")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_batch_without_images_gives_every_parameter_a_gradient_and_trains_the_text_only(
    tmp_path, processor, run, settings
):
    batch = make_batch(tmp_path, [make_record(1, image=False), make_record(2, questions=2, image=False)], processor)
    module = make_module(**settings)
    towers = count_calls(module.student.model.vision_tower)
    loss, terms = run(module, batch)
    assert towers  # otherwise the other processes would wait for gradients
    assert {name for name, value in terms.items() if value != 0} == {"text"}
    assert torch.equal(loss.detach(), terms["text"]) and loss.isfinite()
    found = gradients(module, loss)
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert all(name.startswith(("student.model.language_model", "student.lm_head")) for name in reached(found, ""))
    assert reached(found, "lm_head")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_samples_without_images_change_the_text_loss_only(batch, run, settings):
    module = make_module(**settings)
    with torch.no_grad():
        _, terms = run(module, batch)
        _, expected = run(module, select(batch, [0, 2]))
    for name in set(terms) - {"text"}:
        torch.testing.assert_close(terms[name], expected[name], msg=name)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_terms_are_shares_of_the_whole_step(batch, run, settings):
    module = make_module(**settings)
    _, terms = run(module, batch)
    step = {**batch, "num_squares": 4 * batch["num_squares"], "num_label_tokens": 3 * batch["num_label_tokens"]}
    _, shares = run(module, step)
    torch.testing.assert_close(shares.pop("text"), terms.pop("text") / 3)
    for name, share in shares.items():
        torch.testing.assert_close(share, terms[name] / 4, msg=name)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_half_precision_trains(batch, run, settings):
    module = make_module(**settings)
    _, expected = run(module, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = run(module, batch)
    assert loss.dtype == torch.float32
    for name in {"text", "distillation", "fine", "coarse"} & set(terms):
        torch.testing.assert_close(terms[name], expected[name], rtol=0.1, atol=0.05, msg=name)
    module.student.to(torch.bfloat16)
    found = gradients(module, run(module, batch)[0])
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert reached(found, "vision_tower.layers")
    assert bool(reached(found, "adapters.up")) == (settings.get("objective") not in ("llava", "radio"))
    assert bool(reached(found, "objective.")) == (settings.get("objective") != "llava")


ALL_TERMS = {"text", "fine", "fine/vit", "fine/convnext", "coarse", "balance"}
ALL_TERMS |= {f"variance/{name}" for name in ("student", "vit", "convnext", "coarse")}
FINE_ALONE = {"fine", "fine/vit", "fine/convnext", "variance/vit", "variance/convnext"}


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, set()),
        ({"distillation": ["fine"]}, {"coarse", "variance/coarse"}),
        ({"distillation": ["coarse"]}, FINE_ALONE),
        ({"distillation": ["coarse"], "vision": {"num_teacher_adapters": 0}}, FINE_ALONE),
        ({"vision": {"num_general_adapters": 0}}, set()),
        (
            {"distillation": ["coarse"], "vision": {"num_teacher_adapters": 0, "num_general_adapters": 0}},
            FINE_ALONE | {"balance"},
        ),
    ],
    ids=["all", "fine", "coarse", "coarse, general adapters", "teacher-specific adapters", "coarse, no adapters"],
)
def test_missing_terms_are_not_logged_and_the_others_are_equal(batch, run, settings, missing):
    vision = settings.pop("vision", None)
    module = make_module(vision=vision, **settings)
    loss, terms = run(module, batch)
    assert set(terms) == ALL_TERMS - missing
    values = {name: terms.get(name, 0) for name in ("text", "fine", "coarse", "balance")}
    total = values["text"] + 0.5 * (values["fine"] + values["coarse"]) + 0.05 * values["balance"]
    torch.testing.assert_close(loss.detach(), total)
    if vision is None:
        complete = make_module()
        for source, target in ((module.student, complete.student), (module.objective, complete.objective)):
            target.load_state_dict(source.state_dict(), strict=False)
        torch.testing.assert_close(
            terms, {name: value for name, value in run(complete, batch)[1].items() if name in terms}
        )


@pytest.mark.parametrize(
    ("distillation", "expected"),
    [("fine", {"fine_projections", "text_projection"}), ("coarse", {"coarse_projection"})],
)
def test_only_the_losses_in_distillation_have_projections(distillation, expected):
    module = make_module(distillation=[distillation])
    assert {name.partition(".")[0] for name, _ in module.objective.named_parameters()} == expected


@pytest.mark.parametrize(("bank", "other"), [("teacher", "general"), ("general", "teacher")])
def test_with_one_bank_of_adapters_the_balance_loss_is_that_of_this_bank(batch, run, recorded, bank, other):
    distillation = ["coarse"] if bank == "general" else ["fine", "coarse"]
    module = make_module(vision={f"num_{other}_adapters": 0}, distillation=distillation)
    _, terms = run(module, batch)
    ((probabilities, _), value), *others = recorded["load_balance_loss"]
    assert not others and probabilities.shape[-1] == (2 if bank == "teacher" else 3)
    torch.testing.assert_close(terms["balance"], value.detach())


def test_fine_distillation_without_teacher_specific_adapters_is_an_error():
    for distillation in (["fine"], ["fine", "coarse"]):
        with pytest.raises(
            ValueError, match=r"has no teacher-specific adapters, .*: set distillation: \[coarse\], or"
        ):
            make_module(vision={"num_teacher_adapters": 0}, distillation=distillation)


def test_an_encoder_trains_without_a_language_model(batch, teachers):
    module = make_module()
    student: HawaiiVisionModel = module.student.model.vision_tower
    objective = OBJECTIVES["hawaii"](make_options(), student, {teacher.name: teacher.grid for teacher in teachers})
    assert objective.text_projection is None
    # The scores equal those of a complete model whose batch has no instruction.
    module.objective.load_state_dict(objective.state_dict(), strict=False)
    images = {name: batch[name] for name in ("pixel_values", "image_index", "num_squares")}
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    loss, terms = objective(student, features, images)
    no_prompt = {name: batch[name][:, :0] for name in ("prompt_ids", "prompt_mask")}
    _, expected = module(features, {**batch, **no_prompt})
    assert set(terms) == ALL_TERMS - {"text"}
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    torch.testing.assert_close(loss.detach(), 0.5 * (terms["fine"] + terms["coarse"]) + 0.05 * terms["balance"])
    student.zero_grad()
    loss.backward()
    assert all(parameter.grad is not None for parameter in [*student.parameters(), *objective.parameters()])


NO_ADAPTERS = {"num_teacher_adapters": 0, "num_general_adapters": 0}


@pytest.mark.parametrize(
    ("objective", "given", "expected"),
    [
        ("hawaii", {}, {"num_teacher_adapters": 2, "num_general_adapters": 3}),
        ("hawaii", {"num_teacher_adapters": 0}, {"num_teacher_adapters": 0, "num_general_adapters": 3}),
        ("hawaii", {"num_general_adapters": 0}, {"num_teacher_adapters": 2, "num_general_adapters": 0}),
        ("llava", {"num_general_adapters": 5}, NO_ADAPTERS),
        ("radio", {"num_general_adapters": 5}, NO_ADAPTERS),
        ("move_kd", {}, {"num_teacher_adapters": 0, "lora_rank": 32, "router_hidden_size": None}),
        ("move_kd", {"lora_rank": 8, "router_hidden_size": 16}, {"lora_rank": 8, "router_hidden_size": 16}),
    ],
)
def test_the_vision_config_of_a_recipe_wins_if_the_objective_allows_adapters(objective, given, expected):
    fields = vision_fields(ModelArguments(vision_config={"hidden_size": 8, **given}), 2, objective)
    assert fields["hidden_size"] == 8
    assert {name: fields[name] for name in expected} == expected


def test_the_weight_of_the_balance_loss_has_a_default_per_objective():
    defaults = {name: make_options(name).lambda_2 for name in ("hawaii", "move_kd")}
    assert defaults == {"hawaii": 0.05, "move_kd": 0.01}
    assert not any(hasattr(make_options(name), "lambda_2") for name in ("llava", "radio"))
    assert make_options("move_kd", lambda_2=0.3).lambda_2 == 0.3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_trainable_parameter_has_a_gradient_without_an_instruction(tmp_path, run, settings):
    batch = make_batch(tmp_path, RAGGED, make_processor(chat_template="plain"))
    assert batch["prompt_ids"].shape == (3, 0)
    module = make_module(**settings)
    assert None not in gradients(module, run(module, batch)[0]).values()
