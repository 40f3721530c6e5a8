"""Two processes under DDP and FSDP2: the same losses, exact resumes, and both processes end together."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hawaii import HawaiiForConditionalGeneration
from hawaii.files.manifest import read_identity, write_manifest
from hawaii.tests.finished_runs import logged_steps
from hawaii.tests.tiny.processes import ACCELERATE, BF16, BREAK_LOSS, FILL_MEMORY, Run, launch, launcher_environment
from hawaii.tests.tiny.training import CHECKPOINTING, make_record, save_data, save_recipe, write_recipe


pytestmark = pytest.mark.slow

# transformers would load weights on one process only, including those of the teachers.
SHARDED = {**launcher_environment("fsdp2"), "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
FULL = launcher_environment("fsdp2", "--fsdp_state_dict_type", "FULL_STATE_DICT")
FSDP2 = ["use_cpu=false", "strategy=fsdp2", "num_processes=2"]
TIED = ["max_steps=2", "save_steps=1", "text_config.tie_word_embeddings=true"]
RECOMPUTED = [f"{CHECKPOINTING[0]}=true"]
MIXED = ["max_steps=2", "save_steps=1", "bf16=true", "gradient_accumulation_steps=2"]
MIXED += ["train_sampling_strategy=group_by_length", "dataloader_num_workers=1"]

TILES = [*TIED, "stages.finetune.image_grid_pinpoints=[[16, 32], [32, 16]]", "max_length=128"]
LORA = ["max_steps=2", "save_steps=1", "lora={r: 2, lora_alpha: 4}"]

# Teachers process one image at a time, so that the number of their passes differs between the processes.
ONE_BY_ONE = """
from unittest import mock
from hawaii.training.teachers import loading, teacher
shard = loading.shard

def show(loaded):
    shard(loaded)
    sizes = [(weight.to_local().numel(), weight.numel()) for weight in loaded.model.parameters()]
    print(f"{loaded.name} keeps {sum(own for own, _ in sizes) / sum(size for _, size in sizes):.1f} of its weights")

stack.enter_context(mock.patch.object(teacher, "PIXELS_AT_ONCE", 1))
stack.enter_context(mock.patch.object(loading, "shard", show))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, teacher_folders):
    """A folder with two recipes: of two stages, and `one.yaml` of one, on data whose odd pairs are text alone."""
    folder = tmp_path_factory.mktemp("world")
    recipe = yaml.safe_load(write_recipe(folder, teacher_folders).read_text())
    save_data(folder / "pairs", [make_record(number, image=number % 4 < 2) for number in range(12)])
    paths = {"data_path": str(folder / "pairs/data.json"), "image_folder": str(folder / "pairs/images")}
    save_recipe(folder / "pairs", {**recipe, **paths, "stages": {"train": {}}})
    (folder / "pairs/recipe.yaml").rename(folder / "one.yaml")
    return folder


@pytest.fixture(scope="module")
def finished(world):
    """The uninterrupted runs, by their names, and those that stop; each in the folder of its name."""
    two, one = world / "recipe.yaml", world / "one.yaml"
    pairs = ["max_steps=3", "save_strategy=no", "train_sampling_strategy=sequential"]
    runs = {
        "ddp": Run([two, "use_cpu=false", "strategy=ddp", *TIED], launcher_environment("ddp")),
        "sharded": Run([two, *FSDP2, *TIED], SHARDED),
        "full": Run([two, *FSDP2, *TIED, *RECOMPUTED], FULL),
        "ddp_tiles": Run([two, "use_cpu=false", "strategy=ddp", *TILES], launcher_environment("ddp")),
        "sharded_tiles": Run([two, *FSDP2, *TILES], SHARDED),
        "ddp_mixed": Run([one, *MIXED]),
        "sharded_mixed": Run([one, *FSDP2, *MIXED], SHARDED, setup=BF16 + FILL_MEMORY),
        "ddp_lora": Run([one, *LORA]),
        "sharded_lora": Run([one, *FSDP2, *LORA], SHARDED),
        "ddp_pairs": Run([one, *pairs]),
        "sharded_pairs": Run([one, *FSDP2, *pairs, "shard_teachers=true"], SHARDED, setup=ONE_BY_ONE),
        "ddp_broken": Run([one, "max_steps=4", "save_steps=1"], setup=BREAK_LOSS),
        "sharded_broken": Run([one, *FSDP2, "max_steps=4", "save_steps=1"], SHARDED, setup=BREAK_LOSS),
        "refused": Run([one, "strategy=fsdp2"], SHARDED),  # use_cpu
        "too_few": Run([one, "num_processes=8"]),
        "unjoined": Run([one, "use_cpu=false"]),
        "recomputed": Run([one, *FSDP2], {**SHARDED, "FSDP_ACTIVATION_CHECKPOINTING": "true"}),
    }
    for name, run in runs.items():
        run.arguments.append(f"output_dir={world / name}")
    return dict(zip(runs, launch(world / "launch", list(runs.values()))))


@pytest.fixture(scope="module")
def resumed(world, finished):
    """Copies of the uninterrupted runs with only the files of the first step, resumed by new processes."""
    runs = {
        "ddp": Run([world / "recipe.yaml", "use_cpu=false", *TIED], launcher_environment("ddp")),
        "sharded": Run([world / "recipe.yaml", *FSDP2, *TIED], SHARDED),
        "full": Run([world / "recipe.yaml", *FSDP2, *TIED, *RECOMPUTED], FULL),
        "ddp_mixed": Run([world / "one.yaml", *MIXED]),
        "sharded_mixed": Run([world / "one.yaml", *FSDP2, *MIXED], SHARDED, setup=BF16),
        "ddp_lora": Run([world / "one.yaml", *LORA]),
        "sharded_lora": Run([world / "one.yaml", *FSDP2, *LORA], SHARDED),
    }
    for name, run in runs.items():
        folder = world / f"{name}_resumed"
        shutil.copytree(world / name, folder)
        first, *later = stages_of(world / name)
        for left in ("hub", *later, f"{first}/model", f"{first}/checkpoint-2"):
            shutil.rmtree(folder / left)
        run.arguments.append(f"output_dir={folder}")
    folder = world / "other_base"
    shutil.copytree(world / "sharded_lora_resumed", folder)
    other = ["seed=1", f"output_dir={folder}"]
    identity = read_identity(folder / "train/checkpoint-1")
    identity["options"]["seed"] = 1
    write_manifest(folder / "train/checkpoint-1", identity)  # so that only the frozen weights differ
    runs["other_base"] = Run([world / "one.yaml", *FSDP2, *LORA, *other], SHARDED)
    return dict(zip(runs, launch(world / "launch_again", list(runs.values()))))


def stages_of(run: Path) -> list[str]:
    return list(json.loads((run / "train_results.json").read_text())["stages"])


def weights_of(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of a finished run: of the published folder, of its stages and of its checkpoints."""
    files = sorted(path for path in run.rglob("*.safetensors"))
    assert len(files) == 1 + len(stages_of(run)) * 2 * 3  # two checkpoints and a model, with an objective each
    return {str(path.relative_to(run)): load_file(path) for path in files}


def test_the_file_of_fsdp2_asks_for_the_form_that_a_flag_can_replace():
    forms = [environment["FSDP_STATE_DICT_TYPE"] for environment in (SHARDED, FULL)]
    assert forms == ["SHARDED_STATE_DICT", "FULL_STATE_DICT"]


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


@pytest.mark.parametrize(("name", "ddp"), [("sharded", "ddp"), ("full", "ddp"), ("sharded_tiles", "ddp_tiles")])
def test_fsdp2_trains_what_ddp_trains(world, finished, name, ddp):
    assert statuses(finished[name]) == statuses(finished[ddp]) == [0, 0]
    for process, expected in zip(finished[name], finished[ddp]):
        assert len(expected.losses) == 2 + 2 * 2  # the second stage accumulates two micro-batches
        assert process.records == expected.records
        assert process.losses == pytest.approx(expected.losses, abs=1e-4)
    expected, found = weights_of(world / ddp), weights_of(world / name)
    assert found.keys() == expected.keys()
    assert ("model.image_newline" in found["hub/model.safetensors"]) == name.endswith("tiles")
    for file, tensors in expected.items():
        assert found[file].keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[file][key], tensor, rtol=1e-4, atol=1e-5, msg=f"{file} {key}")


def test_other_frozen_weights_under_a_lora_are_refused(resumed):
    assert statuses(resumed["other_base"]) == [2, 2]
    for outcome in resumed["other_base"]:
        assert "the frozen weights of the language model have changed" in outcome.stderr.splitlines()[-1]


def test_a_lora_trains_under_fsdp2_what_it_trains_under_ddp(world, finished):
    for process, expected in zip(finished["sharded_lora"], finished["ddp_lora"]):
        assert process.status == expected.status == 0
        assert process.records == expected.records and len(expected.losses) == 2
        assert process.losses == pytest.approx(expected.losses, abs=1e-4)
    expected, found = weights_of(world / "ddp_lora"), weights_of(world / "sharded_lora")
    assert found.keys() == expected.keys() > {"train/checkpoint-1/trained.safetensors"}
    for file, tensors in expected.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[file][key], tensor, rtol=1e-4, atol=1e-5, msg=f"{file} {key}")


@pytest.mark.parametrize("name", ["sharded", "full"])
def test_the_folder_that_fsdp2_publishes_gives_ddps_logits(world, finished, name):
    inputs = torch.arange(1, 9).view(1, -1)
    with torch.no_grad():
        expected, logits = (
            HawaiiForConditionalGeneration.from_pretrained(world / run / "hub").eval()(input_ids=inputs).logits
            for run in ("ddp", name)
        )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_bf16_has_about_the_same_losses_under_fsdp2_and_keeps_weights_in_float32(world, finished):
    for name in ("ddp_mixed", "sharded_mixed"):
        assert {tensor.dtype for tensor in weights_of(world / name)["train/model/model.safetensors"].values()} == {
            torch.float32
        }
    for process, expected in zip(finished["sharded_mixed"], finished["ddp_mixed"]):
        assert process.records == expected.records
        assert process.losses == pytest.approx(expected.losses, rel=0.02)


@pytest.mark.parametrize("name", ["ddp", "sharded", "full", "ddp_mixed", "sharded_mixed", "ddp_lora", "sharded_lora"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one_bit_for_bit(world, finished, resumed, name):
    assert statuses(finished[name]) == statuses(resumed[name]) == [0, 0]
    assert f"Resuming from {world / f'{name}_resumed'}" in resumed[name][0].stdout
    expected, found = weights_of(world / name), weights_of(world / f"{name}_resumed")
    assert found.keys() == expected.keys()
    for file, tensors in expected.items():
        assert [key for key, tensor in tensors.items() if not torch.equal(found[file][key], tensor)] == [], file
    for stage in stages_of(world / name):
        assert logged_steps(world / f"{name}_resumed", stage) == logged_steps(world / name, stage)
    for uninterrupted, again in zip(finished[name], resumed[name]):
        assert uninterrupted.losses[-len(again.losses) :] == again.losses != uninterrupted.losses


def test_a_process_with_text_alone_keeps_up_with_one_that_has_images_and_sharded_teachers(finished):
    texts, images = ({record for batch in process.records for record in batch} for process in finished["ddp_pairs"])
    for process, expected in zip(finished["sharded_pairs"], finished["ddp_pairs"]):
        assert process.status == expected.status == 0
        assert process.records == expected.records and len(expected.losses) == 3
        assert process.losses == pytest.approx(expected.losses, abs=1e-4)
        kept = re.findall("(.*) of its weights", process.stdout)
        assert kept == ["vit keeps 0.5", "convnext keeps 0.5"]
    kinds = [{int(re.sub(r"\D", "", record)) % 4 < 2 for record in records} for records in (texts, images)]
    assert kinds == [{True}, {False}]


@pytest.mark.parametrize("name", ["ddp_broken", "sharded_broken"])
def test_a_loss_that_is_not_finite_on_one_process_stops_all_at_the_same_step(world, finished, name):
    assert statuses(finished[name]) == [2, 2]
    messages = [process.stderr.splitlines()[-1] for process in finished[name]]
    assert messages[0] == messages[1]
    records = ", ".join(finished[name][1].records[2])
    reason = f"because the loss term coarse is not finite for the records {records}: fix these records"
    assert f"hawaii train: Training stopped before step 3 changed a weight, {reason}" in messages[0]
    assert [len(process.losses) for process in finished[name]] == [3, 3]
    left = sorted(path.name for path in (world / name / "train").iterdir())
    assert left == ["checkpoint-1", "checkpoint-2", "log.jsonl"]
    for path in (world / name).rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ddp", "Strategy ddp: 2 processes on 1 machine, CPU, float32."),
        ("sharded", "Strategy fsdp2: 2 processes on 1 machine, CPU, float32."),
        ("ddp_mixed", "Strategy ddp: 2 processes on 1 machine, CPU, bfloat16 with float32 weights."),
        ("sharded_mixed", "Strategy fsdp2: 2 processes on 1 machine, CPU, bfloat16 with float32 weights."),
        (
            "refused",
            "Strategy ddp: 2 processes on 1 machine, CPU, float32. The launcher asked for FSDP, but accelerate does "
            "not shard on CPUs, and this run uses the CPU, because use_cpu is set or there is no GPU.",
        ),
    ],
)
def test_the_first_line_is_the_strategy_that_the_run_has(finished, name, line):
    assert finished[name][0].stdout.splitlines()[0] == line
    assert finished[name][0].stdout.count("Strategy") == 1
    assert finished[name][1].stdout == ""


def test_a_strategy_that_the_recipe_demands_and_accelerate_does_not_give_is_refused(world, finished):
    assert statuses(finished["refused"]) == [2, 2]
    message = finished["refused"][0].stderr.splitlines()[-1]
    assert "The recipe demands strategy: fsdp2, but this run has ddp. Strategy ddp: 2 processes" in message
    assert "asked for FSDP, but accelerate does not shard on CPUs" in message
    assert f"Start it with `accelerate launch --config_file {ACCELERATE}/fsdp2.yaml -m hawaii train RECIPE`" in message
    assert not (world / "refused").exists()


def test_another_number_of_processes_than_the_recipe_demands_is_refused(world, finished):
    assert statuses(finished["too_few"]) == [2, 2]
    message = finished["too_few"][0].stderr.splitlines()[-1]
    assert "The recipe demands num_processes: 8, but this run has 2." in message
    assert message.endswith("Start it with 8 processes, or remove this demand from the recipe.")
    assert not (world / "too_few").exists()


def test_processes_that_accelerate_does_not_join_are_refused(world, finished):
    """Without a GPU and without use_cpu, each process would train alone and write into the same folder."""
    assert statuses(finished["unjoined"]) == [2, 2]
    assert not (world / "unjoined").exists()
    for process in finished["unjoined"]:
        assert (
            "The launcher started 2 processes, but accelerate did not connect them (it counts 1), so all would"
            in process.stderr
        )


def test_activations_that_accelerate_recomputes_with_other_dropout_are_refused(world, finished):
    assert statuses(finished["recomputed"]) == [2, 2]
    for process in finished["recomputed"]:
        assert "fsdp_activation_checkpointing is true, but accelerate then recomputes layers" in process.stderr
    assert not (world / "recomputed").exists()
