"""Bytes, steps and hours of a dry run are those of a training run at small size."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
import yaml
from safetensors import safe_open

from hawaii import __main__ as command
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import make_arguments, make_module, write_recipe
from hawaii.training import train as train_module
from hawaii.training.counting import recipes
from hawaii.training.counting.costs import StageCost
from hawaii.training.counting.gpus import find_peak
from hawaii.training.counting.machine import Machine
from hawaii.training.counting.memory import Weights, checkpoint_bytes, place_on_devices
from hawaii.training.counting.recipes import describe_recipe, outline_stage, outline_student
from hawaii.training.counting.samples import mean_padded_length
from hawaii.training.counting.step import BatchShape
from hawaii.training.objectives.hawaii import HawaiiObjective
from hawaii.training.recipes.objectives import StudentWithObjective
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.train import train


def rows_of(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in lines}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    return str(write_recipe(tmp_path_factory.mktemp("world"), teacher_folders, max_steps=2))


@pytest.fixture(scope="module")
def trained(recipe):
    """The trainer of each stage, after training, and the folder of the run."""
    trainers, patch = [], pytest.MonkeyPatch()
    original = train_module.HawaiiTrainer

    def keep(*args, **kwargs):
        trainers.append(original(*args, **kwargs))
        return trainers[-1]

    patch.setattr(train_module, "HawaiiTrainer", keep)
    train(recipe)
    patch.undo()
    return SimpleNamespace(trainers=trainers)


@pytest.mark.parametrize("stage", [0, 1])
def test_weights_gradients_and_optimizer_have_the_bytes_of_a_training_run(trained, stage):
    trainer = trained.trainers[stage]
    module = trainer._module
    sizes = Weights.measure(module, trainer.args)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    assert sizes.gradients == sum(parameter.grad.nbytes for parameter in trainable)
    assert sizes.weights == sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    states = trainer.optimizer.optimizer.state.values()
    assert sizes.optimizer == sum(tensor.nbytes for state in states for tensor in state.values())


@pytest.mark.parametrize("stage", [0, 1])
def test_the_bytes_of_a_checkpoint_are_those_of_its_tensors(trained, stage):
    trainer = trained.trainers[stage]
    (folder,) = Path(trainer.args.output_dir).glob("checkpoint-*")
    expected = checkpoint_bytes(Weights.measure(trainer._module, trainer.args), None, 4)
    found = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found += sum(file.get_tensor(name).nbytes for name in file.keys())
    states = torch.load(folder / "optimizer.pt", weights_only=True)["state"].values()
    found += sum(tensor.nbytes for state in states for tensor in state.values())
    # Buffers such as those of rotary embeddings are not saved.
    assert found <= expected <= found * 1.01
    names = ("optimizer.pt", "model.safetensors", "objective.safetensors")
    on_disk = sum((folder / name).stat().st_size for name in names)
    assert on_disk == pytest.approx(expected, rel=0.25)  # names are longer than the tiny tensors


def test_every_optimizer_of_torch_and_transformers_is_measured():
    module = make_module()
    count = sum(parameter.numel() for parameter in module.parameters())
    sizes = {
        name: Weights.measure(module, make_arguments(optim=name)).optimizer
        for name in ("adamw_torch", "sgd", "adafactor", "adagrad")
    }
    assert sizes["adamw_torch"] == pytest.approx(8 * count, rel=0.01)
    assert sizes["sgd"] == 0
    assert 0 < sizes["adafactor"] < sizes["adagrad"] == pytest.approx(4 * count, rel=0.01)


def test_strategies_divide_what_they_shard():
    sizes = Weights(weights=800, gradients=400, optimizer=960, num_parameters=200, num_trainable=100, num_gathered=30)
    placed = {name: place_on_devices(sizes, name, 4, 2) for name in (None, "ddp", "fsdp2", "zero2", "zero3")}
    numbers = {name: (item.weights, item.gradients, item.optimizer) for name, item in placed.items()}
    assert numbers[None] == numbers["ddp"] == (800, 400, 960)
    assert numbers["fsdp2"] == (200, 100, 240)
    assert numbers["zero2"] == (400, 50, (960 + 400) // 4)  # bfloat16 weights; float32 ones with the optimizer
    assert numbers["zero3"] == (100, 50, (960 + 400) // 4)
    assert (placed[None].buffers, placed["ddp"].buffers, placed["fsdp2"].buffers) == (0, 400, 30 * 2 * 2)


def make_cost(**changes):
    """A stage of 1000 samples, without counting."""
    training = make_arguments(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3)
    training.max_steps = changes.pop("max_steps", -1)
    shape = BatchShape(4, 4)
    samples = SimpleNamespace(count=1000, usual=shape, longest=shape, note="")
    cost = SimpleNamespace(flops=10**15, peak=0, activations=0)
    weights = Weights(10**9, 10**9, 2 * 10**9, 250_000_000, 250_000_000, 10**6)
    model = SimpleNamespace(dtype="float32", has_frozen_base=False, quantization=None)
    stage = SimpleNamespace(name="finetune", training=training, model=model)
    machine = Machine(**changes)
    return StageCost(stage, machine, samples, weights, cost, 0, cost, cost, 10**14, [], 0, 0)


def test_steps_and_hours_by_hand():
    cost = make_cost(devices=8, gpu="A100", mfu=0.5)
    assert cost.samples_per_step == 64
    assert cost.steps == 3 * 16  # 32 batches of 32 samples, two to a step
    assert cost.step_flops == 2 * (10**15 + 10**14)
    assert cost.hours == pytest.approx(48 * 2.2e15 / (312e12 * 0.5) / 3600)
    assert make_cost(max_steps=7).steps == 7


def test_a_stage_that_does_not_fit_names_what_makes_it_fit():
    assert make_cost(gpu="RTX4090").warning() is None
    cost = make_cost(gpu="RTX4090")
    cost.plain = SimpleNamespace(peak=25 * 10**9, activations=25 * 10**9)
    cost.checkpointed = SimpleNamespace(peak=10**9, activations=10**9)
    assert cost.warning() == (
        "Stage finetune does not fit: it needs 27.0 GiB on each device, and the RTX4090 has 23.0 GiB for it. With "
        "gradient checkpointing it needs 4.7 GiB."
    )
    cost.weights = Weights(10**10, 10**10, 2 * 10**10, 2_500_000_000, 2_500_000_000, 10**6)
    assert "With gradient checkpointing and --strategy fsdp2 and --devices 2 it needs" in cost.warning()
    cost.checkpointed = cost.plain
    assert cost.warning().endswith("Lower per_device_train_batch_size and raise gradient_accumulation_steps.")


def test_padding_counts():
    assert mean_padded_length([4, 4, 4, 4], 2, is_grouped=False) == 4
    assert mean_padded_length([1, 9, 1, 9], 2, is_grouped=True) == 5
    assert mean_padded_length([1, 9], 2, is_grouped=False) == 9


def test_a_dry_run_has_the_steps_of_training_and_measures_the_data(recipe, trained):
    text = describe_recipe(recipe)
    rows = rows_of(text)
    assert rows["steps"] == ["2", "2"]
    assert rows["samples of the data"] == ["14", "14"]
    assert text.count("Lengths are those of 14 records of the data.") == 2
    whole = rows_of(describe_recipe(recipe, ["max_steps=-1", "num_train_epochs=2"], devices=2))
    assert whole["steps"] == ["8", "4"]  # 14 samples in batches of 2 on 2 devices; the second stage accumulates 2
    assert whole["samples of a step"] == ["4", "8"]


def test_options_need_a_dry_run_and_known_values(recipe, capsys):
    with pytest.raises(SystemExit):
        command.main(["train", recipe, "--gpu", "H100"])
    assert "--gpu needs --dry-run" in capsys.readouterr().err
    for options, problem in (
        (["--gpu", "B200"], "--gpu is 'B200'; it must be one of A100, H100, H200, L40S, RTX4090, RTX3090."),
        (["--strategy", "fsdp"], "--strategy is 'fsdp'; it must be one of ddp, fsdp2, zero2, zero3."),
        (["--devices", "0"], "--devices is 0; it must be 1 or more."),
        (["--mfu", "40"], "--mfu is 40.0; it must be above 0 and at most 1."),
    ):
        assert command.main(["train", recipe, "--dry-run", *options]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize("mfu", [0, 1.5])
def test_an_mfu_is_a_share(mfu):
    with pytest.raises(UserError, match="must be above 0"):
        Machine(mfu=mfu)


def test_peaks_are_known_by_the_names_of_cuda():
    assert find_peak("NVIDIA H100 80GB HBM3") == find_peak("NVIDIA H200") == 989.4e12
    assert find_peak("NVIDIA A100-SXM4-80GB") == 312e12
    for other in ("NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "cpu"):
        assert find_peak(other) is None


@pytest.mark.slow
def test_the_papers_recipe_has_llavas_steps():
    text = describe_recipe("hawaii_vicuna_7b", ["teachers=[clip, pix2struct, sam]"], 8, "fsdp2")
    rows = rows_of(text)
    assert rows["steps"] == ["2,181", "5,198"]  # LLaVA-1.5's
    assert "does not fit" not in text
    alone = describe_recipe("hawaii_vicuna_7b", ["teachers=[clip, pix2struct, sam]"], gpu="RTX4090", tokens=700)
    assert re.search(r"Stage finetune does not fit: .* on each device, and the RTX4090 has 23\.0 GiB", alone)
    # 12 bytes per parameter and 4 for the gradients.
    assert float(rows["weights"][1]) * 8 == pytest.approx(4 * 7.078e9 / 2**30, rel=0.01)


LORA = ["stages.finetune.lora={r: 2, lora_alpha: 4}", "stages.finetune.dtype=bfloat16", "stages.finetune.bf16=true"]


@pytest.mark.parametrize("quantization", [None, "8bit", "4bit"])
def test_a_lora_has_the_bytes_of_a_training_run(recipe, tmp_path, monkeypatch, quantization):
    kept = []
    original = train_module.HawaiiTrainer

    def keep(*args, **kwargs):
        kept.append(original(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(train_module, "HawaiiTrainer", keep)
    overrides = [f"output_dir={tmp_path / 'run'}", *LORA, f"stages.finetune.quantization={quantization or 'null'}"]
    train(recipe, overrides)
    trainer = kept[1]
    (folder,) = Path(trainer.args.output_dir).glob("checkpoint-*")
    stage = read_recipe(recipe, overrides, use_cpu=True).stages["finetune"]
    student = outline_student(stage.model, len(stage.distilled_teachers))
    grids = {teacher.name: teacher.grid for teacher in trainer.teachers}
    with torch.device("meta"):
        outline = StudentWithObjective(student, HawaiiObjective(stage.options, student, grids))
    sizes = Weights.measure(outline_stage(outline, stage), stage.training, quantization)
    tensors = {id(tensor): tensor for tensor in [*trainer._module.parameters(), *trainer._module.buffers()]}
    found = sum(tensor.nbytes for tensor in tensors.values())
    for weight in tensors.values():  # bitsandbytes' scales are not part of the weights
        state = getattr(weight, "quant_state", None)
        if state is not None:
            scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
            found += sum(scale.nbytes for scale in scales)
    for layer in trainer._module.modules():
        if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            found += layer.state.SCB.nbytes
    assert sizes.weights == pytest.approx(found, rel=0.01)
    trainable = [weight for weight in trainer._module.parameters() if weight.requires_grad]
    assert sizes.num_trainable == sum(weight.numel() for weight in trainable)
    assert sizes.gradients == sum(weight.nbytes for weight in trainable)
    states = trainer.optimizer.optimizer.state.values()
    assert sizes.optimizer == sum(tensor.nbytes for state in states for tensor in state.values())
    saved = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            saved += sum(file.get_tensor(name).nbytes for name in file.keys())
    cost = make_cost()
    cost.weights, cost.stage.model.has_frozen_base = sizes, True
    assert saved == pytest.approx(cost.checkpoint_bytes - sizes.optimizer, rel=0.01)
    sharded = make_cost(strategy="fsdp2", devices=2)
    sharded.weights, sharded.stage.model.has_frozen_base = sizes, True
    assert sharded.checkpoint_bytes == cost.checkpoint_bytes + sizes.weights  # shards have the frozen weights, too


def test_teachers_in_a_cache_cost_no_weights_and_no_operations(recipe, monkeypatch):
    counted = []
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: str(counted.extend(costs)))
    describe_recipe(recipe, ["stages.finetune.teacher_cache=features"])
    pretrain, finetune = counted
    assert pretrain.teacher_flops > 0 and pretrain.teacher_bytes(1) > 0
    assert finetune.teacher_flops == finetune.teacher_bytes(1) == 0
    assert finetune.feature_bytes > 0


def test_sharded_teachers_are_gathered_one_after_another():
    cost = make_cost(devices=4)
    cost.teacher_sizes = [100, 60]
    assert cost.teacher_bytes(4) == 160
    cost.stage.training.shard_teachers = True
    assert cost.teacher_bytes(4) == 40 + 100
    assert cost.teacher_bytes(1) == 160


def test_sources_are_counted_by_their_weights(recipe, tmp_path):
    values = yaml.safe_load(Path(recipe).read_text())
    path = values.pop("data_path")
    rows = json.loads(Path(path).read_text())
    few = tmp_path / "few.json"
    few.write_text(json.dumps(rows[:2]))
    values["data"] = [{"path": path, "weight": 1}, {"path": str(few), "weight": 3}]
    changed = tmp_path / "sources.yaml"
    changed.write_text(yaml.safe_dump(values, sort_keys=False))
    assert rows_of(describe_recipe(str(changed)))["samples of the data"][0] == f"{4 * len(rows):,}"


def test_a_budget_of_tokens_sets_the_size_of_a_batch(recipe, monkeypatch):
    counted = []
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: str(counted.extend(costs)))
    describe_recipe(recipe, ["max_batch_tokens=400", "max_length=400"])
    for cost in counted:
        usual, longest = cost.samples.usual, cost.samples.longest
        assert longest.num_samples == 400 // longest.num_tokens <= usual.num_samples
        assert longest.num_images >= usual.num_images  # a batch of short samples has more images
        assert cost.samples_per_step == usual.num_samples * cost.num_micro_batches


@pytest.mark.parametrize("options", [[], ["max_batch_tokens=400", "max_length=400"]], ids=["samples", "tokens"])
def test_packed_batches_have_no_padding(recipe, monkeypatch, options):
    counted = []
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: str(counted.extend(costs)))
    for packing in ("true", "false"):
        describe_recipe(recipe, [f"packing={packing}", *options])
    *packed, padded = (cost.samples for cost in counted if cost.stage.name == counted[0].stage.name)
    (packed,) = packed
    assert (packed.usual.is_packed, packed.longest.is_packed) == (True, True)
    assert (padded.usual.is_packed, padded.longest.is_packed) == (False, False)
    assert packed.usual.num_samples == padded.usual.num_samples
    assert packed.usual.num_tokens < padded.usual.num_tokens


def test_a_dry_run_has_the_devices_and_the_strategy_that_the_recipe_demands(recipe):
    text = describe_recipe(recipe, ["strategy=fsdp2", "num_processes=8"])
    assert "Memory of each device, 8 x H100 with fsdp2, in GiB" in text
    assert "would be refused" not in text
    other = describe_recipe(recipe, ["strategy=fsdp2", "num_processes=8"], devices=2, strategy="zero2")
    assert "Memory of each device, 2 x H100 with zero2, in GiB" in other
    assert (
        "Stage finetune demands num_processes: 8, strategy: fsdp2, but the costs are those of num_processes: 2, "
        "strategy: zero2: training on these devices would be refused." in other
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ["strategy=ddp"]}, "The strategy is ddp, which is for several devices, but one is counted"),
        ({"devices": 1, "strategy": "fsdp2"}, "The strategy is fsdp2, which is for several devices, but one is"),
        ({"tokens": 0}, "--tokens is 0; it must be 1 or more."),
        ({"tokens": -5}, "--tokens is -5; it must be 1 or more."),
        (
            {"overrides": ["per_device_train_batch_size=0"]},
            "stage pretrain: per_device_train_batch_size is 0; it must",
        ),
    ],
)
def test_impossible_devices_and_sizes_are_refused(recipe, options, message):
    with pytest.raises(UserError, match=message):
        describe_recipe(recipe, **options)


def test_a_sharded_strategy_and_a_quantized_model_are_refused_like_in_training(recipe):
    overrides = ["stages.finetune.quantization=4bit", *LORA]
    with pytest.raises(UserError, match="quantization 4bit is for models that are not sharded .* strategy is fsdp2"):
        describe_recipe(recipe, overrides, devices=2, strategy="fsdp2")


def test_a_mean_length_leaves_the_longest_samples_as_long_as_they_may_be(recipe, monkeypatch):
    counted = []
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: str(counted.extend(costs)))
    describe_recipe(recipe, ["max_length=400"], tokens=50)
    for cost in counted:
        assert (cost.samples.usual.num_tokens, cost.samples.longest.num_tokens) == (50, 400)


def test_unknown_states_of_an_optimizer_make_the_sum_a_lower_bound(recipe):
    table = rows_of(describe_recipe(recipe, ["optim=adamw_bnb_8bit"]))
    row = next(cells for name, cells in table.items() if name.startswith("all, "))
    assert all(cell.startswith("more than ") for cell in row)
