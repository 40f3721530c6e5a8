"""The map of adapters: what the encoder receives, which adapters act, and where they are drawn."""

import re

import pytest
import torch
from PIL import Image

from hawaii.drawing import style
from hawaii.hub_cards.space.hawaii_space.drawing import COLORS, draw_importance, draw_routing
from hawaii.hub_cards.space.hawaii_space.routing_map import (
    BankRouting,
    RoutingMap,
    count_adapters,
    map_routing,
    name_adapters,
)
from hawaii.tests.tiny.models import make_config, make_model, make_processor
from hawaii.tests.tiny.training import make_image


NAMES = {"teacher": ["a", "b", "c"], "general": ["adapter 0", "adapter 1", "adapter 2"]}


def make_map(chosen, num_adapters=2, size=8, patch_size=4):
    chosen = torch.tensor(chosen)
    bank = BankRouting([f"<{index}>" for index in range(num_adapters)], chosen, torch.full(chosen.shape, 0.75))
    return RoutingMap(Image.new("RGB", (size, size)), patch_size, {"general": bank})


def patches_of(html):
    """Horizontal and vertical centre, colour and note of each patch."""
    pattern = (
        r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="[\d.]+" fill="(#\w+)" stroke[^>]*><title>(.*?)<'
    )
    found = re.findall(pattern, html)
    return [(float(x) + float(w) / 2, float(y) + float(w) / 2, color, note) for x, y, w, color, note in found]


@pytest.mark.parametrize("vision", [{}, {"has_class_token": False}], ids=["class token", "patches only"])
def test_the_adapters_are_the_most_likely_ones_of_the_patches(vision):
    model, processor, image = make_model(vision=vision), make_processor(), make_image(3, 40, 20)
    pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = model.model.vision_tower(pixel_values, output_routing=True)
    routing = map_routing(model, processor, image, NAMES)
    for bank, part in zip(("teacher", "general"), outputs.router_probabilities[:, 0, -16:].split(3, dim=-1)):
        assert torch.equal(routing.banks[bank].chosen, part.argmax(dim=-1))
        assert torch.equal(routing.banks[bank].probabilities, part.amax(dim=-1))


@pytest.mark.parametrize("image_aspect_ratio", ["pad", "crop"])
def test_the_picture_is_what_the_encoder_receives(image_aspect_ratio):
    processor, image = make_processor(image_aspect_ratio=image_aspect_ratio), make_image(3, 40, 20)
    picture = map_routing(make_model(), processor, image, NAMES).picture
    expected = processor.image_processor.square_image(image, 16)
    assert picture.tobytes() == expected.tobytes()


def test_one_pass_of_the_encoder_is_enough(monkeypatch):
    model, passes = make_model(), []
    model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    routing = map_routing(model, make_processor(), make_image(3, 16, 16), NAMES)
    for layer in (1, 2, None):
        draw_routing(routing, "teacher", layer)
    assert len(passes) == 1


def test_a_patch_is_drawn_where_it_is():
    # Patches of 4 pixels leave a rest of one at the right and at the bottom.
    html = draw_routing(make_map([[0, 1, 1, 1]], size=9), "general", 1)
    assert 'viewBox="0 0 9 9"' in html
    assert [patch[:3] for patch in patches_of(html)] == [
        (2, 2, COLORS[0]),
        (6, 2, COLORS[1]),
        (2, 6, COLORS[1]),
        (6, 6, COLORS[1]),
    ]
    assert patches_of(html)[1][3] == "&lt;1&gt;, probability 0.75 (row 1, column 2)"
    assert "<1>" not in html  # names are text


def test_over_all_layers_the_most_chosen_adapter_is_drawn():
    routing = make_map([[0, 1, 2, 2], [0, 1, 2, 1], [0, 0, 2, 0]], num_adapters=3)
    patches = patches_of(draw_routing(routing, "general", None))
    assert [color for *_, color, _ in patches] == [COLORS[0], COLORS[1], COLORS[2], COLORS[0]]  # the first of three
    assert [note.split(" (")[0].split(", ")[1] for *_, note in patches] == [
        "in 3 of 3 layers",
        "in 2 of 3 layers",
        "in 3 of 3 layers",
        "in 1 of 3 layers",
    ]


def test_the_shares_are_those_of_the_shown_layers():
    routing = make_map([[0, 1, 1, 1], [0, 0, 0, 0]])
    assert routing.banks["general"].shares().tolist() == [[0.25, 0.75], [1, 0]]
    legends = [re.findall(r"<b>(.*?)</b>", draw_routing(routing, "general", layer)) for layer in (1, 2, None)]
    assert legends == [["25%", "75%"], ["100%", "0%"], ["62%", "38%"]]


def test_no_two_banks_share_a_color():
    routing = make_map([[0, 1, 1, 1]])
    routing.banks = {"teacher": routing.banks["general"], "general": routing.banks["general"]}
    colors = [{color for *_, color, _ in patches_of(draw_routing(routing, bank, 1))} for bank in routing.banks]
    assert colors[0].isdisjoint(colors[1])


def test_adapters_have_the_names_of_the_teachers_if_they_are_known():
    numbers = count_adapters(make_config(vision={"num_teacher_adapters": 2, "num_general_adapters": 1}).vision_config)
    assert numbers == {"teacher": 2, "general": 1}
    facts = {"stages": {"pretrain": {"teachers": {}}, "finetune": {"teachers": {"vit": {}, "sam": {}}}}}
    assert name_adapters(numbers, facts) == {"teacher": ["vit", "sam"], "general": ["adapter 0"]}
    assert name_adapters(numbers, {}) == {"teacher": ["adapter 0", "adapter 1"], "general": ["adapter 0"]}


@pytest.mark.parametrize(
    "facts",
    [
        {"stages": {"a": {}}},
        {"stages": {"a": None}},
        {"stages": {"a": {"teachers": "vit"}}},
        {"stages": []},
        {"stages": None},
        [],
    ],
)
def test_facts_of_an_unknown_shape_count_as_not_known(facts):
    assert name_adapters({"teacher": 3}, facts) == {"teacher": ["adapter 0", "adapter 1", "adapter 2"]}


def test_the_palette_is_that_of_the_figures():
    assert COLORS == style.COLORS


def test_important_patches_are_light():
    html = draw_importance(Image.new("RGB", (8, 8)), {"<vit>": [[0.1, 0.2], [0.3, 0.4]]})
    darkness = [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', html)]
    assert darkness == pytest.approx([0.85, 0.567, 0.283, 0], abs=1e-3)
    assert re.findall(r"<title>(.*?) ×", html) == ["0.40", "0.80", "1.20", "1.60"]
    assert "<vit>" not in html
    assert "&lt;vit&gt;" in html
