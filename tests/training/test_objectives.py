"""The objective is equation 7: what it sums, which pass teaches which parameters, and what must change nothing."""

import math

import pytest
import torch

from hawaii.tests.tiny import make_model, make_processor
from hawaii.tests.tiny_training import TEACHER_GRIDS, count, make_arguments, make_batch, make_module, make_record
from hawaii.training import objectives
from hawaii.training.losses import load_balance_loss, token_importance
from hawaii.training.objectives import HawaiiObjective


RECORDS = [make_record(0), make_record(1, image=False), make_record(2, questions=2)]
NAMES = list(TEACHER_GRIDS)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture
def batch(tmp_path, processor):
    """An image with one question, text alone, an image with two questions."""
    return make_batch(tmp_path / "batch", RECORDS, processor)


@pytest.fixture
def run(teachers):
    """Runs a module on a batch as the trainer does, the teachers first; gives the loss and the terms."""

    def run(module, batch):
        features = [teacher(batch["teacher_images"]) for teacher in teachers]
        return module(features, batch)

    return run


@pytest.fixture
def recorded(monkeypatch):
    """What the objective gave each loss, and what it got: lists of (arguments, result) by the loss's name."""
    calls = {}

    def record(name, function):
        def spy(*args):
            result = function(*args)
            calls.setdefault(name, []).append((args, result))
            return result

        monkeypatch.setattr(objectives, name, spy)

    for name in ("token_importance", "fine_grained_loss", "coarse_grained_loss", "load_balance_loss"):
        record(name, getattr(objectives, name))
    return calls


def select(batch, samples):
    """The part of a batch that a collator would have made of these samples, padded as before."""
    names = ("input_ids", "attention_mask", "labels", "prompt_ids", "prompt_mask")
    part = {name: batch[name][samples] for name in names}
    images = [index for index, sample in enumerate(batch["image_index"].tolist()) if sample in samples]
    for name in ("pixel_values", "teacher_images"):
        part[name] = batch[name][images]
    part["image_index"] = torch.tensor([samples.index(batch["image_index"][image]) for image in images])
    return count(part)


def without_labels(batch):
    """The batch with nothing to say, so that only distillation and balance have a gradient."""
    return {**batch, "labels": torch.full_like(batch["labels"], -100), "num_label_tokens": torch.tensor(1)}


def gradients(module, loss):
    """Of every trainable parameter, by name; zeros are zeros and what is missing is `None`."""
    module.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}


def reached(gradients, part):
    """Names of the parameters, among those whose name holds `part`, that have a gradient other than zero."""
    return {name for name, gradient in gradients.items() if part in name and gradient is not None and gradient.any()}


def naive_mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def naive_cross_entropy(logits, labels):
    """Eq. 1: mean over the label tokens of the batch, each told by the position before it."""
    terms = []
    for row, targets in zip(logits.double().tolist(), labels.tolist()):
        for scores, target in zip(row, targets[1:]):
            if target != -100:
                top = max(scores)
                terms.append(math.log(sum(math.exp(score - top) for score in scores)) + top - scores[target])
    return naive_mean(terms)


def naive_error(student, teacher):
    """Mean over channels of the squared difference, by token."""
    rows = zip(student.double().tolist(), teacher.double().tolist())
    return [naive_mean((s - t) ** 2 for s, t in zip(*row)) for row in rows]


def naive_importance(teacher, prompt):
    """Eq. 5 of one teacher and one image."""
    teacher, prompt = teacher.double().tolist(), prompt.double().tolist()
    scores = [0.0] * len(teacher)
    for query in teacher + prompt:
        logits = [sum(q * k for q, k in zip(query, key)) / math.sqrt(len(query)) for key in teacher]
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        for token, weight in enumerate(weights):
            scores[token] += weight / sum(weights) / (len(teacher) + len(prompt))
    return scores


def test_the_loss_is_equation_7_and_each_term_its_own(batch, run, recorded):
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
                    naive_importance(projected[image, teacher], prompts[image]),
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
    whole = expected["text"] + 0.5 * (expected["fine"] + expected["coarse"]) + 0.05 * expected["balance"]
    assert loss.item() == pytest.approx(whole, rel=2e-5)


def test_the_weights_are_the_arguments(batch, run):
    module = make_module(lambda_1=2.0, lambda_2=3.0)
    loss, terms = run(module, batch)
    expected = terms["text"] + 2 * (terms["fine"] + terms["coarse"]) + 3 * terms["balance"]
    torch.testing.assert_close(loss, expected)


def test_each_pass_has_the_features_of_its_own_adapter_without_the_class_token(batch, run, recorded):
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


def test_each_teacher_is_projected_alone_and_the_summary_sees_all(batch, teachers, recorded):
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


def test_a_teachers_cell_becomes_the_token_at_its_place(batch, teachers, recorded):
    module = make_module()
    features = [teacher(batch["teacher_images"]) for teacher in teachers]
    changed = [grid.clone() for grid in features]
    changed[0][:, 2, 1] += torch.randn(16)  # one of 4 x 4
    changed[1][:, 5, 3] += torch.randn(16)  # one of 8 x 8, in the block of row 2 and column 1
    with torch.no_grad():
        for inputs in (features, changed):
            module(inputs, batch)
    before, after = (arguments[1] for arguments, _ in recorded["fine_grained_loss"])
    assert (before != after).any(dim=-1).nonzero()[:, 2].unique().tolist() == [2 * 4 + 1]
    before, after = (arguments[1] for arguments, _ in recorded["coarse_grained_loss"])
    assert (before != after).any(dim=-1).nonzero()[:, 1].unique().tolist() == [2 * 4 + 1]


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate", "learned"])
def test_standardized_targets_begin_with_mean_zero_and_variance_one(batch, teachers, recorded, grid_matching):
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


def test_targets_of_experts_that_see_the_same_everywhere_stay_finite(batch, teachers):
    module = make_module()
    features = [torch.full_like(teacher(batch["teacher_images"]), 0.3) for teacher in teachers]
    module.objective.standardize(features)
    loss, _ = module(features, batch)
    assert loss.isfinite() and loss < 100


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate", "learned"])
def test_every_grid_matching_trains(batch, run, grid_matching):
    module = make_module(grid_matching=grid_matching)
    loss, _ = run(module, batch)
    of_projections = {name: g for name, g in gradients(module, loss).items() if name.startswith("objective.")}
    assert reached(of_projections, "") == set(of_projections)
    assert any("token_projections" in name for name in of_projections) == (grid_matching == "learned")


def test_sequential_passes_are_the_batched_ones(batch, run):
    module = make_module()
    batched, batched_terms = run(module, batch)
    expected = gradients(module, batched)
    module.objective.args = make_arguments(sequential_passes=True)
    sequential, sequential_terms = run(module, batch)
    torch.testing.assert_close(sequential, batched)
    for name in batched_terms:
        torch.testing.assert_close(sequential_terms[name], batched_terms[name])
    actual = gradients(module, sequential)
    assert reached(actual, "lora") and reached(actual, "routing")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("sequential_passes", "num_calls"), [(False, 1), (True, 3)])
def test_the_encoder_runs_once_or_once_for_each_pass(batch, run, sequential_passes, num_calls):
    module = make_module(sequential_passes=sequential_passes)
    calls = []
    module.student.model.vision_tower.register_forward_pre_hook(lambda *args: calls.append(1))
    run(module, batch)
    assert len(calls) == num_calls


def pad(batch, processor, text=0, prompt=0):
    """The batch with more padding behind its text and its instructions."""

    def extend(name, value, number):
        return torch.nn.functional.pad(batch[name], (0, number), value=value)

    pad_token = processor.tokenizer.pad_token_id
    return {
        **batch,
        "input_ids": extend("input_ids", pad_token, text),
        "attention_mask": extend("attention_mask", 0, text),
        "labels": extend("labels", -100, text),
        "prompt_ids": extend("prompt_ids", pad_token, prompt),
        "prompt_mask": extend("prompt_mask", False, prompt),
    }


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
def test_neither_scores_nor_losses_of_an_image_depend_on_the_batch(batch, run, recorded, sample):
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
        together, by_itself, among_others = (result for _, result in recorded[name])
        torch.testing.assert_close(by_itself[0], together[image], msg=name)
        torch.testing.assert_close(among_others[image], together[image], msg=name)


def test_text_alone_takes_no_part_in_distillation(batch, run):
    module = make_module()
    with torch.no_grad():
        _, terms = run(module, batch)
        _, expected = run(module, select(batch, [0, 2]))
        changed = {**batch, "prompt_ids": batch["prompt_ids"].clone()}
        changed["prompt_ids"][1] = changed["prompt_ids"][1].flip(0)
        _, other = run(module, changed)
    for name in set(terms) - {"text"}:
        torch.testing.assert_close(terms[name], expected[name], msg=name)
        assert torch.equal(terms[name], other[name]), name


@pytest.mark.parametrize("sequential_passes", [False, True])
def test_a_batch_of_text_alone_runs_the_encoder_and_gives_every_parameter_a_gradient(
    tmp_path, processor, run, sequential_passes
):
    batch = make_batch(tmp_path, [make_record(1, image=False), make_record(2, questions=2, image=False)], processor)
    module = make_module(sequential_passes=sequential_passes)
    calls = []
    module.student.model.vision_tower.register_forward_pre_hook(lambda *args: calls.append(1))
    loss, terms = run(module, batch)
    assert len(calls) == (3 if sequential_passes else 1)
    assert {name for name, value in terms.items() if value != 0} == {"text"}
    assert torch.equal(loss, terms["text"]) and loss.isfinite()
    found = gradients(module, loss)
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert all(name.startswith(("student.model.language_model", "student.lm_head")) for name in reached(found, ""))
    assert reached(found, "lm_head")


@pytest.mark.parametrize("sequential_passes", [False, True])
def test_without_an_instruction_every_parameter_still_has_a_gradient(tmp_path, run, sequential_passes):
    batch = make_batch(tmp_path, RECORDS, make_processor(chat_template="plain"))
    assert batch["prompt_ids"].shape == (3, 0)
    module = make_module(sequential_passes=sequential_passes)
    loss, _ = run(module, batch)
    assert [name for name, gradient in gradients(module, loss).items() if gradient is None] == []


def test_an_image_that_only_fills_teaches_nothing(batch, run, teachers):
    module = make_module()
    batch = select(batch, [0, 2])
    filled = {**batch, "image_index": torch.tensor([0, 1, -1])}
    for name in ("pixel_values", "teacher_images"):
        filled[name] = torch.cat([batch[name], batch[name][:1].flip(-1)])
    _, terms = run(module, batch)
    _, filled_terms = run(module, filled)
    for name in ("text", "fine", "coarse", "balance"):
        torch.testing.assert_close(filled_terms[name], terms[name], msg=name)


def test_a_samples_images_are_scored_by_its_own_instruction(batch, run, recorded):
    batch = select(batch, [0, 2])
    two = {**batch, "image_index": torch.tensor([0, 1, 1]), "num_images": torch.tensor(3)}
    for name in ("pixel_values", "teacher_images"):
        two[name] = torch.cat([batch[name], batch[name][1:]])
    with torch.no_grad():
        run(make_module(), two)
    (keys, prompt, mask), scores = recorded["token_importance"][0]
    assert torch.equal(scores[1], scores[2]) and not torch.equal(scores[0], scores[1])
    assert torch.equal(mask, batch["prompt_mask"][[0, 1, 1]])


def test_the_terms_are_shares_of_the_whole_step(batch, run):
    module = make_module()
    _, terms = run(module, batch)
    step = {**batch, "num_images": 4 * batch["num_images"], "num_label_tokens": 3 * batch["num_label_tokens"]}
    loss, shares = run(module, step)
    torch.testing.assert_close(shares["text"], terms["text"] / 3)
    for name in set(terms) - {"text"}:
        torch.testing.assert_close(shares[name], terms[name] / 4)


def keep_only(monkeypatch, teacher=None):
    """Leaves of the distillation the fine-grained loss of one teacher, or nothing."""
    fine = objectives.fine_grained_loss
    keep = torch.tensor([float(index == teacher) for index in range(2)])
    monkeypatch.setattr(objectives, "fine_grained_loss", lambda *args: fine(*args) * keep)
    monkeypatch.setattr(objectives, "coarse_grained_loss", lambda student, _: torch.zeros(len(student)))


@pytest.mark.parametrize("sequential_passes", [False, True])
@pytest.mark.parametrize("teacher", [0, 1])
def test_a_forced_pass_teaches_its_own_adapter_and_no_router(batch, run, monkeypatch, teacher, sequential_passes):
    module = make_module(lambda_2=0.0, sequential_passes=sequential_passes)
    keep_only(monkeypatch, teacher)
    loss, _ = run(module, without_labels(batch))
    found = gradients(module, loss)
    assert reached(found, "routing") == set()
    for name in ("lora_A", "lora_B"):
        of_layers = [gradient for full_name, gradient in found.items() if name in full_name]
        assert len(of_layers) == 2
        for gradient in of_layers:
            assert gradient.flatten(1).any(dim=1).tolist() == [index == teacher for index in range(5)]
    assert reached(found, "fine_projections") == reached(found, f"fine_projections.{teacher}") != set()
    assert reached(found, "coarse_projection") == set()


def test_coarse_distillation_teaches_adapters_of_both_banks_and_the_routers(batch, run, monkeypatch):
    module = make_module(lambda_2=0.0)
    monkeypatch.setattr(objectives, "fine_grained_loss", lambda student, *args: torch.zeros(student.shape[:2]))
    found = gradients(module, run(module, without_labels(batch))[0])
    assert (
        reached(found, "teacher_router") and reached(found, "general_router") and reached(found, "coarse_projection")
    )
    touched = torch.stack([gradient.flatten(1).any(dim=1) for name, gradient in found.items() if "lora_B" in name])
    assert touched[:, :2].any() and touched[:, 2:].any()


@pytest.mark.parametrize("router_gradient", ["straight_through", "switch", "none"])
def test_whether_the_answer_teaches_the_routers(batch, run, router_gradient):
    module = make_module(vision={"router_gradient": router_gradient}, lambda_1=0.0, lambda_2=0.0)
    found = gradients(module, run(module, batch)[0])
    routers = {name for name in found if "routing" in name}
    assert reached(found, "routing") == (set() if router_gradient == "none" else routers)
    assert reached(found, "lora")


def test_the_balance_loss_teaches_the_routers_even_where_the_task_does_not(batch, run, monkeypatch):
    module = make_module(vision={"router_gradient": "none"}, lambda_1=0.0)
    found = gradients(module, run(module, without_labels(batch))[0])
    assert reached(found, "routing") == {name for name in found if "routing" in name}


def test_forced_passes_take_no_part_in_the_balance(batch, run, recorded):
    module = make_module()
    with torch.no_grad():
        run(module, batch)
        routed = module.student.model.vision_tower(batch["pixel_values"], output_routing=True).router_probabilities
    given = torch.cat([arguments[0] for arguments, _ in recorded["load_balance_loss"]], dim=-1)
    torch.testing.assert_close(given, routed)


def test_what_the_score_teaches(batch, run, monkeypatch):
    # With equal weights and data, what `none` gives is the gradient through the errors alone.
    found = {}
    for score_gradient in ("none", "text", "full"):
        torch.manual_seed(0)
        module = make_module(score_gradient=score_gradient)
        with monkeypatch.context() as patch:
            patch.setattr(objectives, "coarse_grained_loss", lambda student, _: torch.zeros(len(student)))
            found[score_gradient] = gradients(module, run(module, without_labels(batch))[0])
    assert not any("text_projection" in name for name in found["none"])
    text = {name for name in found["text"] if "text_projection" in name}
    assert reached(found["text"], "text_projection") == reached(found["full"], "text_projection") == text != set()
    fine = {name for name in found["text"] if "fine_projections" in name}
    for name in fine:
        torch.testing.assert_close(found["text"][name], found["none"][name])
        assert (found["full"][name] - found["none"][name]).abs().max() > 1e-5 * found["none"][name].abs().max(), name
    for name in found["none"].keys() - fine:
        torch.testing.assert_close(found["full"][name], found["none"][name])


def test_the_instruction_does_not_teach_the_language_models_embeddings(batch, run):
    module = make_module()
    found = gradients(module, run(module, without_labels(batch))[0])
    assert reached(found, "language_model") == set()
    assert reached(found, "text_projection")


def test_without_token_scoring_the_fine_grained_loss_is_the_mean_squared_error(batch, run, recorded):
    module = make_module(token_scoring=False)
    _, terms = run(module, batch)
    (student, projected, _), _ = recorded["fine_grained_loss"][0]
    torch.testing.assert_close(terms["fine"], torch.nn.functional.mse_loss(student, projected).detach())
    assert "token_importance" not in recorded


@pytest.mark.parametrize(
    ("arguments", "learns"),
    [
        ({}, True),
        ({"score_gradient": "full"}, True),
        ({"score_gradient": "none"}, False),
        ({"token_scoring": False}, False),
    ],
)
def test_the_instructions_projection_learns_only_where_it_is_taught(arguments, learns):
    parameters = make_module(**arguments).objective.text_projection.parameters()
    assert {parameter.requires_grad for parameter in parameters} == {learns}


def test_scores_are_those_of_the_student_language_models_own_embeddings(batch, run, recorded):
    module = make_module()
    with torch.no_grad():
        run(module, batch)
        (keys, prompt, mask), scores = recorded["token_importance"][0]
        for image, sample in enumerate([0, 2]):
            words = module.student.model.language_model.embed_tokens(batch["prompt_ids"][sample][mask[image]])
            own = module.objective.text_projection(words).unsqueeze(0)
            expected = token_importance(keys[[image]], own, torch.ones(own.shape[:2], dtype=torch.bool))
            torch.testing.assert_close(scores[[image]], expected)


def test_variances_tell_a_collapsed_target(batch, run):
    module = make_module()
    _, terms = run(module, batch)
    assert terms["variance/student"] > 0 and terms["variance/convnext"] > 0
    for parameter in module.objective.fine_projections[1].parameters():
        parameter.data.zero_()
    assert run(module, batch)[1]["variance/convnext"] == 0


@pytest.mark.parametrize("enable", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_gradient_checkpointing_changes_no_gradient(batch, run, enable):
    module = make_module().train()
    expected = gradients(module, run(module, batch)[0])
    getattr(module, enable)()
    calls = []
    module.student.model.vision_tower.layers[0].feed_forward.register_forward_pre_hook(lambda *args: calls.append(1))
    found = gradients(module, run(module, batch)[0])
    assert len(calls) == 2
    torch.testing.assert_close(found, expected)


def test_half_precision_is_near(batch, run):
    module = make_module()
    with torch.no_grad():
        _, terms = run(module, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, halved = run(module, batch)
    assert loss.dtype == torch.float32
    for name in ("text", "fine", "coarse"):
        torch.testing.assert_close(halved[name], terms[name], rtol=0.1, atol=0.05, msg=name)


def test_weights_in_half_precision_train(batch, run):
    module = make_module()
    module.student.to(torch.bfloat16)
    found = gradients(module, run(module, batch)[0])
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert reached(found, "lora_B") and reached(found, "fine_projections")


def test_another_number_of_teachers_than_adapters_is_an_error():
    student = make_model(vision={"num_teacher_adapters": 3})
    problem = r"has 3 teacher-specific adapters but the recipe names 2 teachers \(vit, convnext\)"
    with pytest.raises(ValueError, match=problem):
        HawaiiObjective(make_arguments(), student, TEACHER_GRIDS)


def test_no_teachers_is_an_error():
    student = make_model(vision={"num_teacher_adapters": 0})
    with pytest.raises(ValueError, match="names no teachers"):
        HawaiiObjective(make_arguments(), student, {})
