"""Tests of MoVE-KD's Figures 2 and 5."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from hawaii.__main__ import main
from hawaii.evaluation.checkpoint import checkpoint_folder
from hawaii.figures import attention
from hawaii.figures.attention import attention_figure, draw_attention, find_start, patch_attention
from hawaii.figures.published_encoder import load_published_encoder
from hawaii.files.manifest import write_manifest
from hawaii.files.user_error import UserError
from hawaii.tests.figure_layout import check_labels
from hawaii.tests.tiny.encoders import make_encoder_processor, save_encoder_folder, write_encoder_recipe
from hawaii.tests.tiny.llava import SIGLIP, make_llava
from hawaii.tests.tiny.models import fill, make_model, save_tiled_folder
from hawaii.tests.tiny.students import save_clip_folder
from hawaii.tests.tiny.tiled_models import CELLS, SIZES
from hawaii.tests.tiny.training import make_image, save_image_processor
from hawaii.training.train import train


ONE_STEP = {"max_steps": 1, "logging_steps": 1, "stages": {"distill": {}}, "save_strategy": "no"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of three layers; a student that starts from it has two."""
    return save_clip_folder(tmp_path_factory.mktemp("start") / "tiny-clip")


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher_folders, clip):
    """A run of one step, with large steps so that the student differs from its start."""
    changes = {"vision_tower": clip, "vision_config": {"lora_rank": 4, "router_hidden_size": 8}, "learning_rate": 0.1}
    folder = tmp_path_factory.mktemp("run")
    train(str(write_encoder_recipe(folder, teacher_folders, **ONE_STEP, **changes)))
    return folder / "run"


@pytest.fixture(scope="module")
def random_run(tmp_path_factory, teacher_folders):
    """A run whose encoder started from random weights."""
    folder = tmp_path_factory.mktemp("random")
    train(str(write_encoder_recipe(folder, teacher_folders, **ONE_STEP)))
    return folder / "run"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "picture.png"
    make_image(3, 16, 10).save(path)
    return str(path)


def naive_attention(encoder, pixel_values, layer):
    """The attention weights of a layer, `(num_tokens, num_tokens)`, in double precision, head by head."""
    block = encoder.layers[layer - 1]
    hidden = encoder(pixel_values, output_hidden_states=True).hidden_states[layer - 1][0]
    hidden = block.layer_norm1(hidden).double()
    weight, bias = block.attention.qkv.weight.double(), block.attention.qkv.bias.double()
    queries, keys, _ = (hidden @ weight.T + bias).chunk(3, dim=-1)
    width = block.attention.head_dim
    heads = []
    for start in range(0, queries.shape[-1], width):
        query, key = queries[:, start : start + width], keys[:, start : start + width]
        rows = [torch.exp(query[token] @ key.T / width**0.5) for token in range(len(query))]
        heads.append(torch.stack([row / row.sum() for row in rows]))
    return sum(heads) / len(heads)


@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_the_maps_are_the_attention_of_the_class_token(run, clip, image, tmp_path, layer):
    results = attention_figure(run, tmp_path / "figures", [image], layer=layer)
    assert json.loads((tmp_path / "figures/attention.json").read_text()) == results
    student, processor = load_published_encoder(run / "hub")
    pixel_values = processor.image_processor([Image.open(image)], return_tensors="pt")["pixel_values"]
    expected = naive_attention(student, pixel_values, layer)[0, 1:].view(4, 4)
    found = torch.tensor(results["images"][0]["student"], dtype=torch.double)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)

    original = CLIPVisionModel.from_pretrained(clip, attn_implementation="eager")
    attentions = original(pixel_values, output_attentions=True).attentions[layer - 1]  # (1, 4 heads, 17, 17)
    at_start = torch.tensor(results["images"][0]["start"])
    torch.testing.assert_close(at_start, attentions[0].mean(dim=0)[0, 1:].view(4, 4))
    assert 0 < at_start.sum() < 1
    assert (found - at_start).abs().max() > 1e-4


def test_the_default_layer_is_the_last_of_the_student(run, image, tmp_path):
    default = attention_figure(run, tmp_path, [image])
    assert default == attention_figure(run, tmp_path, [image], layer=2)
    assert default["layer"] == 2


def test_a_large_image_is_drawn_small(run, tmp_path, monkeypatch):
    """In its own size, matplotlib would draw 100 million pixels."""
    sizes = []

    def draw(results, squares):
        sizes.extend(square.size for square in squares)
        return draw_attention(results, squares)

    monkeypatch.setattr(attention, "draw_attention", draw)
    make_image(3, 10_000, 10).save(tmp_path / "strip.png")
    make_image(3, 16, 10).save(tmp_path / "small.png")
    attention_figure(run, tmp_path, [str(tmp_path / "strip.png"), str(tmp_path / "small.png")])
    assert sizes == [(600, 600), (16, 16)]


def test_the_start_of_a_run_is_found_from_its_published_folder_and_given_for_a_copy(run, clip, image, tmp_path):
    expected = attention_figure(run, tmp_path / "figures", [image])
    assert expected["encoders"]["start"] == {"name": clip, "query": "class token", "covered": 1.0}
    copy = shutil.copytree(run / "hub", tmp_path / "copy")
    found = [attention_figure(run / "hub", tmp_path, [image]), attention_figure(copy, tmp_path, [image], start=clip)]
    assert [each["images"] for each in found] == [expected["images"]] * 2
    with pytest.raises(UserError, match="copy is not in the output_dir of a run, so .*; name it with --start"):
        attention_figure(copy, tmp_path, [image])


def test_a_student_without_adapters_that_act_attends_as_its_start(clip, image, tmp_path):
    """A new student's adapters add nothing."""
    assert main(["convert", "clip", clip, str(tmp_path / "student")]) == 0
    (row,) = attention_figure(tmp_path / "student", tmp_path, [image], start=clip)["images"]
    assert row["student"] == row["start"]


def test_a_model_is_drawn_like_its_encoder_and_a_start_may_be_a_hawaii(hub_folder, image, tmp_path):
    encoder = save_encoder_folder(tmp_path / "encoder")
    results = attention_figure(hub_folder, tmp_path, [image], start=str(tmp_path / "encoder"))
    student, processor = load_published_encoder(checkpoint_folder(hub_folder))
    expected = patch_attention(student, processor, Image.open(image), 2).tolist()
    assert results["images"][0]["student"] == expected
    own = make_encoder_processor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    expected = patch_attention(encoder, own, Image.open(image), 2)
    torch.testing.assert_close(torch.tensor(results["images"][0]["start"], dtype=torch.double), expected)


def test_a_run_from_random_weights_shows_the_student_alone(random_run, image, tmp_path, capsys):
    results = attention_figure(random_run, tmp_path, [image])
    assert list(results["encoders"]) == ["student"]
    assert results["images"][0].keys() == {"image", "student"}
    printed = capsys.readouterr().out
    assert (
        f"The encoder of {random_run} started from random weights, so the figure shows the student alone." in printed
    )


@torch.no_grad()
def test_without_a_class_token_each_patch_has_the_mean_attention_that_it_receives(image, tmp_path):
    fields = {name: value for name, value in SIGLIP.items() if name != "model_type"}
    siglip = fill(SiglipVisionModel(SiglipVisionConfig(**fields)))
    siglip.save_pretrained(tmp_path / "siglip")
    save_image_processor(tmp_path / "siglip", 18)
    assert main(["convert", "clip", str(tmp_path / "siglip"), str(tmp_path / "student")]) == 0
    results = attention_figure(tmp_path / "student", tmp_path, [image], start=str(tmp_path / "siglip"))
    # 4 x 4 patches of 4 pixels in 18.
    assert results["encoders"]["student"] == {"name": "student", "query": "mean of all patches", "covered": 16 / 18}
    student, processor = load_published_encoder(tmp_path / "student")
    pixel_values = processor.image_processor([Image.open(image)], return_tensors="pt")["pixel_values"]
    expected = naive_attention(student, pixel_values, 3).mean(dim=0).view(4, 4)
    for key in ("start", "student"):
        found = torch.tensor(results["images"][0][key], dtype=torch.double)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found.sum().item(), 1.0)
    figure = draw_attention(results, [make_image(0)])
    picture, overlay = figure.axes[1].get_images()
    assert picture.get_extent() == [0, 1, 0, 1]
    assert overlay.get_extent() == [0, 16 / 18, 1 - 16 / 18, 1]
    assert figure.axes[1].get_title() == "siglip\nmean of all patches, layer 3"


@torch.no_grad()
def test_with_tiles_each_map_has_the_attention_within_the_tiles_of_the_whole_picture(tmp_path, monkeypatch):
    folder, drawn = save_tiled_folder(tmp_path / "hub"), []
    start = save_encoder_folder(tmp_path / "start")

    def draw(results, pictures):
        drawn.extend([*pictures, draw_attention(results, pictures)])
        return drawn[-1]

    monkeypatch.setattr(attention, "draw_attention", draw)
    images = [str(tmp_path / f"{kind}.png") for kind in SIZES]
    for seed, (path, size) in enumerate(zip(images, SIZES.values())):
        make_image(seed, *size).save(path)
    results = attention_figure(folder, tmp_path, images, start=str(tmp_path / "start"))
    student, processor = load_published_encoder(folder)
    own = make_encoder_processor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    *pictures, figure = drawn
    for index, (kind, path, row) in enumerate(zip(SIZES, images, results["images"])):
        assert pictures[index].tobytes() == Image.open(path).tobytes()
        squares = processor.image_processor.square_images(Image.open(path))
        of_student = processor.image_processor([Image.open(path)], return_tensors="pt")["pixel_values"]
        of_start = own.image_processor(squares, return_tensors="pt")["pixel_values"]
        rows, columns = CELLS[kind]
        for key, encoder, pixel_values in (("student", student, of_student), ("start", start, of_start)):
            found = torch.tensor(row[key], dtype=torch.double)
            assert found.shape == (rows, columns)
            tile = naive_attention(encoder, pixel_values[1:2], 2)[0, 1:].view(4, 4)  # the upper left one
            padding = {"padded": 1, "strip": 1}.get(kind, 0)
            torch.testing.assert_close(found[: 4 - padding, :4][:rows], tile[padding:][:rows], rtol=1e-4, atol=1e-7)
        extents = [image.get_extent() for axis in figure.axes[3 * index :][:3] for image in axis.get_images()]
        longest = max(SIZES[kind])
        assert extents == [[0, SIZES[kind][0] / longest, 0, SIZES[kind][1] / longest]] * 5
    assert {encoder["covered"] for encoder in results["encoders"].values()} == {1.0}
    check_labels(figure)


def test_a_start_with_other_patches_is_refused_for_a_student_with_tiles(tmp_path, image):
    folder = save_tiled_folder(tmp_path / "hub")
    save_encoder_folder(tmp_path / "start", patch_size=8)
    with pytest.raises(UserError, match="start has 2 x 2 patches in a tile but the student 4 x 4; name the encoder"):
        attention_figure(folder, tmp_path, [image], start=str(tmp_path / "start"))


def make_results(side=24, name="clip-vit-large-patch14-336", num_images=2):
    """The numbers of a figure with the highest attention at row 1 and column 3."""
    grid = [[1.0] * side for _ in range(side)]
    grid[1][3] = 5.0
    encoders = {
        key: {"name": value, "query": "class token", "covered": 1.0}
        for key, value in (("start", f"somewhere/{name}"), ("student", "student"))
    }
    rows = [{"image": "i", "start": grid, "student": grid}] * num_images
    return {"layer": 23, "encoders": encoders, "images": rows}


def test_a_row_for_each_image_and_a_panel_for_each_encoder():
    figure = draw_attention(make_results(side=4), [make_image(0)] * 2)
    titles = ["image", "clip-vit-large-patch14-336\nclass token, layer 23", "student\nclass token, layer 23"]
    assert [axis.get_title() for axis in figure.axes] == [*titles, "", "", ""]
    assert [len(axis.get_images()) for axis in figure.axes] == [1, 2, 2] * 2
    assert figure.axes[1].get_images()[1].get_array().argmax() == 1 * 4 + 3
    assert figure.axes[1].get_xlabel() == "0.8 to 4.0 × mean"


@pytest.mark.parametrize("name", ["clip", "a-clip-with-a-very-long-name-and-more"])
def test_labels_do_not_overlap(name):
    figure = draw_attention(make_results(name=name, num_images=3), [make_image(0)] * 3)
    check_labels(figure)


@pytest.mark.parametrize("layer", [0, 3])
def test_the_error_names_the_layers_of_the_student(run, image, tmp_path, layer):
    with pytest.raises(UserError, match=rf"--layer is {layer}, but the encoder of .*run has layers 1 to 2\."):
        attention_figure(run, tmp_path, [image], layer=layer)


def test_the_error_names_a_start_with_fewer_layers(hub_folder, image, tmp_path):
    make_model(vision={"num_hidden_layers": 1}).model.vision_tower.save_pretrained(tmp_path / "short")
    with pytest.raises(UserError, match="short has 1 layers; choose one of them instead of layer 2"):
        attention_figure(hub_folder, tmp_path, [image], start=str(tmp_path / "short"))


def write_run(folder: Path, options: dict) -> Path:
    """A run of which only the options of its first stage are left."""
    (folder / "first/model").mkdir(parents=True)
    (folder / "train_results.json").write_text(json.dumps({"stages": {"first": {}, "second": {}}}))
    write_manifest(folder / "first/model", {"options": options})
    return folder


def test_the_start_is_that_of_the_first_stage_and_unchanged(tmp_path, clip, run):
    assert find_start(write_run(tmp_path / "hub_id", {"vision_tower": "openai/clip"})) == "openai/clip"
    assert find_start(run) == clip
    moved = shutil.copytree(clip, tmp_path / "clip")
    there = {"path": str(moved), "content_hash": "of another file"}
    for name in ("changed", "gone"):
        with pytest.raises(UserError, match=f"{name} started from the encoder {moved}, which is missing or has chan"):
            find_start(write_run(tmp_path / name, {"vision_tower": there}))
        shutil.rmtree(moved, ignore_errors=True)


def test_a_run_that_does_not_name_its_encoder_needs_its_name(tmp_path):
    with pytest.raises(UserError, match="llava started from a LLaVA; name the CLIP .* with --start"):
        find_start(write_run(tmp_path / "llava", {"llava": "llava-hf/llava-1.5-7b-hf"}))
    old = write_run(tmp_path / "old", {})
    (old / "first/model/manifest.json").unlink()
    with pytest.raises(UserError, match=r"lacks manifest\.json, .*\. Name the encoder .* with --start\."):
        find_start(old)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["{run}", "--image", "nowhere.png"], "There is no image nowhere.png."),
        (["{run}", "--image", "{image}", "--start", "no/clip"], "no/clip is no CLIP checkpoint: "),
        (["no/run", "--image", "{image}", "--start", "no/clip"], "no/run is not a checkpoint: "),
    ],
)
def test_what_is_missing_is_one_sentence(run, image, tmp_path, capsys, words, problem):
    words = [word.format(run=run, image=image) for word in words]
    assert main(["figures", "attention", *words, "--output_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"hawaii figures: {problem}")


def test_another_model_is_one_sentence(clip, image, tmp_path, capsys):
    make_llava().save_pretrained(tmp_path / "llava")
    command = ["figures", "attention", str(tmp_path / "llava"), "--image", image, "--start", str(clip)]
    assert main([*command, "--output_dir", str(tmp_path / "figures")]) == 2
    sentence = f"{tmp_path / 'llava'} contains a llava; the figure needs a HAWAII, or the encoder of one."
    assert capsys.readouterr().err.splitlines()[-1] == f"hawaii figures: {sentence}"
