"""What the page of a Space asks of a model, and what its start needs."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from hawaii.hub_cards.space.hawaii_space.answerer import Answerer, explain, read_conversation, show
from hawaii.hub_cards.space.hawaii_space.conversation import leave_out_image_words
from hawaii.hub_cards.space.hawaii_space.visitor_error import VisitorError
from hawaii.tests.tiny.models import make_model, make_processor


SPACE = Path(__file__).parents[3] / "hub_cards/space"


def user(text):
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def read(history, image=None):
    return read_conversation(make_processor(), history, image)


def test_the_picture_is_part_of_the_first_question():
    image = Image.new("RGB", (8, 8))
    first, *others = read([user("what is it ?"), assistant("a circle"), user("blue ?")], image)
    assert first == {"role": "user", "content": [{"type": "image", "image": image}, *user("what is it ?")["content"]]}
    assert others == [assistant("a circle"), user("blue ?")]


def test_a_question_without_an_answer_is_left_out():
    history = [
        user("stopped"),
        user("what is it ?"),
        assistant("a circle"),
        user("stopped"),
        assistant(""),
        user("blue ?"),
    ]
    assert read(history) == [user("what is it ?"), assistant("a circle"), user("blue ?")]


def test_words_that_stand_for_an_image_are_left_out():
    assert read([user("what <im<image>age> is it ?")]) == [user("what  is it ?")]


def test_words_within_words_are_left_out_at_any_depth():
    depth = 10**5
    assert leave_out_image_words(make_processor(), f"blue {'<image' * depth}{'>' * depth}?") == "blue ?"


def test_a_conversation_of_more_than_200_000_characters_is_refused_and_its_question_can_be_shortened():
    answerer = Answerer(make_model(), make_processor(), {})
    history, longest = [show("user", "blue " * 20_000), show("assistant", "<circle>" * 5_000)], "red " * 15_000
    assert len(read([*history, show("user", longest)])) == 3
    *_, (question, shown, error) = answerer.answer(f"{longest}?", history, "")
    assert (question, shown) == (f"{longest}?", history)
    assert "more than 200,000 characters" in error


def test_html_is_shown_and_read_as_its_characters():
    text = "<img src='http://a.b/c.png'> & <b>\"blue\"</b> &lt; ?"
    assert "<" not in show("user", text)["content"]
    assert read([show("user", text)]) == [user(text)]


def test_half_a_character_is_a_question_mark():
    *_, (question, history, error) = Answerer(make_model(), make_processor(), {}).answer("blue \ud83c", [], "")
    assert (history[0], error) == ({"role": "user", "content": "blue ?"}, "")


def test_a_page_whose_session_is_gone_must_be_reloaded():
    answerer = Answerer(make_model(), make_processor(), {}, lambda *_: None)
    *_, (question, history, error) = answerer.answer("blue ?", [], None)
    assert (question, history) == ("blue ?", [])
    assert "has forgotten its picture. Reload it." in error
    assert "has forgotten its picture. Reload it." in answerer.draw_importance(None, "blue ?", [])


def test_a_model_without_adapters_says_so_instead_of_a_map(tmp_path):
    vision = {"num_teacher_adapters": 0, "num_general_adapters": 0}
    answerer = Answerer(make_model(vision=vision), make_processor(), {})
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    path, routing, error = answerer.look({"path": str(tmp_path / "picture.png")})
    assert (path, routing, error) == (str(tmp_path / "picture.png"), None, "")
    assert "has no adapters" in answerer.draw_routing(routing, "teacher", 1, False)


def test_a_bug_is_a_sentence_in_the_page_and_a_traceback_in_the_log(monkeypatch, capsys):
    model = make_model()
    monkeypatch.setattr(type(model), "generate", lambda *args, **kwargs: 1 / 0)
    *_, (question, history, error) = Answerer(model, make_processor(), {}).answer("what is it ?", [], "")
    assert (question, history) == ("what is it ?", [])  # to be asked again
    assert "The model failed (ZeroDivisionError); the log of the server says where." in error
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError, ValueError])
def test_an_error_of_a_library_is_logged_and_not_shown(error, capsys):
    assert "/srv/model" not in explain(error("/srv/model is damaged"))
    assert f"{error.__name__}: /srv/model is damaged" in capsys.readouterr().err


def test_a_conversation_of_another_shape_is_a_sentence_in_the_page(tmp_path):
    answerer = Answerer(make_model(), make_processor(), {}, lambda *_: None)
    history = [{"role": "user", "content": [{"type": "file"}]}]
    assert "The model failed (KeyError)" in answerer.draw_importance("picture.png", "blue ?", history)


def test_an_error_is_text():
    assert "&lt;b&gt;" in explain(VisitorError("<b>"))


def test_importance_is_computed_for_the_question_in_its_field_or_the_last_one(tmp_path):
    questions = []

    def score(image, question):
        questions.append(question)
        return image, {"vit": [[0.25, 0.25], [0.25, 0.25]]}

    answerer = Answerer(make_model(), make_processor(), {}, score)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    path, history = str(tmp_path / "picture.png"), [user("what is it ?"), assistant("a circle")]
    for question in ("blue \ud83c", ""):
        assert "<figcaption>vit</figcaption>" in answerer.draw_importance(path, question, history)
    answerer.draw_importance(path, " ", [])
    assert questions == ["blue ?", "what is it ?", ""]
    assert "There is no picture; upload one first." in answerer.draw_importance("", "blue ?", history)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("vision", "visible"),
    [
        ({}, ["bank", "layer", "all_layers"]),
        ({"num_hidden_layers": 1, "num_teacher_adapters": 1, "num_general_adapters": 0}, ["bank"]),
        ({"num_teacher_adapters": 0, "num_general_adapters": 0}, []),
    ],
)
def test_a_page_has_what_there_is_to_choose(vision, visible):
    from hawaii.hub_cards.space.hawaii_space.interface import build_page

    page = build_page(Answerer(make_model(vision=vision), make_processor(), {}), "tiny", {})
    components = [part["props"] for part in page.get_config_file()["components"]]
    names = ("bank", "layer", "all_layers")
    assert [part["elem_id"] for part in components if part.get("elem_id") in names and part["visible"]] == visible


@pytest.mark.browser
@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, "set the variable HAWAII_MODEL"),
        ({"HAWAII_MODEL": "someone/model"}, "No commit of someone/model is named: set the variable HAWAII_REVISION"),
        ({"HAWAII_MODEL": "someone/model", "HAWAII_REVISION": "main"}, "not to a branch or a tag"),
        ({"HAWAII_MODEL": "someone/model", "HAWAII_REVISION": "v1.0"}, "not to a branch or a tag"),
    ],
)
def test_a_space_does_not_start_without_its_variables(variables, problem, monkeypatch):
    for name in ("HAWAII_MODEL", "HAWAII_REVISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(SPACE))
    with pytest.raises(SystemExit, match=problem):
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    for name in [name for name in sys.modules if name.partition(".")[0] == "hawaii_space"]:
        del sys.modules[name]


@pytest.mark.browser
def test_the_card_installs_the_same_gradio_as_the_requirements_and_the_tests():
    from importlib.metadata import version

    requirements = (SPACE / "requirements.txt").read_text().splitlines()
    assert f"gradio=={version('gradio')}" in requirements
    assert f"\nsdk_version: {version('gradio')}\n" in (SPACE / "README.md").read_text()
