"""JSON is read in pieces, with the values and the errors of Python's parser; an error is one sentence."""

import json

import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import make_record, read_data
from hawaii.training.sources import llava_json
from hawaii.training.sources.readers import read_records, read_table
from hawaii.training.sources.record import Message, short_repr


@pytest.mark.parametrize("num_characters", [1, 7, 64, 2**20])
def test_the_size_of_a_piece_changes_nothing(tmp_path, monkeypatch, num_characters):
    values = [{**make_record(number, questions=1 + number % 4), "id": 10**number} for number in range(1, 9)]
    values[3]["note"] = 'brackets ] } " \\ and ünïcödé 😀'
    expected = read_data(tmp_path, values)
    monkeypatch.setattr(llava_json, "NUM_CHARACTERS", num_characters)
    for text in (
        json.dumps(values),
        json.dumps(values, indent=3, ensure_ascii=False),
        f" \n[\n{json.dumps(values)[1:]}\n",
    ):
        (tmp_path / "data.json").write_text(text, encoding="utf-8")
        assert list(read_records(str(tmp_path / "data.json"))) == expected


@pytest.mark.parametrize("num_characters", [5, 2**20])
def test_an_error_is_that_of_the_complete_text(tmp_path, monkeypatch, num_characters):
    monkeypatch.setattr(llava_json, "NUM_CHARACTERS", num_characters)
    good = json.dumps([make_record(0), {"id": 123, "image": None}], indent=1)
    num_errors = 0
    for place in range(8, len(good) - 1):
        text = good[:place] + good[place + 2 :]
        (tmp_path / "data.json").write_text(text)
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            num_errors += 1
            with pytest.raises(UserError) as raised:
                list(read_records(str(tmp_path / "data.json")))
            assert str(raised.value).endswith(f"line {error.lineno}: {error.msg}.")
    assert num_errors > 50


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'[{{"id": 1}},\n{{"id": {NESTED}', "data.json, line 2: its JSON is nested too deeply"),
        (f'[{{"id": 1}},\n{{"id": {"9" * 5000}}}]', r"data.json, line 2: a number has too many digits \(.*4300"),
        (NESTED, "data.json, line 1: its JSON is nested too deeply"),
        (f'{{"id": {NESTED}', "data.json, line 1: its JSON is nested too deeply"),
        (f'{{"id": 1}}\n{{"id": {"9" * 5000}}}', "data.json, line 2: a number has too many digits"),
    ],
    ids=["nested_record", "number", "nested", "nested_line", "number_in_a_line"],
)
def test_hostile_text_is_a_sentence(tmp_path, text, problem):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_table(str(tmp_path / "data.json"))


@pytest.mark.parametrize("field", ["id", "image", "question_type", "conversations", "note"])
def test_nesting_that_the_parser_allows_is_no_traceback(tmp_path, field):
    for depth in (300, 600, 900):
        text = json.dumps([make_record(0), {**make_record(1), field: None}])
        text = text.replace(f'"{field}": null', f'"{field}": {"[" * depth}{"]" * depth}')
        (tmp_path / "data.json").write_text(text)
        try:
            assert len(read_table(str(tmp_path / "data.json"))) == 2
        except UserError as error:
            assert "nested too deeply" in str(error)


def chat(tmp_path, messages, **fields):
    (record,) = read_data(tmp_path, [{"messages": messages, **fields}])
    return record


QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what ? "}]}
ANSWER = {"role": "assistant", "content": "red"}
MESSAGES = (Message("user", "what ?", 1), Message("assistant", "red"))


@pytest.mark.parametrize(
    ("question", "fields"),
    [
        (QUESTION, {"images": ["0.png"]}),
        (QUESTION, {"image": "0.png"}),
        ({"role": "user", "content": "<image>what ?"}, {"images": ["0.png"]}),
        ({"role": "user", "content": "what ?"}, {"images": ["0.png"]}),
        ({"role": "user", "content": [{"type": "image", "image": "0.png"}, QUESTION["content"][1]]}, {}),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "0.png"}}, QUESTION["content"][1]],
            },
            {"images": None},
        ),
    ],
)
def test_a_chat_gives_the_record_of_llavas_form(tmp_path, question, fields):
    record = chat(tmp_path, [question, ANSWER], **fields)
    assert (record.images, record.messages, record.problem) == (("0.png",), MESSAGES, None)


def test_a_chat_may_begin_with_an_instruction_of_the_system(tmp_path):
    record = chat(tmp_path, [{"role": "system", "content": "be kind"}, ANSWER, QUESTION, ANSWER], images=["0.png"])
    assert record.messages == (Message("system", "be kind"), *MESSAGES)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"},
        {"role": "user", "content": 3},
        {"role": "user", "content": [{"type": "video"}]},
    ],
)
def test_a_message_of_another_form_is_a_problem(tmp_path, message):
    assert chat(tmp_path, [message, ANSWER]).problem.startswith(f"a message is {short_repr(message)}; it must be ")
