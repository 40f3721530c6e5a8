"""Each turn answers the whole conversation, and a turn that fails leaves it as it was."""

import pytest
import torch
from PIL import Image

from hawaii.evaluation import conversation as module
from hawaii.evaluation.conversation import Conversation
from hawaii.files.user_error import UserError
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.tiny.models import PINPOINTS, make_model, make_processor


RED, BLUE = (Image.new("RGB", (20, 10), color) for color in ("red", "blue"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return make_model()


@pytest.fixture
def conversation(model):
    return Conversation(model, make_processor(), "tiny", max_new_tokens=6)


def script(monkeypatch, *pieces):
    """Makes each answer consist of these pieces; an exception among them is raised."""

    def stream(*arguments):
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    monkeypatch.setattr(module, "stream_answer", stream)


def generate(conversation, messages):
    """The answer to a conversation, from one call of `generate`."""
    processor = conversation.processor
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = conversation.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("pinpoints", [None, PINPOINTS])
def test_each_answer_is_that_of_generate_to_the_whole_conversation(pinpoints):
    model = make_model(image_grid_pinpoints=pinpoints, text={"max_position_embeddings": 1024})
    processor = make_processor(image_grid_pinpoints=pinpoints)
    conversation = Conversation(model, processor, "tiny", max_new_tokens=6)
    messages, answers = [], []
    for question, images in (("what color ?", [RED]), ("is it blue ?", []), ("is it a circle ?", [BLUE, RED])):
        conversation.images += images
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        answers.append("".join(conversation.ask(question)))
        assert answers[-1] == generate(conversation, messages)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[-1]}]})
    assert conversation.messages == messages and not conversation.images
    assert len(set(answers)) == 3
    conversation.forget()
    assert "".join(conversation.ask("what color ?")) == generate(
        conversation, [{"role": "user", "content": [{"type": "text", "text": "what color ?"}]}]
    )


def texts(conversation):
    return [turn["content"][-1]["text"] for turn in conversation.messages]


def test_a_stopped_answer_remains_as_far_as_it_is(conversation, monkeypatch):
    script(monkeypatch, "it is", " red", " and blue")
    pieces = conversation.ask("what color ?")
    assert [next(pieces), next(pieces)] == ["it is", " red"]
    pieces.close()
    assert texts(conversation) == ["what color ?", "it is red"]


def test_a_question_without_an_answer_is_forgotten_and_its_images_wait(conversation, monkeypatch):
    conversation.images = [RED]
    script(monkeypatch, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(UserError, match="CUDA out of memory"):
        list(conversation.ask("what color ?"))
    assert (conversation.messages, conversation.images) == ([], [RED])
    script(monkeypatch, "red")
    assert list(conversation.ask("what color ?")) == ["red"]
    assert conversation.messages[0]["content"][0]["image"] is RED


def test_an_empty_answer_is_an_answer(conversation, monkeypatch):
    script(monkeypatch)
    assert list(conversation.ask("what color ?")) == []
    assert texts(conversation) == ["what color ?", ""]


def test_an_error_of_the_model_that_no_user_can_correct_is_not_explained(conversation, monkeypatch):
    script(monkeypatch, "it is", RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(conversation.ask("what color ?"))


def test_image_words_of_questions_and_answers_are_left_out(conversation, monkeypatch):
    script(monkeypatch, "a <image> is <im", "age>red")
    list(conversation.ask("what is <image> ?"))
    assert texts(conversation) == ["what is  ?", "a  is red"]
    monkeypatch.undo()
    assert list(conversation.ask("is it blue ?"))


def test_a_full_context_is_one_sentence_and_can_be_left(conversation):
    with pytest.raises(UserError, match="has 3.. tokens, images included, but the model has 256 positions"):
        list(conversation.ask("what color is " * 100))
    assert conversation.messages == []
    assert list(conversation.ask("what color ?"))


FIRST_ONLY = "{% if messages|length > 1 %}{{ raise_exception('one question only') }}{% endif %}"
LAST_TURN = "{% for item in messages[-1].content %}{{ item.text if item.type == 'text' else '<image>' }}{% endfor %}"


def test_a_template_that_leaves_out_questions_answers_one_with_a_warning(conversation, caplog):
    conversation.processor.chat_template = load_chat_template("plain")
    with pytest.raises(UserError, match="leaves out the question, and there is no image; add one"):
        list(conversation.ask("what color ?"))
    caplog.clear()
    conversation.images = [Image.new("RGB", (8, 8))]
    assert list(conversation.ask("what color ?"))
    problem = "The chat template of tiny leaves out the question, so the model does not read it"
    assert caplog.messages == [f"{problem}."]
    with pytest.raises(UserError, match=problem):
        list(conversation.ask("what shape ?"))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (LAST_TURN, "The chat template of tiny leaves out the first question, so the model does not read it"),
        (
            FIRST_ONLY + LAST_TURN,
            "The chat template of tiny fails at question 2 of the conversation: one question only",
        ),
    ],
)
def test_a_template_without_turns_answers_one_question(conversation, template, problem):
    conversation.processor.chat_template = template
    list(conversation.ask("what color ?"))
    with pytest.raises(UserError, match=problem):
        list(conversation.ask("is it blue ?"))
    assert len(conversation.messages) == 2
    conversation.forget()
    list(conversation.ask("is it blue ?"))
