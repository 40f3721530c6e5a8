"""The page of a Space, started as on the Hub and used by visitors in a real browser."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hawaii.hub_cards.space.hawaii_space.drawing import COLORS
from hawaii.hub_cards.space.hawaii_space.pictures import LARGEST_FILE
from hawaii.tests.tiny.models import FACTS, save_hub_folder
from hawaii.tests.tiny.pages import TIMEOUT, ask, browser, served, upload
from hawaii.tests.tiny.training import make_image


pytestmark = pytest.mark.browser

SPACE = Path(__file__).parents[3] / "hub_cards/space"
# A Space has neither the package nor what training needs. Answers, and maps of one layer, take long while there is a
# file `slow`.
SLOW_STEP = 0.2  # seconds of a token
SLOW_MAP = 2  # seconds
START = f"""
import os, runpy, sys, time
for name in ("hawaii", "accelerate", "datasets", "evaluate", "omegaconf", "peft", "timm"):
    sys.modules[name] = None
sys.path.insert(0, "")
from transformers import GenerationMixin
prepare = GenerationMixin.prepare_inputs_for_generation
def prepare_slowly(*args, **kwargs):
    time.sleep({SLOW_STEP} if os.path.exists("slow") else 0)
    return prepare(*args, **kwargs)
GenerationMixin.prepare_inputs_for_generation = prepare_slowly
from hawaii_space.answerer import Answerer
draw = Answerer.draw_routing
def draw_slowly(self, routing, bank, layer, is_over_all):
    time.sleep({SLOW_MAP} if os.path.exists("slow") and routing is not None and not is_over_all else 0)
    return draw(self, routing, bank, layer, is_over_all)
Answerer.draw_routing = draw_slowly
runpy.run_path("app.py", run_name="__main__")
"""
TEACHERS = ["vit", "<img src=x onerror='document.title=1'>", "convnext"]
QUESTION = "what color is the shape ?"
QUESTIONS = [QUESTION, "is there a circle in the image ?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_hub_folder(tmp_path_factory.mktemp("published") / "hub")
    stage = {**FACTS["stages"]["finetune"], "teachers": dict.fromkeys(TEACHERS, {}), "question": QUESTION}
    (folder / "training.json").write_text(json.dumps({**FACTS, "stages": {"finetune": stage}}))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    make_image(3, 40, 20).save(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return (
        AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True),
        AutoProcessor.from_pretrained(folder, trust_remote_code=True),
    )


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return shutil.copytree(SPACE, tmp_path_factory.mktemp("uploaded") / "space")


@pytest.fixture
def slow(space):
    """A file: answers, and maps of one layer, take long as long as it exists."""
    file = space / "slow"
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def url(folder, space, uploads):
    environment = {"HAWAII_MODEL": str(folder), "HAWAII_REVISION": "", "PATH": "", "HOME": str(space.parent)}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(uploads)}
    with served(["-c", START], cwd=space, env=environment) as (url, process):
        yield url
    process.wait()
    assert [path for path in uploads.rglob("*") if path.is_file()] == []  # what visitors have uploaded is gone


@pytest.fixture(scope="module")
def visitors():
    with browser() as visitors:
        yield visitors
        assert visitors.requests
        assert visitors.foreign_hosts() == set()


@pytest.fixture
def page(visitors, url):
    with visitors.visit(url) as page:
        yield page


def generate(loaded, questions, image=None, answers=()):
    """The greedy answer to the last question, after the answers to those before it."""
    model, processor = loaded
    messages = []
    for number, question in enumerate(questions):
        if number:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[number - 1]}]})
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
    if image is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": Image.open(image)})
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, **options)
    length = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=256 - length)  # its positions
    return processor.decode(tokens[0, length:], skip_special_tokens=True).strip()


def chosen_adapters(loaded, picture):
    """Index of the chosen adapter, `(num_layers, side, side)`, by bank."""
    model, processor = loaded
    pixel_values = processor.image_processor([Image.open(picture)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        probabilities = model.model.vision_tower(pixel_values, output_routing=True).router_probabilities[:, 0, 1:]
    return {
        bank: part.argmax(dim=-1).unflatten(-1, (4, 4))
        for bank, part in zip(("teacher", "general"), probabilities.split(3, dim=-1))
    }


def bot(page):
    return page.locator("[data-testid=bot]")


def wait_for_answer(page, text, number=0):
    page.wait_for_function(
        "([text, number]) => document.querySelectorAll('[data-testid=bot]')[number]?.innerText.trim() === text",
        arg=[text, number],
    )


def wait_until_settled(page):
    """Waits until the answer has not grown for ten steps of slow generation."""
    shown, unchanged = None, 0
    while unchanged < 10:
        text = bot(page).first.inner_text()
        unchanged = unchanged + 1 if text == shown else 0
        shown = text
        page.wait_for_timeout(1000 * SLOW_STEP)


def colors_at_centres(page):
    """The colour that the page has at the centre of each patch, row by row."""
    return page.evaluate("""() => {
        const picture = document.querySelector("#adapters svg.picture");
        picture.scrollIntoView({block: "center"});
        const box = picture.getBoundingClientRect();
        const at = index => (index + 0.5) / 4;
        return [0, 1, 2, 3].map(row => [0, 1, 2, 3].map(column => document.elementFromPoint(
            box.left + at(column) * box.width, box.top + at(row) * box.height).getAttribute("fill")));
    }""")


def shows(page, colors):
    """Waits until the map has these colours; fails with those that it has."""
    deadline = time.monotonic() + TIMEOUT
    while (seen := colors_at_centres(page)) != colors and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert seen == colors


def test_answers_stream_and_equal_those_of_generate(page, loaded, picture, slow):
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")
    page.evaluate("""() => {
        window.seen = new Set();
        const look = () => document.querySelectorAll("[data-testid=bot]").forEach(bot => seen.add(bot.innerText));
        new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
    }""")
    first = generate(loaded, QUESTIONS[:1], picture)
    slow.touch()
    ask(page, QUESTIONS[0])
    page.wait_for_function("[...seen].some(text => text.trim())")
    slow.unlink()
    wait_for_answer(page, first)
    seen = {text.strip() for text in page.evaluate("[...window.seen]")}
    assert seen - {"", first}  # it was shown while it was generated
    assert all(first.startswith(text) for text in seen)
    ask(page, QUESTIONS[1])
    wait_for_answer(page, generate(loaded, QUESTIONS, picture, [first]), number=1)
    assert first != generate(loaded, QUESTIONS[:1])  # the picture matters


def test_the_map_shows_the_routers_choices_in_each_layer(page, loaded, picture):
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")
    chosen, num_patches, first = chosen_adapters(loaded, picture), 16, 0
    assert all(len(bank.unique()) > 1 for bank in chosen.values())
    for bank, names in {"teacher": TEACHERS, "general": ["adapter 0", "adapter 1", "adapter 2"]}.items():
        page.check(f"#bank input[value={bank}]")
        for layer in (1, 2):
            page.fill("#layer input[type=number]", str(layer))
            page.press("#layer input[type=number]", "Enter")
            shows(page, [[COLORS[first + index] for index in row] for row in chosen[bank][layer - 1].tolist()])
            counts = torch.bincount(chosen[bank][layer - 1].flatten(), minlength=3).tolist()
            expected = [f"{name} {count / num_patches:.0%}" for name, count in zip(names, counts)]
            legend = page.locator("#adapters li").all_inner_texts()
            assert [" ".join(text.split()) for text in legend] == [" ".join(text.split()) for text in expected]
        first += 3
    # Two layers: the first adapter of both in a tie.
    page.check("#all_layers input")
    most = chosen["general"].amin(dim=0)
    shows(page, [[COLORS[3 + index] for index in row] for row in most.tolist()])
    assert page.title() == FACTS["name"]  # no name of a teacher ran as code


def test_the_slider_changes_the_layer(page, loaded, picture):
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")
    chosen = chosen_adapters(loaded, picture)["teacher"]
    assert (chosen[0] != chosen[1]).any()
    shows(page, [[COLORS[index] for index in row] for row in chosen[1].tolist()])
    page.focus("#layer input[type=range]")
    page.keyboard.press("ArrowLeft")
    shows(page, [[COLORS[index] for index in row] for row in chosen[0].tolist()])


def test_a_slow_map_does_not_replace_one_asked_for_later(page, picture, slow):
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")
    slow.touch()
    page.check("#bank input[value=general]")
    page.wait_for_timeout(1000 * SLOW_MAP / 4)  # until the server draws it
    page.check("#all_layers input")
    page.wait_for_timeout(2000 * SLOW_MAP)
    page.wait_for_selector("#adapters svg.picture[aria-label='Adapters in all 2 layers']")
    page.uncheck("#all_layers input")
    page.wait_for_timeout(1000 * SLOW_MAP / 4)
    page.click("#picture button[aria-label='Remove Image']")
    page.wait_for_timeout(2000 * SLOW_MAP)
    slow.unlink()
    page.wait_for_selector("#adapters svg.picture", state="detached")


def test_a_second_visitor_sees_nothing_of_the_first(page, visitors, url, loaded, picture):
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")
    ask(page, QUESTION)
    wait_for_answer(page, generate(loaded, [QUESTION], picture))
    with visitors.visit(url) as second:
        assert bot(second).count() == second.locator("#adapters svg.picture").count() == 0
        ask(second, QUESTION)
        wait_for_answer(second, generate(loaded, [QUESTION]))  # about no picture
    assert bot(page).count() == 1


def test_a_new_picture_starts_a_new_conversation(page, loaded, picture, tmp_path):
    make_image(8, 20, 20).save(tmp_path / "other.png")
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")
    ask(page, QUESTIONS[1])
    bot(page).first.wait_for()
    shown = page.get_attribute("#adapters image", "href")
    upload(page, tmp_path / "other.png")
    page.wait_for_function(
        "shown => ![null, undefined, shown].includes(document.querySelector('#adapters image')?.getAttribute('href'))",
        arg=shown,
    )
    assert bot(page).count() == 0
    ask(page, QUESTION)
    wait_for_answer(page, generate(loaded, [QUESTION], tmp_path / "other.png"))


def test_stop_ends_an_answer_and_the_next_question_follows_it(page, loaded, slow):
    slow.touch()
    ask(page, QUESTION)
    bot(page).first.wait_for()
    page.click("#stop")
    wait_until_settled(page)
    slow.unlink()  # an answer that was not stopped would now be complete at once
    ask(page, QUESTIONS[1])
    bot(page).nth(1).wait_for()
    stopped, complete = bot(page).first.inner_text().strip(), generate(loaded, [QUESTION])
    assert complete.startswith(stopped)
    assert len(stopped) < len(complete)
    wait_for_answer(page, generate(loaded, QUESTIONS, answers=[stopped]), number=1)
    assert bot(page).first.inner_text().strip() == stopped
    page.click("#clear")
    page.wait_for_function("document.querySelectorAll('[data-testid=bot]').length === 0")


def test_html_in_a_question_is_shown_as_text(page, loaded):
    """If the browser loaded these addresses, the test of foreign hosts at the end would fail."""
    question = "<img src='http://a.test/b.png'> <b>what</b> </s> &lt; color <svg><image href='http://c.test/d.png'>"
    ask(page, question)
    bot(page).first.wait_for()
    assert page.locator("[data-testid=user]").inner_text().strip() == question
    assert page.locator("[data-testid=user] :is(img, b, svg)").count() == 0


def test_a_bad_picture_is_a_sentence_in_the_page(page, picture, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:-40])
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    (tmp_path / "heavy.png").write_bytes(bytes(LARGEST_FILE + 1))
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")
    sentences = {
        "broken.png": "This file is not a picture that can be read; upload one as BMP, GIF, JPEG, PNG, TIFF, WEBP.",
        "cut.png": "The picture is damaged or incomplete; upload it again, or save it anew.",
        "huge.png": "The picture has 9000 x 9000 pixels, more than 64,000,000; upload a smaller one.",
        "heavy.png": "exceed the maximum allowed size of 20",  # Gradio's own sentence
    }
    for name, sentence in sentences.items():
        upload(page, tmp_path / name)
        page.get_by_text(sentence).wait_for()
        page.wait_for_selector("#adapters svg.picture", state="detached")
    upload(page, picture)
    page.wait_for_selector("#adapters svg.picture")


def test_a_conversation_that_is_too_long_is_a_sentence_in_the_page(page):
    page.fill("#question textarea", "a circle " * 200)
    page.press("#question textarea", "Enter")
    page.locator("#error").get_by_text("start a new conversation").wait_for()
    assert page.input_value("#question textarea").startswith("a circle")  # to be shortened


def test_an_example_fills_the_question(page):
    page.get_by_role("button", name=QUESTION).click()
    page.wait_for_function("q => document.querySelector('#question textarea').value === q", arg=QUESTION)
