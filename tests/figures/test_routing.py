"""Tests of Figure 6."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from hawaii.drawing.style import COLORS
from hawaii.figures import routing as module
from hawaii.figures.routing import adapter_names, draw_routing, routing_figure, routing_shares
from hawaii.files.run_contents import FACTS_FILE
from hawaii.tests.tiny.models import FACTS, make_model, make_processor
from hawaii.tests.tiny.tiled_models import SIZES, make_tiled_model, make_tiled_processor
from hawaii.tests.tiny.training import make_image


# Teacher-specific and general adapter, in the first and the second layer.
CHOSEN = [(2, 0), (1, 2)]


def fix_routers(model, chosen):
    """Makes each router choose a fixed adapter."""
    for layer, choices in zip(model.model.vision_tower.layers, chosen):
        routing = layer.feed_forward.routing
        for router, choice in zip((routing.teacher_router, routing.general_router), choices):
            torch.nn.init.zeros_(router.score.weight)
            torch.nn.init.zeros_(router.score.bias)
            with torch.no_grad():
                router.score.bias[choice] = 1


@pytest.fixture
def folder(tmp_path):
    """A published folder with fixed routers and training facts."""
    model = make_model()
    fix_routers(model, CHOSEN)
    model.save_pretrained(tmp_path / "hub")
    make_processor().save_pretrained(tmp_path / "hub")
    facts = {**FACTS, "stages": {"finetune": {**FACTS["stages"]["finetune"]}}}
    facts["stages"]["finetune"]["teachers"] = {name: {} for name in ("vit", "convnext", "sam")}
    (tmp_path / "hub" / FACTS_FILE).write_text(json.dumps(facts))
    return tmp_path / "hub"


@pytest.fixture
def pictures(tmp_path):
    """Folders with three images and with one."""
    for name, number in (("photos", 3), ("drawings", 1)):
        (tmp_path / name).mkdir()
        for index in range(number):
            make_image(index, 16 + index, 16).save(tmp_path / name / f"{index}.png")
    return [f"{name}={tmp_path / name}" for name in ("photos", "drawings")]


def test_fixed_routers_give_the_expected_shares(folder, pictures, tmp_path):
    results = routing_figure(folder, tmp_path / "figures", images=pictures)
    assert results["adapters"] == {
        "teacher": ["vit", "convnext", "sam"],
        "general": ["adapter 0", "adapter 1", "adapter 2"],
    }
    expected = {"teacher": [[0, 0, 1], [0, 1, 0]], "general": [[1, 0, 0], [0, 0, 1]]}
    assert results["benchmarks"] == {
        "photos": {"num_images": 3, **expected},
        "drawings": {"num_images": 1, **expected},
    }
    assert json.loads((tmp_path / "figures" / "routing.json").read_text()) == results
    with Image.open(tmp_path / "figures" / "routing.png") as figure:
        figure.load()
        assert (figure.format, min(figure.size) > 600) == ("PNG", True)


def test_an_encoder_has_the_same_figure_as_its_model(folder, pictures, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    model.model.vision_tower.save_pretrained(tmp_path / "encoder")
    make_processor().image_processor.save_pretrained(tmp_path / "encoder")
    of_model = routing_figure(folder, tmp_path / "figures", images=pictures)
    of_encoder = routing_figure(tmp_path / "encoder", tmp_path / "more", images=pictures)
    assert of_encoder["benchmarks"] == of_model["benchmarks"]
    assert of_encoder["adapters"]["teacher"] == ["adapter 0", "adapter 1", "adapter 2"]


def count_one_by_one(model, images):
    """Counts the most probable adapter of each bank in pure Python."""
    processor, vision = make_processor(), model.config.vision_config
    counts = [[0] * 6 for _ in range(vision.num_hidden_layers)]
    for image in images:
        pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
        probabilities = model.model.vision_tower(pixel_values, output_routing=True).router_probabilities
        for layer, tokens in enumerate(probabilities[:, 0].tolist()):
            for token in tokens[1:]:  # the class token comes first
                counts[layer][token.index(max(token[:3]))] += 1
                counts[layer][3 + token[3:].index(max(token[3:]))] += 1
    return [[count / (len(images) * vision.num_patches) for count in row] for row in counts]


def test_shares_equal_a_count_of_single_patches_for_every_batch_size(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    model, images = make_model(), [make_image(seed, 16, 16 + seed) for seed in range(3)]
    shares, num_images = routing_shares(model.model.vision_tower, make_processor(), iter(images))
    counted = torch.tensor(count_one_by_one(model, images), dtype=torch.float64)
    assert num_images == 3
    assert torch.equal(torch.cat([shares["teacher"], shares["general"]], dim=1), counted)
    assert ((counted > 0) & (counted < 1)).sum() > 6  # the routers do not all agree
    for share in shares.values():
        torch.testing.assert_close(share.sum(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("batch_size", [1, 12])
def test_with_tiles_the_patches_that_the_language_model_reads_are_counted(monkeypatch, batch_size):
    monkeypatch.setattr(module, "BATCH_SIZE", batch_size)
    model, processor = make_tiled_model(), make_tiled_processor()
    images = [make_image(seed, *size) for seed, size in enumerate(SIZES.values())]
    kept = {"wide": 48, "tall": 48, "square": 80, "padded": 16 + 6 * 8, "strip": 16 + 2 * 12}
    counts, encoder = torch.zeros(2, 6), model.model.vision_tower
    for kind, image in zip(SIZES, images):
        pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            patches = encoder(pixel_values, output_routing=True).router_probabilities[:, :, 1:]  # (L, tiles, 16, 6)
        if kind == "padded":  # two rows of tiles, with one row of black cells above and below
            patches = torch.cat([patches[:, :1], patches[:, 1:3].roll(-4, 2), patches[:, 3:]], dim=1)
            patches = torch.cat([patches[:, 0], *(patches[:, tile, :12] for tile in range(1, 5))], dim=1)
        elif kind == "strip":  # one row of black cells above and below
            patches = torch.cat([patches[:, 0], *(patches[:, tile, 4:12] for tile in range(1, 4))], dim=1)
        else:
            patches = patches.flatten(1, 2)
        assert patches.shape[1] == kept[kind]
        for start in (0, 3):
            chosen = patches[..., start : start + 3].argmax(dim=-1)
            counts[:, start : start + 3] += torch.nn.functional.one_hot(chosen, 3).sum(dim=1)
    shares, num_images = routing_shares(encoder, processor, iter(images))
    assert num_images == 5
    found = torch.cat([shares["teacher"], shares["general"]], dim=1)
    assert torch.equal(found, counts.double() / sum(kept.values()))


def test_a_batch_has_at_most_its_number_of_squares(monkeypatch):
    """With up to five tiles per picture, 12 squares are two pictures."""
    monkeypatch.setattr(module, "BATCH_SIZE", 12)
    model, numbers = make_tiled_model(), []
    model.model.vision_tower.register_forward_pre_hook(lambda _, arguments: numbers.append(len(arguments[0])))
    images = [make_image(seed, 32, 32) for seed in range(3)]
    routing_shares(model.model.vision_tower, make_tiled_processor(), images)
    assert numbers == [10, 5]


def test_an_empty_bank_is_not_counted():
    model = make_model(vision={"num_teacher_adapters": 0})
    shares, _ = routing_shares(model.model.vision_tower, make_processor(), [make_image(0)])
    assert {bank: share.shape for bank, share in shares.items()} == {"general": (2, 3)}


def test_adapters_of_unknown_teachers_are_numbered(hub_folder, folder):
    assert adapter_names(hub_folder)["teacher"] == ["adapter 0", "adapter 1", "adapter 2"]
    facts = json.loads((folder / FACTS_FILE).read_text())
    facts["stages"]["last"] = {**facts["stages"]["finetune"], "teachers": {}}  # trained without teachers
    (folder / FACTS_FILE).write_text(json.dumps(facts))
    assert adapter_names(folder)["teacher"] == ["vit", "convnext", "sam"]


@pytest.mark.parametrize("fields", [{"num_teacher_adapters": 0, "num_general_adapters": 0}, None])
def test_the_error_names_a_folder_without_adapters(hub_folder, pictures, tmp_path, fields):
    copy = tmp_path / "copy"
    shutil.copytree(hub_folder, copy)
    config = json.loads((copy / "config.json").read_text())
    if fields is None:
        config["model_type"] = "llava"
    else:
        config["vision_config"] |= fields
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="copy has no adapters to choose from; give a HAWAII with adapters"):
        routing_figure(copy, tmp_path / "figures", images=pictures)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "There are no images; give --tasks, --images or both"),
        ({"images": ["a=there", "a=here"]}, "Two benchmarks are named a"),
        ({"tasks": "pope, mme, pope"}, "The tasks list pope twice"),
        ({"tasks": "pope, mme", "images": ["mme=here"]}, "Two benchmarks are named mme"),
        ({"images": ["a=here"], "limit": 0}, "--limit is 0, but must be at least 1"),
        ({"images": ["here"]}, "--images is 'here'; it must be NAME=FOLDER"),
        ({"images": ["a=/nowhere"]}, "a has no images: there is no folder /nowhere"),
        ({"tasks": "easy_vqa"}, "easy_vqa has no questions"),
    ],
)
def test_invalid_arguments_are_named(hub_folder, tmp_path, options, problem):
    with pytest.raises(ValueError, match=problem):
        routing_figure(hub_folder, tmp_path, **options)


def test_the_error_without_matplotlib_names_the_installation_command(hub_folder, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="Figures need matplotlib: pip install matplotlib"):
        routing_figure(hub_folder, tmp_path, images=pictures)


def make_results(num_benchmarks, adapters, num_layers=4):
    shares = {bank: [[1 / len(names)] * len(names)] * num_layers for bank, names in adapters.items()}
    return {"adapters": adapters, "benchmarks": {f"task {index}": shares for index in range(num_benchmarks)}}


TEACHERS, GENERAL = ["clip", "convnext", "eva02", "pix2struct", "sam"], ["adapter 0", "adapter 1", "adapter 2"]


@pytest.mark.parametrize(
    ("num_benchmarks", "adapters"),
    [
        (1, {"teacher": TEACHERS[:3], "general": GENERAL}),
        (7, {"teacher": TEACHERS, "general": GENERAL}),
        (10, {"general": GENERAL}),
    ],
)
def test_there_is_a_panel_for_each_benchmark_and_bank_and_a_bar_for_each_layer(num_benchmarks, adapters):
    figure = draw_routing(make_results(num_benchmarks, adapters))
    assert len(figure.axes) == num_benchmarks * len(adapters)
    assert figure.get_figwidth() <= 7.2 + 1e-9
    panels = iter(figure.axes)
    for names in adapters.values():
        for index in range(num_benchmarks):
            panel = next(panels)
            assert panel.get_title() == f"task {index}"
            assert [bars.get_label() for bars in panel.containers] == names
            for layer in range(4):
                pieces = [bars.patches[layer] for bars in panel.containers]
                assert sum(piece.get_height() for piece in pieces) == pytest.approx(1)
                middles = [piece.get_y() + piece.get_height() / 2 for piece in pieces]
                assert middles == sorted(middles)  # stacked


def test_all_adapters_of_five_teachers_have_different_colours():
    figure = draw_routing(make_results(1, {"teacher": TEACHERS, "general": GENERAL}))
    colors = [bars.patches[0].get_facecolor() for panel in figure.axes for bars in panel.containers]
    assert len(set(colors)) == len(colors) == len(COLORS)


def test_the_labels_of_ten_benchmarks_with_five_teachers_do_not_overlap():
    results = make_results(10, {"teacher": TEACHERS, "general": GENERAL}, num_layers=23)
    names = ["textvqa_val", "mmbench_en_dev_static", "a_benchmark_with_a_very_long_name", *map(str, range(7))]
    results["benchmarks"] = dict(zip(names, results["benchmarks"].values()))
    figure = draw_routing(results)
    figure.draw_without_rendering()
    boxes = [panel.title.get_window_extent() for panel in figure.axes]
    boxes += [label.get_window_extent() for panel in figure.axes for label in panel.get_xticklabels()]
    boxes += [panel.get_legend().get_window_extent() for panel in figure.axes if panel.get_legend()]
    assert not [(i, j) for i, one in enumerate(boxes) for j, other in enumerate(boxes[:i]) if one.overlaps(other)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.slow
def test_the_figure_needs_only_the_published_folder(folder, pictures, tmp_path):
    program = (
        "import sys; sys.modules['hawaii.training'] = None\n"
        "from hawaii.__main__ import main\n"
        f"sys.exit(main(['figures', 'routing', {str(folder)!r}, '--output_dir', 'out', '--images', *{pictures!r}]))"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "Figure: out/routing.png\nNumbers: out/routing.json\n"
    assert json.loads((tmp_path / "out" / "routing.json").read_text())["benchmarks"]["photos"]["num_images"] == 3
