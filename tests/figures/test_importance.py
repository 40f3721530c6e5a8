"""Tests of Figure 5."""

import json
import sys

import pytest
import torch
from PIL import Image

from hawaii.__main__ import main
from hawaii.figures.importance import (
    describe_importance,
    draw_importance,
    importance_figure,
    importance_parts,
    shown_picture,
)
from hawaii.tests.figure_layout import check_labels
from hawaii.tests.tiny.encoders import write_encoder_recipe
from hawaii.tests.tiny.models import make_model, make_processor
from hawaii.tests.tiny.tiled_models import CELLS, SIZES, make_tiled_model, make_tiled_processor, mark_cell
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_batch, make_image, make_options, make_record, save_stage
from hawaii.training.finished_stage import FinishedStage, load_stage
from hawaii.training.objectives import hawaii as hawaii_objective
from hawaii.training.train import train


QUESTIONS = ["what color is the shape ?", "is there a circle ?"]


@pytest.fixture(scope="module")
def stage_folder(tmp_path_factory, teacher_folders):
    """A finished stage with random values."""
    folder = tmp_path_factory.mktemp("run") / "finetune" / "model"
    save_stage(folder, teacher_folders)
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "picture.png"
    make_image(3, 16, 10).save(path)
    return str(path)


def set_question(record, question):
    record["conversations"][0]["value"] = f"<image>\n{question}"
    return record


def test_the_scores_equal_those_of_training(stage_folder, tmp_path, monkeypatch):
    # The same images and questions pass through the data, batches and objective of training.
    records = [set_question(make_record(number), question) for number, question in enumerate(QUESTIONS)]
    batch = make_batch(tmp_path, records, make_processor())
    stage, used, token_importance = load_stage(stage_folder), [], hawaii_objective.token_importance

    def spy(*args):
        used.append(token_importance(*args))
        return used[-1]

    monkeypatch.setattr(hawaii_objective, "token_importance", spy)
    stage.objective(stage.student, [teacher(batch["teacher_images"]) for teacher in stage.teachers], batch)

    images = [str(tmp_path / "images" / record["image"]) for record in records]
    results = importance_figure(stage_folder, tmp_path / "figures", images, QUESTIONS)
    (expected,) = used  # (I, N, m)
    for row, scores in zip(results["images"], expected):
        for name, teacher_scores in zip(TEACHER_GRIDS, scores):
            torch.testing.assert_close(torch.tensor(row["importance"][name]), teacher_scores.view(4, 4))


def test_the_importance_is_the_mean_of_its_parts(stage_folder, image, tmp_path):
    results = importance_figure(stage_folder, tmp_path, [image], QUESTIONS[:1])
    (row,) = results["images"]
    assert json.loads((tmp_path / "importance.json").read_text()) == results
    assert (row["image"], row["question"], row["num_instruction_tokens"]) == (image, QUESTIONS[0], 6)
    for name in TEACHER_GRIDS:
        by_image, by_prompt, both = (
            torch.tensor(row[part][name]) for part in ("teachers", "instruction", "importance")
        )
        assert by_image.shape == by_prompt.shape == both.shape == (4, 4)
        for part in (by_image, by_prompt, both):
            torch.testing.assert_close(part.sum(), torch.tensor(1.0))
        torch.testing.assert_close((16 * by_image + 6 * by_prompt) / 22, both)
        assert (by_image - by_prompt).abs().max() > 1e-3


def test_without_a_question_only_the_teachers_score(stage_folder, image, tmp_path):
    (row,) = importance_figure(stage_folder, tmp_path, [image])["images"]
    assert (row["num_instruction_tokens"], row["instruction"]) == (0, {})
    assert row["importance"] == row["teachers"]


class BrightTeacher:
    """Gives one feature for bright cells and another for dark ones."""

    name, image_size, grid = "bright", 16, (4, 4, 32)
    bright, dark = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(8), torch.tensor([1.0, -1.0]).repeat(16)

    def __call__(self, images):
        cells = torch.nn.functional.avg_pool2d(images.float(), 4).mean(dim=1)  # (I, 4, 4)
        return torch.where(cells.unsqueeze(-1) > 240, self.bright, self.dark)


def make_bright_stage(student, processor):
    """A stage whose projections scale bright cells by four and map every word to the same direction."""
    objective = hawaii_objective.HawaiiObjective(make_options(), student, {"bright": BrightTeacher.grid})
    weight = (4 * BrightTeacher.bright + BrightTeacher.dark) / 32
    projection = torch.nn.Linear(32, 32, bias=False)
    projection.weight = torch.nn.Parameter(weight.expand(32, 32).clone())
    objective.fine_projections["0_bright"] = projection
    text = torch.nn.Linear(32, 32)
    torch.nn.init.zeros_(text.weight)
    torch.nn.init.ones_(text.bias)
    objective.text_projection = text
    return FinishedStage(None, student, processor, [BrightTeacher()], objective)


@pytest.fixture
def bright_stage():
    return make_bright_stage(make_model(vision={"num_teacher_adapters": 1}), make_processor())


@pytest.fixture
def tiled_stage():
    return make_bright_stage(make_tiled_model(vision={"num_teacher_adapters": 1}), make_tiled_processor())


def test_the_only_bright_cell_gets_the_scores(bright_stage):
    # Of 32 x 16 pixels; padded to a square, eight rows come above it, and its upper right corner is cell (1, 3).
    wide = Image.new("RGB", (32, 16), "black")
    wide.paste("white", (24, 0, 32, 8))
    square = bright_stage.processor.square_image(wide)
    (row,) = describe_importance(bright_stage, [square], ["wide.png"], QUESTIONS[:1])
    expected = torch.zeros(4, 4)
    expected[1, 3] = 1
    for part in ("teachers", "instruction", "importance"):
        torch.testing.assert_close(torch.tensor(row[part]["bright"]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SIZES)
def test_with_tiles_the_only_bright_cell_gets_the_scores_of_its_tile(tiled_stage, kind):
    rows, columns = CELLS[kind]
    for cell in [(0, 0), (rows - 1, columns - 1), (1, 3), (1, columns // 2)]:  # beside a tile's border, too
        picture = mark_cell(SIZES[kind], *cell)
        assert shown_picture(tiled_stage, picture).tobytes() == picture.tobytes()
        (row,) = describe_importance(tiled_stage, [picture], [""], QUESTIONS[:1])
        shares = torch.tensor(row["importance"]["bright"])
        assert shares.shape == (rows, columns)
        assert divmod(int(shares.argmax()), columns) == cell
        torch.testing.assert_close(shares.max(), torch.tensor(1.0), rtol=0, atol=1e-5)
        # The other cells of this tile have nothing; a black tile has even shares.
        others = shares.flatten().sort(descending=True).values[1:]
        assert ((others < 1e-5) | ((others - 1 / 16).abs() < 1e-5)).all()


def test_with_tiles_the_scores_equal_those_of_training(stage_folder, tmp_path, monkeypatch):
    stage = load_stage(stage_folder)
    stage.student = make_tiled_model(vision={"num_teacher_adapters": len(TEACHER_GRIDS)})
    stage.processor = make_tiled_processor()
    records = [set_question(make_record(number), question) for number, question in enumerate(QUESTIONS)]
    batch = make_batch(tmp_path, records, stage.processor)
    used, token_importance = [], hawaii_objective.token_importance
    monkeypatch.setattr(
        hawaii_objective, "token_importance", lambda *args: used.append(token_importance(*args)) or used[-1]
    )
    stage.objective(stage.student, [teacher(batch["teacher_images"]) for teacher in stage.teachers], batch)
    (expected,) = used  # (T, N, m)
    pictures = [Image.open(tmp_path / "images" / record["image"]).convert("RGB") for record in records]
    rows = describe_importance(stage, pictures, [""] * len(records), QUESTIONS)
    maps = stage.processor.image_processor.assemble_maps(expected.transpose(1, 2), batch["image_sizes"])
    assert len(expected) > len(rows) == len(maps)
    for row, shares in zip(rows, maps):
        for index, name in enumerate(TEACHER_GRIDS):
            torch.testing.assert_close(torch.tensor(row["importance"][name]), shares[..., index])


def test_a_square_across_a_border_is_bright_on_both_sides(tiled_stage):
    picture = Image.new("RGB", (32, 16))
    picture.paste("white", (12, 4, 20, 8))
    (row,) = describe_importance(tiled_stage, [picture], [""], [""])
    expected = torch.zeros(4, 8)
    expected[1, 3] = expected[1, 4] = 1
    torch.testing.assert_close(torch.tensor(row["teachers"]["bright"]), expected, rtol=0, atol=1e-5)


def test_pictures_with_other_grids_have_the_maps_that_they_have_alone(tiled_stage):
    pictures = [make_image(seed, *size) for seed, size in enumerate(SIZES.values())]
    questions = ["", *QUESTIONS, "", ""]
    rows = describe_importance(tiled_stage, pictures, list(SIZES), questions)
    for picture, question, row in zip(pictures, questions, rows):
        (alone,) = describe_importance(tiled_stage, [picture], [row["image"]], [question])
        assert (row["image"], row["num_instruction_tokens"]) == (alone["image"], alone["num_instruction_tokens"])
        for part in ("teachers", "instruction", "importance"):
            assert row[part].keys() == alone[part].keys()
            for name, shares in row[part].items():
                torch.testing.assert_close(torch.tensor(shares), torch.tensor(alone[part][name]))


def test_each_tile_of_a_picture_is_scored_by_its_question(tiled_stage):
    squares = [[make_image(seed) for seed in range(number)] for number in (1, 3)]
    _, by_prompt, num_tokens = importance_parts(tiled_stage, squares, QUESTIONS)
    assert by_prompt.shape == (4, 1, 16) and num_tokens.tolist() == [6, 5]
    torch.testing.assert_close(by_prompt.sum(dim=-1)[:, 0], torch.tensor([6.0, 5.0, 5.0, 5.0]))  # one for each word


def test_a_figure_of_pictures_with_other_grids_has_the_extent_of_each(tiled_stage):
    pictures = [make_image(seed, *size) for seed, size in enumerate(SIZES.values())]
    rows = describe_importance(tiled_stage, pictures, list(SIZES), [QUESTIONS[0], "", "", "", QUESTIONS[1]])
    shown = [shown_picture(tiled_stage, picture) for picture in pictures]
    figure = draw_importance({"teachers": ["bright"], "images": rows}, shown)
    for index, (width, height) in enumerate(SIZES.values()):
        first, second, *_ = figure.axes[3 * index : 3 * index + 3]
        extent = [0, width / max(width, height), 0, height / max(width, height)]
        assert [image.get_extent() for image in (*first.get_images(), *second.get_images())] == [extent] * 3
        assert second.get_images()[1].get_array().shape == tuple(CELLS[list(SIZES)[index]])
    check_labels(figure)


def test_the_map_covers_the_matching_part_of_the_image(bright_stage):
    shares = [[0.0] * 4 for _ in range(4)]
    shares[1][3] = 1.0
    row = {"image": "i", "question": "", "instruction": {}, "teachers": {"bright": shares}}
    figure = draw_importance({"teachers": ["bright"], "images": [row]}, [make_image(0)])
    picture, overlay = figure.axes[1].get_images()
    assert picture.get_extent() == overlay.get_extent() == [0, 1, 0, 1]
    assert picture.origin == overlay.origin == "upper"
    assert overlay.get_array().argmax() == 1 * 4 + 3


def test_a_row_for_each_image_and_a_panel_for_each_teacher_and_the_instruction(stage_folder, image, tmp_path):
    results = importance_figure(stage_folder, tmp_path, [image, image], [QUESTIONS[0], ""])
    figure = draw_importance(results, [make_image(0)] * 2)
    assert [axis.get_title() for axis in figure.axes[:4]] == ["image", "vit", "convnext", "instruction"]
    assert [len(axis.get_images()) for axis in figure.axes if axis.get_visible()] == [1, 2, 2, 2, 1, 2, 2]
    assert figure.axes[0].get_xlabel().replace("\n", " ") == QUESTIONS[0]
    mean = torch.tensor(list(results["images"][0]["instruction"].values())).mean(dim=0)
    assert figure.axes[3].get_xlabel() == f"{mean.min() * 16:.1f} to {mean.max() * 16:.1f} × mean"
    with Image.open(tmp_path / "importance.png") as png:
        png.load()
        assert (png.format, min(png.size) > 600) == ("PNG", True)


@pytest.mark.parametrize("teachers", [["clip"], ["clip", "convnext", "eva02", "pix2struct", "sam"]])
def test_labels_do_not_overlap_however_long_the_question(teachers):
    shares = {name: torch.rand(24, 24).softmax(0).tolist() for name in teachers}
    question = "what is written on the sign behind the second of the three people from the left? " * 4
    row = {"image": "i", "question": question, "teachers": shares, "instruction": shares}
    figure = draw_importance({"teachers": teachers, "images": [row] * 3}, [make_image(0)] * 3)
    check_labels(figure)


def save_turned(picture, path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def save_transparent(picture, path):
    picture = picture.convert("RGBA")
    picture.putalpha(255)
    picture.save(path)


SAVE = {"turned": save_turned, "transparent": save_transparent, "palette": lambda picture, path: picture.save(path)}


@pytest.mark.parametrize("kind", SAVE)
def test_an_image_is_opened_like_in_training(stage_folder, tmp_path, kind):
    picture = make_image(5, 16, 10)
    if kind == "palette":
        picture = picture.quantize(16)
    SAVE[kind](picture, tmp_path / "other.png")
    picture.convert("RGB").save(tmp_path / "plain.png")
    plain, other = importance_figure(
        stage_folder, tmp_path, [str(tmp_path / "plain.png"), str(tmp_path / "other.png")]
    )["images"]
    assert plain["teachers"] == other["teachers"]


@pytest.mark.parametrize(
    "settings",
    [{"objective": "radio"}, {"token_scoring": False}, {"distillation": ["coarse"]}],
    ids=["radio", "no scoring", "coarse alone"],
)
def test_the_error_names_a_run_without_token_scoring(teacher_folders, image, tmp_path, settings):
    save_stage(tmp_path / "model", teacher_folders, **settings)
    with pytest.raises(
        ValueError, match=r"model was trained without token scoring \(objective \w+\), so its tokens have no"
    ):
        importance_figure(tmp_path / "model", tmp_path, [image])


def test_a_question_is_refused_if_the_chat_template_omits_it(teacher_folders, image, tmp_path):
    save_stage(tmp_path / "model", teacher_folders, chat_template="plain")
    importance_figure(tmp_path / "model", tmp_path, [image])
    with pytest.raises(
        ValueError, match="chat template of the stage omits the user's text, so there is no instruction"
    ):
        importance_figure(tmp_path / "model", tmp_path, [image], QUESTIONS[:1])


def test_an_encoder_has_no_instruction(teacher_folders, image, tmp_path):
    changes = {"max_steps": 1, "stages": {"distill": {}}}
    train(str(write_encoder_recipe(tmp_path, teacher_folders, **changes)))
    results = importance_figure(tmp_path / "run", tmp_path / "figures", [image])
    assert results["images"][0]["instruction"] == {} and list(results["images"][0]["importance"]) == list(
        TEACHER_GRIDS
    )
    with pytest.raises(
        ValueError, match=r"distill/model was trained without a language model, so .*; remove --question"
    ):
        importance_figure(tmp_path / "run", tmp_path / "figures", [image], QUESTIONS[:1])


def test_the_numbers_of_images_and_questions_must_agree(stage_folder, image, tmp_path):
    with pytest.raises(ValueError, match="2 images but 1 questions; give one --question per --image"):
        importance_figure(stage_folder, tmp_path, [image, image], QUESTIONS[:1])


def test_the_error_without_matplotlib_names_the_installation_command(stage_folder, image, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="Figures need matplotlib: pip install matplotlib"):
        importance_figure(stage_folder, tmp_path, [image])


def test_missing_images_and_runs_are_one_sentence(stage_folder, image, tmp_path, capsys):
    words = ["figures", "importance", "--output_dir", str(tmp_path)]
    assert main([*words, str(stage_folder), "--image", "nowhere.png"]) == 2
    assert capsys.readouterr().err == "hawaii figures: There is no image nowhere.png.\n"
    assert main([*words, str(tmp_path / "run"), "--image", image]) == 2
    assert capsys.readouterr().err.endswith("is not a run of `hawaii train`: there is no such folder.\n")
