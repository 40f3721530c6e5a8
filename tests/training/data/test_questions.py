"""Questions become the same prompts as in inference; errors name the record and the file."""

import json

import pytest
import torch

from hawaii import HawaiiProcessor
from hawaii.files.user_error import UserError
from hawaii.processing.chat_templates import adapt_chat_template
from hawaii.tests.tiny.answers import make_question, make_questions, save_questions
from hawaii.tests.tiny.language_models import FAMILIES, save_language_model
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_dataset, make_image
from hawaii.training.data.questions import QuestionDataset, collate_prompts
from hawaii.training.students.tokenizer import read_tokenizer


RECORDS = [make_question(0, "red"), make_question(1, "yes , there is", image=False), make_question(2, "a shape")]


@pytest.fixture
def questions(tmp_path):
    return make_questions(tmp_path, RECORDS)


def test_each_record_is_one_question_with_its_answer(questions):
    assert len(questions) == 3
    assert questions.references == ["red", "yes , there is", "a shape"]
    assert questions.question_types is None


def test_the_maximum_length_fits_the_longest_answer_its_end_and_a_period(questions):
    assert questions.max_new_tokens == 4 + 1 + 1


def test_a_prompt_equals_that_of_the_published_processor(questions):
    processor = questions.processor
    for index, record in enumerate(RECORDS):
        text = record["conversations"][0]["value"].removeprefix("<image>\n")
        content = [{"type": "text", "text": text}]
        if "image" in record:
            content = [{"type": "image"}, *content]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = [make_image(100 + index, 16, 16 + index % 3)] if "image" in record else None
        expected = processor(images=images, text=prompt, return_tensors="pt")
        sample = questions[index]
        assert torch.equal(sample["input_ids"], expected["input_ids"][0])
        assert ("pixel_values" in sample) == ("image" in record)
        if "image" in record:
            assert torch.equal(sample["pixel_values"], expected["pixel_values"])


def test_a_training_sample_starts_with_the_prompt(tmp_path, questions):
    (tmp_path / "data.json").write_text(json.dumps(RECORDS))
    training_data = make_dataset(tmp_path, questions.processor)
    for index, prompt in enumerate(questions.prompts):
        sample = training_data[index]
        assert torch.equal(sample["input_ids"][: len(prompt)], prompt)
        assert (sample["labels"] != -100).nonzero()[0].item() == len(prompt)
        if "pixel_values" in sample:
            assert torch.equal(sample["pixel_values"], questions[index]["pixel_values"])


@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_a_language_models_template_gives_the_same_prompt_as_its_tokenizer(tmp_path, family):
    tokenizer = read_tokenizer(str(save_language_model(tmp_path / "model", FAMILIES[family])))
    template = adapt_chat_template(tokenizer.chat_template, **tokenizer.special_tokens_map)
    processor = HawaiiProcessor(make_processor().image_processor, tokenizer, patch_size=4, chat_template=template)
    record = make_question(0, "red", image=False)
    questions = QuestionDataset(str(save_questions(tmp_path, [record])), str(tmp_path / "images"), processor)
    messages = [{"role": "user", "content": record["conversations"][0]["value"]}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert questions.prompts[0].tolist() == expected


def test_question_types_are_read_from_the_records(tmp_path):
    records = [make_question(0, "red", question_type="color"), make_question(1, "yes", question_type="yes/no")]
    assert make_questions(tmp_path, records).question_types == ["color", "yes/no"]


@pytest.mark.parametrize("value", [None, 3, ["color"]])
def test_a_question_type_in_only_some_records_is_an_error(tmp_path, value):
    records = [make_question(0, "red", question_type="color"), make_question(1, "yes", question_type=value)]
    with pytest.raises(UserError, match=r"questions.json, record 'q1': its question_type is .*, but others have one"):
        make_questions(tmp_path, records)


def test_a_record_with_several_questions_is_an_error(tmp_path):
    record = make_question(0, "red")
    record["conversations"] = [*record["conversations"], *make_question(1, "yes", image=False)["conversations"]]
    with pytest.raises(
        UserError,
        match="record 'q0': it has 4 turns, .*one record per question. Fix them, or remove them from the file",
    ):
        make_questions(tmp_path, [record])


def test_a_missing_image_is_an_error(tmp_path):
    record = make_question(0, "red")
    save_questions(tmp_path, [record])
    (tmp_path / "images" / "q0.png").unlink()
    with pytest.raises(UserError, match=r"questions.json cannot be used: record 'q0': its image .*q0.png is missing"):
        QuestionDataset(str(tmp_path / "questions.json"), str(tmp_path / "images"), make_processor())


def test_a_broken_image_raises_when_its_question_is_read(tmp_path, questions):
    (tmp_path / "images" / "q2.png").write_bytes(b"no image")
    questions[0]
    with pytest.raises(
        UserError,
        match=r"questions.json, record 'q2': its image .*q2.png cannot be read .*Fix it, or remove it from",
    ):
        questions[2]


def test_a_template_without_a_special_token_after_an_answer_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"questions.json cannot be answered: .*as in stages.finetune.eval_data_path"):
        make_questions(tmp_path, RECORDS, chat_template="plain")


def test_prompts_are_padded_on_the_left(questions):
    numbers, inputs = collate_prompts([questions[i] for i in (2, 1, 0)], questions.processor.tokenizer.pad_token_id)
    assert numbers == [2, 1, 0]
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    assert torch.equal(inputs["pixel_values"][:1], questions[2]["pixel_values"])
    for row, index in enumerate(numbers):
        length = len(questions.prompts[index])
        assert torch.equal(inputs["input_ids"][row, -length:], questions.prompts[index])
        assert inputs["attention_mask"][row].tolist() == [0] * (inputs["input_ids"].shape[1] - length) + [1] * length


def test_a_batch_without_images_has_no_pixels(questions):
    _, inputs = collate_prompts([questions[1]], pad_token_id=0)
    assert set(inputs) == {"input_ids", "attention_mask"}
