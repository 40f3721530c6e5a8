"""Answers equal the published model's, do not depend on the batch, and leave no side effects."""

import random

import numpy as np
import pytest
import torch

from hawaii.tests.tiny.answers import make_parrot, make_question, make_questions
from hawaii.tests.tiny.models import make_model
from hawaii.tests.tiny.training import make_image
from hawaii.training.answers import answer_questions, evaluation_mode, load_questions, score_answers


RECORDS = [make_question(number, "yes , there is", image=number not in (1, 4)) for number in range(7)]


@pytest.fixture
def questions(tmp_path):
    return make_questions(tmp_path, RECORDS)


def answer_all(student, questions, batch_size=3, process_index=0, num_processes=1):
    answers = {}
    with evaluation_mode(student):
        for numbers, inputs in load_questions(questions, batch_size, 0, process_index, num_processes):
            answers |= zip(numbers, answer_questions(student, inputs, questions))
    return answers


def answer_as_published(student, questions, index):
    """Answers one question with the processor's and the model's public calls."""
    processor, record = questions.processor, RECORDS[index]
    text = record["conversations"][0]["value"].removeprefix("<image>\n")
    content = [{"type": "image"}] if "image" in record else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    images = [make_image(100 + index, 16, 16 + index % 3)] if "image" in record else None
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    tokens = student.generate(**inputs, max_new_tokens=questions.max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_batch_gets_the_answers_of_each_question_alone(questions, batch_size):
    student = make_model()
    answers = answer_all(student, questions, batch_size)
    assert answers == {index: answer_as_published(student, questions, index) for index in range(7)}
    assert len(set(answers.values())) > 3


def test_the_encoder_runs_once_for_each_batch_with_images(questions):
    student, runs = make_model(), []
    student.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    answer_all(student, questions, batch_size=3)
    # The longest first: five with an image, then two without.
    assert len(runs) == 2


def test_answers_are_greedy_despite_the_generation_config(questions):
    student = make_model()
    expected = answer_all(student, questions)
    student.generation_config.do_sample = True
    student.generation_config.temperature = 5.0
    student.generation_config.num_beams = 2
    assert answer_all(student, questions) == expected


@pytest.mark.parametrize(("num_processes", "num_questions"), [(2, 7), (3, 7), (4, 2)])
def test_every_question_is_answered_by_one_process(tmp_path, num_processes, num_questions):
    questions = make_questions(tmp_path, RECORDS[:num_questions])
    shares = [
        [number for numbers, _ in load_questions(questions, 2, 0, index, num_processes) for number in numbers]
        for index in range(num_processes)
    ]
    assert sorted(number for share in shares for number in share) == list(range(num_questions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_parrot_gets_the_share_of_questions_with_its_answer(tmp_path):
    answers = ["red", "blue", "Red.", "a shape", "red", "yes"]
    types = ["color", "color", "color", "thing", "thing", "yes/no"]
    records = [
        make_question(number, answer, image=number != 3, question_type=question_type)
        for number, (answer, question_type) in enumerate(zip(answers, types))
    ]
    questions = make_questions(tmp_path, records)
    answers = answer_all(make_parrot("red"), questions)
    assert answers == dict.fromkeys(range(6), "red")
    assert score_answers(answers, questions) == {
        "accuracy": 3 / 6,
        "accuracy/color": 2 / 3,
        "accuracy/thing": 1 / 2,
        "accuracy/yes/no": 0.0,
        "num_questions": 6,
    }


def test_without_types_there_is_one_accuracy(questions):
    assert score_answers(dict.fromkeys(range(7), "yes , there is"), questions) == {"accuracy": 1.0, "num_questions": 7}


def test_answering_restores_the_mode_and_the_random_states(questions):
    student = make_model(text={"attention_dropout": 0.5}).train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    answer_all(student, questions)
    assert all(module.training for module in student.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_the_mode_is_restored_after_an_error(questions, tmp_path):
    (tmp_path / "images" / "q0.png").write_bytes(b"no image")
    student = make_model().train()
    with pytest.raises(ValueError, match="record 'q0'"):
        answer_all(student, questions)
    assert student.training
