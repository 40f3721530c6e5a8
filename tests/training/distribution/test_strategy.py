"""The strategy of a run with one process, and the demands of a recipe."""

from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import make_arguments, write_recipe
from hawaii.training.distribution.strategy import Strategy, check_strategy, create_accelerator, describe_strategy


def make_stage(**training):
    return SimpleNamespace(
        training=make_arguments(**training),
        model=SimpleNamespace(quantization=None),
        data=SimpleNamespace(eval_data_path=None),
    )


@pytest.fixture(autouse=True)
def own_state():
    """Each test builds its own accelerator."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("options", "dtype", "precision"),
    [
        ({}, "float32", "float32"),
        ({}, "bfloat16", "bfloat16"),
        ({"bf16": True}, "float32", "bfloat16 with float32 weights"),
        ({"bf16": True}, "bfloat16", "bfloat16 with bfloat16 weights"),
    ],
)
def test_one_process_is_single_with_the_precision_of_computation_and_weights(options, dtype, precision):
    strategy = describe_strategy(create_accelerator(make_arguments(**options)), dtype)
    assert str(strategy) == f"Strategy single: 1 process on 1 machine, CPU, {precision}."


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("ACCELERATE_USE_FSDP", "The launcher asked for FSDP, but accelerate does not shard on CPUs"),
        ("ACCELERATE_USE_DEEPSPEED", "The launcher asked for DeepSpeed, but accelerate does not shard on CPUs"),
        (
            "ACCELERATE_USE_CPU",
            "On CPUs, `accelerate launch` ignores num_processes and starts one process, unless MPI starts more",
        ),
    ],
)
def test_a_setting_of_the_launcher_without_effect_is_named(monkeypatch, variable, reason):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv(variable, "true")
    strategy = describe_strategy(accelerator)
    assert strategy.name == "single" and strategy.refusal.startswith(reason)
    assert str(strategy).endswith(strategy.refusal)


def test_processes_that_do_not_see_each_other_are_an_error(monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        UserError,
        match="The launcher started 4 processes, but accelerate did not connect them \\(it counts 1\\), so all",
    ):
        describe_strategy(accelerator)


@pytest.mark.parametrize(
    ("demands", "problem"),
    [
        (
            {"strategy": "ddp"},
            r"demands strategy: ddp, but this run has single\. Strategy single: .*/ddp\.yaml -m hawaii",
        ),
        ({"strategy": "zero3"}, r"demands strategy: zero3, but this run has single\. .*/zero3\.yaml -m hawaii"),
        (
            {"strategy": "single", "num_processes": 2},
            r"demands num_processes: 2, but this run has 1\. .* with 2 processes",
        ),
        ({"strategy": "single", "num_processes": 1}, None),
        ({}, None),
    ],
)
def test_what_a_recipe_demands_is_what_the_run_has_or_an_error(demands, problem):
    stage = make_stage(**demands)
    strategy = describe_strategy(create_accelerator(stage.training))
    if problem is None:
        check_strategy(strategy, stage)
    else:
        with pytest.raises(UserError, match=f"The recipe {problem}"):
            check_strategy(strategy, stage)


@pytest.mark.parametrize("name", ["fsdp1", "fsdp2", "zero3"])
def test_what_a_sharded_model_cannot_do_is_refused_before_models_are_loaded(name):
    strategy = Strategy(name, 2, 1, "NVIDIA H200", "bfloat16", "")
    stage = make_stage()
    stage.model.quantization = "4bit"
    with pytest.raises(UserError, match=rf"quantization 4bit is for models that are not sharded .* has {name}"):
        check_strategy(strategy, stage)
    stage = make_stage()
    stage.data.eval_data_path = "questions.json"
    with pytest.raises(UserError, match="cannot answer questions during training: leave out eval_data_path"):
        check_strategy(strategy, stage)


@pytest.mark.parametrize("gathering", [None, False, True])
def test_a_model_that_deepspeed_would_not_gather_is_refused(gathering):
    stage = make_stage()
    config = {"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": gathering}}
    stage.training.deepspeed_plugin = SimpleNamespace(deepspeed_config=config)
    strategy = Strategy("zero3", 2, 1, "NVIDIA H200", "bfloat16", "")
    if gathering:
        check_strategy(strategy, stage)
    else:
        with pytest.raises(UserError, match="stage3_gather_16bit_weights_on_model_save is not true, so"):
            check_strategy(strategy, stage)


def test_a_tracker_that_is_not_installed_is_refused_before_models_are_loaded(tmp_path, teacher_folders, capsys):
    recipe = write_recipe(tmp_path, teacher_folders)
    assert main(["train", str(recipe), "report_to=comet_ml"]) == 2
    assert "recipe.yaml, stage pretrain: report_to is comet_ml, which cannot be used: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_refused_run_writes_nothing_and_its_first_line_is_the_strategy(tmp_path, teacher_folders, capsys):
    recipe = write_recipe(tmp_path, teacher_folders)
    assert main(["train", str(recipe), "strategy=fsdp2"]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["Strategy single: 1 process on 1 machine, CPU, float32."]
    assert "recipe.yaml, stage pretrain: The recipe demands strategy: fsdp2, but this run has single." in printed.err
    assert not (tmp_path / "run").exists()


def test_sharding_in_a_recipe_needs_several_processes():
    stage = make_stage()
    stage.training.fsdp = True
    with pytest.raises(UserError, match="fsdp is given, but this run has one process"):
        check_strategy(Strategy("single", 1, 1, "CPU", "float32", ""), stage)


def test_an_unknown_strategy_is_an_error_of_the_recipe(tmp_path, teacher_folders, capsys):
    recipe = write_recipe(tmp_path, teacher_folders)
    assert main(["train", str(recipe), "strategy=fsdp"]) == 2
    assert "strategy" in capsys.readouterr().err
