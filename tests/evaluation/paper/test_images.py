"""Tests of the images of benchmarks and folders."""

import os

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hawaii.evaluation.paper.benchmarks import BENCHMARKS
from hawaii.evaluation.paper.images import ImageSource, folder_source, spread, task_sources
from hawaii.evaluation.paper.questions import DATA_FOLDER
from hawaii.tests.evaluation.stand_ins import BUILDERS, any_answers, image, questions, save_data, save_stand_ins
from hawaii.tests.tiny.training import make_image


def read(source):
    """Returns the images of a source and the number of progress steps."""
    steps = []
    return list(source.images(lambda: steps.append(1))), len(steps)


@pytest.mark.parametrize(
    ("num_items", "limit", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (10, 3, [0, 3, 6]), (3, 10, [0, 1, 2]), (3, 3, [0, 1, 2]), (0, 5, [])],
)
def test_selected_items_are_evenly_spaced(num_items, limit, expected):
    assert spread(num_items, limit) == expected


def test_an_image_with_several_questions_counts_once():
    first, second = make_image(0), make_image(1)
    seen, steps = read(ImageSource("task", [lambda: [first], lambda: [first.copy(), second], lambda: []]))
    assert (seen, steps) == ([first, second], 3)


def test_images_with_equal_pixels_and_different_sizes_are_distinct():
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert read(ImageSource("task", [lambda: [wide], lambda: [high]]))[0] == [wide, high]


def test_the_error_names_a_benchmark_without_images():
    with pytest.raises(ValueError, match="None of the 2 selected questions of mmlu has an image"):
        read(ImageSource("mmlu", [lambda: [], lambda: []]))


def test_the_images_of_a_folder_include_those_of_its_subfolders(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("b.png", "a.JPG", "more/c.webp"):
        make_image(0).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = folder_source(f"mine={tmp_path}", limit=10)
    assert (source.name, read(source)[0]) == ("mine", [tmp_path / name for name in ("a.JPG", "b.png", "more/c.webp")])
    assert len(folder_source(f"mine={tmp_path}", limit=2).documents) == 2


def test_the_error_names_a_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match="mine has no images: .* contains none that Pillow can read"):
        folder_source(f"mine={tmp_path}", limit=10)


@pytest.mark.slow
def test_the_tasks_of_this_package_have_images(tmp_path):
    rows = [
        {"question": "what shape is it ?", "answer": "circle", "question_type": "shape", "image": make_image(seed)}
        for seed in (0, 0, 1, 1, 2, 2)
    ]
    Dataset.from_list(rows).cast_column("image", ImageFeature()).to_parquet(tmp_path / "test.parquet")
    data = {"output_dir": tmp_path, "data_file": str(tmp_path / "test.parquet"), "data_folder": None}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (source,) = task_sources(["easy_vqa"], limit=100, scratch=scratch, **data)
    seen, steps = read(source)
    assert ([image.tobytes() for image in seen], steps) == ([make_image(seed).tobytes() for seed in range(3)], 6)


@pytest.mark.slow
def test_the_images_of_all_benchmarks_are_those_of_their_questions(tmp_path):
    save_stand_ins(tmp_path / "data", {task: any_answers(task) for task in BUILDERS})
    data = {"output_dir": tmp_path, "data_file": None, "data_folder": str(tmp_path / "data")}
    (tmp_path / "scratch").mkdir()
    sources = task_sources(list(BENCHMARKS), limit=100, scratch=tmp_path / "scratch", **data)
    assert [source.name for source in sources] == list(BENCHMARKS)
    for source in sources:
        seen, steps = read(source)
        asked = [color for color in BUILDERS[source.name][1] if color != "none"]
        if source.name == "seedbench":
            asked.pop(2)  # a video
        colors = {Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in asked}
        assert {image.convert("RGB").getpixel((0, 0)) for image in seen} == colors
        assert len(seen) == len(colors) and steps >= len(asked)


@pytest.mark.slow
def test_each_call_reads_the_data_of_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_FOLDER, raising=False)
    sources = []
    for color in ("red", "blue"):
        folder, scratch = tmp_path / color, tmp_path / f"{color} scratch"
        scratch.mkdir()
        save_data(folder, "gqa", questions("gqa")[:1])
        save_data(folder, "gqa_images", [{"id": "red", "image": image(color)}])
        data = {"output_dir": tmp_path, "data_file": None, "data_folder": str(folder)}
        sources += task_sources(["gqa"], limit=1, scratch=scratch, **data)
        assert DATA_FOLDER not in os.environ
    # Read after both calls, and the first one last.
    blue, red = (read(source)[0][0].getpixel((0, 0)) for source in sources[::-1])
    assert (red, blue) == ((255, 0, 0), (0, 0, 255))


def test_the_error_names_questions_that_cannot_be_loaded(tmp_path):
    (tmp_path / "test.parquet").write_text("no questions")
    data = {"output_dir": tmp_path, "data_file": str(tmp_path / "test.parquet"), "data_folder": None}
    with pytest.raises(ValueError, match="The questions of easy_vqa could not be loaded: "):
        task_sources(["easy_vqa"], limit=1, scratch=tmp_path, **data)
