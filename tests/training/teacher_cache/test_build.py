"""
`hawaii cache` computes the features of a recipe's images, and training with them equals training with running
teachers.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.tests.finished_runs import logged_steps
from hawaii.tests.tiny.encoders import write_encoder_recipe
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_image, make_record, save_data, write_recipe
from hawaii.training import train as train_module
from hawaii.training.teacher_cache import build
from hawaii.training.teacher_cache.build import build_cache
from hawaii.training.teacher_cache.contents import INDEX_FILE, Contents
from hawaii.training.teacher_cache.feature_files import FeatureFiles, feature_files, stored_images
from hawaii.training.teachers.teacher import Teacher
from hawaii.training.train import train


# Two steps: the losses of the second depend on the gradients of the first.
SHORT = ["max_steps=2", "text_config.attention_dropout=0.0", "save_strategy=no"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, teacher_folders):
    """A recipe with its data, and copies of the teachers that tests may change."""
    folder = tmp_path_factory.mktemp("world")
    teachers = {name: shutil.copytree(path, folder / name) for name, path in teacher_folders.items()}
    return write_recipe(folder, teachers, stages={"finetune": {"gradient_accumulation_steps": 2}})


@pytest.fixture(scope="module")
def cache(world):
    """The finished cache of the recipe."""
    folder = world.parent / "cache"
    build_cache(str(world), output_dir=str(folder))
    return folder


def subfolder(cache):
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def losses(recipe, folder, *overrides):
    """Every logged loss term of a short run."""
    train(str(recipe), [f"output_dir={folder}", *SHORT, *overrides])
    others = ("grad_norm", "epoch", "step", "learning_rate")
    return [
        {key: value for key, value in entry.items() if key not in others} for entry in logged_steps(folder, "finetune")
    ]


def assert_close(cached, live, tolerance):
    assert len(cached) == len(live) == 2
    for there, here in zip(cached, live):
        assert there.keys() == here.keys()
        for name, value in here.items():
            if name.startswith("load"):
                continue  # a token with nearly equal scores may be routed to the other adapter
            assert there[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def forbid_teachers(monkeypatch):
    def call(*args):
        raise AssertionError("a teacher is loaded or runs")

    monkeypatch.setattr(train_module, "load_teachers", call)
    monkeypatch.setattr(Teacher, "__call__", call)


@pytest.mark.parametrize(
    ("storage", "matching"),
    [("int8", "unshuffle"), ("int8", "interpolate"), ("int8", "learned"), ("bfloat16", "unshuffle")],
)
def test_losses_are_those_of_live_teachers_which_are_neither_loaded_nor_run(
    world, tmp_path, monkeypatch, storage, matching
):
    option = f"grid_matching={matching}"
    live = losses(world, tmp_path / "live", option)
    build_cache(str(world), [option], str(tmp_path / "cache"), storage)
    forbid_teachers(monkeypatch)
    cached = losses(world, tmp_path / "cached", option, f"teacher_cache={tmp_path / 'cache'}")
    assert_close(cached, live, {"int8": 3e-3, "bfloat16": 5e-3}[storage])
    reports = [
        json.loads((tmp_path / run / "finetune" / "model" / "stage.json").read_text())["teachers"]
        for run in ("live", "cached")
    ]
    assert reports[0] == reports[1]


def test_radio_reads_the_same_cache(world, cache, tmp_path, monkeypatch):
    live = losses(world, tmp_path / "live", "objective=radio")
    forbid_teachers(monkeypatch)
    cached = losses(world, tmp_path / "cached", "objective=radio", f"teacher_cache={cache}")
    assert_close(cached, live, 3e-3)


def test_llava_has_no_teachers_and_move_kd_runs_its_own(world, cache, tmp_path, capsys):
    with pytest.raises(UserError, match="no stage can read features from a cache"):
        build_cache(str(world), ["objective=llava"], str(tmp_path / "cache"))
    with pytest.raises(UserError, match="no stage can read features from a cache"):
        build_cache(str(world), ["objective=move_kd"], str(tmp_path / "cache"))
    losses(world, tmp_path / "move_kd", "objective=move_kd", "max_steps=1", f"teacher_cache={cache}")
    assert "move_kd needs more than a teacher_cache contains: its teachers run" in capsys.readouterr().out
    train(str(world), [f"output_dir={tmp_path / 'llava'}", *SHORT, "objective=llava", f"teacher_cache={cache}"])


def test_an_encoder_alone_learns_from_a_cache_over_several_epochs(tmp_path, teacher_folders, monkeypatch):
    recipe = write_encoder_recipe(tmp_path, teacher_folders)
    options = [
        "max_steps=-1",
        "num_train_epochs=2",
        "stages.second.max_steps=1",
        "vision_config.attention_dropout=0.0",
    ]
    train(str(recipe), [f"output_dir={tmp_path / 'live'}", *options])
    build_cache(str(recipe), output_dir=str(tmp_path / "cache"))
    forbid_teachers(monkeypatch)
    train(str(recipe), [f"output_dir={tmp_path / 'cached'}", *options, f"teacher_cache={tmp_path / 'cache'}"])
    live, cached = (logged_steps(tmp_path / run, "first") for run in ("live", "cached"))
    assert len(live) == len(cached) > 2 and live[-1]["epoch"] == 2
    for there, here in zip(cached, live):
        assert there["loss"] == pytest.approx(here["loss"], rel=3e-3)


def test_a_step_of_text_alone_has_features_without_weight(world, cache, tmp_path):
    records = [make_record(number, image=number == 0) for number in range(7)]
    save_data(tmp_path, records)
    shutil.copytree(world.parent / "images", tmp_path / "images", dirs_exist_ok=True)
    data = [f"data_path={tmp_path / 'data.json'}", f"image_folder={tmp_path / 'images'}"]
    sizes = ["per_device_train_batch_size=1", "max_steps=7"]
    live = losses(world, tmp_path / "live", *data, *sizes)
    build_cache(str(world), data, str(tmp_path / "cache"))
    cached = losses(world, tmp_path / "cached", *data, *sizes, f"teacher_cache={tmp_path / 'cache'}")
    assert sum(entry["fine"] == 0 for entry in cached) >= 4
    for there, here in zip(cached, live):
        assert there["loss"] == pytest.approx(here["loss"], rel=3e-3)


def change_weights(world, tmp_path):
    """The recipe with a teacher that has other weights in the folder of the same name."""
    teachers = tmp_path / "vit"
    shutil.copytree(world.parent / "vit", teachers)
    weights = load_file(teachers / "model.safetensors")
    weights["embeddings.cls_token"] += 1
    save_file(weights, teachers / "model.safetensors", {"format": "pt"})
    return [f"teachers=[{teachers},{world.parent / 'convnext'}]"]


def replace_teacher(world, **fields):
    vit = {"checkpoint": str(world.parent / "vit"), **fields}
    return [f"teachers={json.dumps([vit, str(world.parent / 'convnext')])}"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (change_weights, r"the files of teacher vit \(.*vit\) differ from those of vit \(.*vit\)"),
        (lambda world, _: replace_teacher(world, layer=0), "layer of teacher vit is None there and 0 here"),
        (
            lambda world, _: replace_teacher(world, image_size=32),
            "image_size of teacher vit is None there and 32 here",
        ),
        (
            lambda world, _: replace_teacher(world, dtype="bfloat16"),
            "dtype of teacher vit is float32 there and bfloat16",
        ),
        (lambda *_: ["image_aspect_ratio=crop"], "image_aspect_ratio is pad there and crop here"),
        (lambda *_: ["image_grid_pinpoints=[[16, 32]]"], "images are one square there and have tiles here"),
        (lambda *_: ["vision_config.patch_size=8"], "the side of the student's grid is 4 there and 2 here"),
        (lambda *_: ["grid_matching=interpolate"], "grid_matching is unshuffle there and interpolate here"),
        (
            lambda world, _: [f"teachers=[{world.parent / 'vit'}]"],
            "the side of the squares .* is 32 there and 16 here",
        ),
    ],
    ids=["weights", "layer", "image_size", "dtype", "crop", "tiles", "grid", "matching", "side"],
)
def test_other_features_are_refused_with_the_difference(world, cache, tmp_path, change, difference):
    overrides = [*change(world, tmp_path), *SHORT, f"teacher_cache={cache}", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(
        UserError, match=rf"The teacher_cache .* has no suitable features: in pad-4x4-\w+, {difference}"
    ):
        train(str(world), overrides)


def test_two_teachers_of_a_cache_can_be_read_without_the_third(world, tmp_path, teacher_folders):
    third = {"checkpoint": str(teacher_folders["vit"]), "name": "third", "layer": 0}
    names = [str(world.parent / name) for name in TEACHER_GRIDS]
    build_cache(str(world), [f"teachers={json.dumps([third, *names])}"], str(tmp_path / "cache"))
    live = losses(world, tmp_path / "live")
    assert_close(losses(world, tmp_path / "cached", f"teacher_cache={tmp_path / 'cache'}"), live, 3e-3)


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_without_features_is_named_and_never_skipped(world, cache, tmp_path, policy, workers, capsys):
    folder = shutil.copytree(world.parent / "images", tmp_path / "images")
    make_image(99).save(folder / "3.png")  # it had features, but has changed
    overrides = [f"image_folder={folder}", f"bad_records={policy}", f"dataloader_num_workers={workers}"]
    overrides += [*SHORT, "max_steps=8", f"teacher_cache={cache}", f"output_dir={tmp_path / 'run'}"]
    assert main(["train", str(world), *overrides]) == 2
    error = capsys.readouterr().err
    assert "record '3': the cache" in error and "has no features of its image" in error and "3.png" in error
    assert "run `hawaii cache` again" in error


def test_damaged_features_stop_training_and_are_computed_again(world, cache, tmp_path, capsys):
    whole = losses(world, tmp_path / "whole", f"teacher_cache={cache}")
    folder = shutil.copytree(cache, tmp_path / "cache")
    (file,) = feature_files(subfolder(folder))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # of the values
    file.write_bytes(content)
    overrides = [*SHORT, "max_steps=8", "bad_records=skip", f"teacher_cache={folder}"]
    assert main(["train", str(world), *overrides, f"output_dir={tmp_path / 'run'}"]) == 2
    assert f"{file} is damaged: remove it and the {INDEX_FILE} next to it" in capsys.readouterr().err
    file.unlink()
    (file.parent / INDEX_FILE).unlink()
    build_cache(str(world), output_dir=str(folder))
    assert losses(world, tmp_path / "again", f"teacher_cache={folder}") == whole


def test_a_share_of_the_images_has_features_and_a_larger_share_adds_its_own(world, tmp_path):
    folder = tmp_path / "cache"
    build_cache(str(world), ["image_share=0.4"], str(folder))
    first = stored_images(subfolder(folder))
    times = {path: path.stat().st_mtime_ns for path in feature_files(subfolder(folder))}
    build_cache(str(world), None, str(folder))
    assert first < stored_images(subfolder(folder)) and len(stored_images(subfolder(folder))) == 12
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_equal_files_are_computed_once(world, tmp_path):
    images = shutil.copytree(world.parent / "images", tmp_path / "images")
    for number in range(1, 12):
        if (images / f"{number}.png").exists():
            shutil.copy(images / "0.png", images / f"{number}.png")
    build_cache(str(world), [f"image_folder={images}"], str(tmp_path / "cache"))
    assert len(stored_images(subfolder(tmp_path / "cache"))) == 3  # of images 0, 13 and 14


def test_a_broken_image_is_named_or_left_out(world, tmp_path, capsys):
    images = shutil.copytree(world.parent / "images", tmp_path / "images")
    (images / "3.png").write_bytes(b"no image")
    options = ["--output_dir", str(tmp_path / "cache")]
    assert main(["cache", str(world), f"image_folder={images}", *options]) == 2
    assert "record '3': its image" in capsys.readouterr().err
    assert main(["cache", str(world), f"image_folder={images}", "bad_records=skip", *options]) == 0
    assert len(stored_images(subfolder(tmp_path / "cache"))) == 11
    overrides = [f"image_folder={images}", "bad_records=skip", f"teacher_cache={tmp_path / 'cache'}", "max_steps=8"]
    assert main(["train", str(world), *SHORT, *overrides, f"output_dir={tmp_path / 'run'}"]) == 0


def test_features_that_are_not_finite_are_an_error(world, tmp_path, monkeypatch):
    call = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda teacher, images: call(teacher, images) * float("nan"))
    with pytest.raises(UserError, match="The features of teacher vit are not finite for the image with digest"):
        build_cache(str(world), None, str(tmp_path / "cache"))
    assert not feature_files(subfolder(tmp_path / "cache"))


def test_a_cache_needs_a_folder(world):
    with pytest.raises(
        UserError, match="stage finetune: there is no folder for the cache: name one with --output_dir"
    ):
        build_cache(str(world))


def test_an_empty_folder_is_no_cache(world, tmp_path):
    with pytest.raises(UserError, match="contains no features: run `hawaii cache RECIPE`, or leave out teacher_cache"):
        train(str(world), [*SHORT, f"teacher_cache={tmp_path}", f"output_dir={tmp_path / 'run'}"])


def contents_of(folder):
    """The features of every image, by its digest."""
    files = FeatureFiles(folder, Contents.read(folder))
    return {
        image: [part for index in range(2) for part in files.read(files.find(image), index)]
        for image in stored_images(folder)
    }


@pytest.mark.parametrize("write", range(5))
def test_a_cache_that_stopped_at_any_file_continues_and_computes_nothing_twice(world, tmp_path, monkeypatch, write):
    monkeypatch.setattr(build, "BYTES_PER_FILE", 1)
    monkeypatch.setattr(build, "images_per_block", lambda cells: 3)  # so that files have three images
    folder, wrote = tmp_path / "cache", []
    write_features = build.write_features

    def stop(*args):
        if len(wrote) == write:
            (args[0] / "features-0.safetensors.incomplete").write_bytes(b"half a file")
            raise KeyboardInterrupt
        wrote.append(write_features(*args))

    monkeypatch.setattr(build, "write_features", stop)
    if write < 4:
        with pytest.raises(KeyboardInterrupt):
            build_cache(str(world), None, str(folder))
        assert not (subfolder(folder) / INDEX_FILE).exists()
    else:  # there are four files
        build_cache(str(world), None, str(folder))
    assert len(stored_images(subfolder(folder))) == 3 * write
    seen = []
    monkeypatch.setattr(build, "write_features", lambda *args: seen.extend(args[2]) or write_features(*args))
    build_cache(str(world), None, str(folder))
    assert len(seen) == 12 - 3 * write
    assert len(contents_of(subfolder(folder))) == 12
    assert not list(folder.rglob("*.incomplete"))


def test_a_second_command_does_not_disturb_the_first(world, cache, monkeypatch):
    half = subfolder(cache) / "features-0.safetensors.incomplete"
    half.write_bytes(b"half a file")
    with FileLock(subfolder(cache) / build.LOCK_FILE):
        with pytest.raises(
            UserError, match=f"^Another `hawaii cache` is writing {subfolder(cache)}: wait until it ends"
        ):
            build_cache(str(world), output_dir=str(cache))
        assert half.exists()
    build_cache(str(world), output_dir=str(cache))
    assert not half.exists()


def test_a_file_is_written_after_a_minute_though_it_is_not_full(world, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SECONDS_PER_FILE", 0)
    build_cache(str(world), None, str(tmp_path / "cache"))
    assert len(feature_files(subfolder(tmp_path / "cache"))) == 6  # one for each batch of two


def start(*arguments, processes=1):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*(launch if processes > 1 else []), "-m", "hawaii", "cache", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_processes_share_the_images(world, cache, tmp_path):
    process = start(world, "--output_dir", tmp_path / "cache", processes=2)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    folder = subfolder(tmp_path / "cache")
    assert len(feature_files(folder)) == 2
    there, here = contents_of(folder), contents_of(subfolder(cache))
    assert there.keys() == here.keys()


@pytest.mark.slow
def test_a_cache_that_is_killed_at_a_random_moment_continues(world, cache, tmp_path):
    folder = tmp_path / "cache"
    for _ in range(3):
        process = start(world, "--output_dir", folder)
        time.sleep(random.uniform(4, 12))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for path in folder.glob("*/features-*.safetensors"):
            assert load_file(path)
    build_cache(str(world), None, str(folder))
    there, here = contents_of(subfolder(folder)), contents_of(subfolder(cache))
    assert there.keys() == here.keys()
    assert all(torch.equal(*pair) for image in here for pair in zip(there[image], here[image]))


def test_a_run_continues_with_the_features_that_it_began_with(world, tmp_path):
    folder, run = tmp_path / "cache", tmp_path / "run"
    build_cache(str(world), output_dir=str(folder))
    options = [f"output_dir={run}", *SHORT, f"teacher_cache={folder}", "save_strategy=steps", "save_steps=1"]
    train(str(world), options)
    shutil.rmtree(run / "hub")
    shutil.rmtree(run / "finetune" / "model")
    folder = shutil.move(folder, tmp_path / "moved")
    options[options.index(f"teacher_cache={tmp_path / 'cache'}")] = f"teacher_cache={folder}"
    build_cache(str(world), output_dir=str(folder), storage="bfloat16")  # training prefers 16 bits
    with pytest.raises(UserError, match="was trained with other features of a teacher_cache: pad-"):
        train(str(world), options)
    bfloat16 = next(path for path in folder.iterdir() if "bfloat16" in (path / "contents.json").read_text())
    shutil.rmtree(bfloat16)
    train(str(world), options)
