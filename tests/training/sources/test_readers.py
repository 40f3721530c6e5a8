"""Files of every supported format become records; errors name the file and the line."""

import json

import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import make_messages, make_record, read_data
from hawaii.training.sources import readers
from hawaii.training.sources.llava_json import LlavaJson
from hawaii.training.sources.readers import read_records
from hawaii.training.sources.record import Message, Record


def test_a_record_has_an_id_images_and_messages(tmp_path):
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "red"}]
    value = {"id": "a", "image": "0.png", "conversations": turns, "question_type": "color"}
    messages = (Message("user", "what ?", 1), Message("assistant", "red"))
    assert read_data(tmp_path, [value]) == [Record("a", ("0.png",), messages, "color")]


def test_json_lines_give_the_same_records(tmp_path):
    path = tmp_path / "data.jsonl"
    values = [make_record(0), {**make_record(1), "note": "one\u2028line"}]
    path.write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n\n", encoding="utf-8")
    assert list(read_records(str(path))) == read_data(tmp_path, values)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "mark"])
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("num_records", [1, 3])
def test_a_list_and_lines_are_told_apart_by_their_text(tmp_path, mark, name, num_records):
    values = [make_record(number) for number in range(num_records)]
    expected = read_data(tmp_path, values)
    texts = [json.dumps(values), json.dumps(values, indent=2), "\n".join(map(json.dumps, values))]
    for text in [*texts, f"\n {texts[1]}\n", texts[2].replace("\n", "\r\n\r\n")]:
        (tmp_path / name).write_text(mark + text, encoding="utf-8", newline="")
        assert list(read_records(str(tmp_path / name))) == expected


@pytest.mark.parametrize("image", ['""', '" "', "NaN", "null", "[]", '[""]', "[null, NaN]"])
def test_a_row_of_text_may_have_an_empty_field_for_its_image(tmp_path, image):
    turns = json.dumps(make_record(0, image=False)["conversations"])
    text = f'[{{"id": "", "image": {image}, "question_type": {image}, "conversations": {turns}}}]'
    (tmp_path / "data.json").write_text(text, encoding="utf-8")
    (record,) = list(read_records(str(tmp_path / "data.json")))
    assert (record.id, record.images, record.problem) == (0, (), None) and len(record.messages) == 2
    assert image.startswith("[") or record.question_type is None


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.json", '[{"id": 1},\n{"id": 2}\n{"id": 3}]', "a.json, line 3: Expecting ',' delimiter"),
        ("a.jsonl", '{"id": 1}\n\n{"id": 2\n', "a.jsonl, line 3: Expecting ',' delimiter"),
        ("a.json", '{"id": 1}', "a.json must hold a list of records"),
        ("a.json", '{"id": 1}\n\n{"id": 2\n', "a.json, line 3: Expecting ',' delimiter"),
        ("a.jsonl", '[{"id": 1},\n{"id": 2}\n]]', "a.jsonl, line 3: Extra data"),
        ("a.json", "[]", "a.json must hold a list of records, one or more"),
        ("a.jsonl", "\n", "a.jsonl must hold a list of records, one or more"),
        ("a.json", "[1]", "each a JSON object"),
        ("a.json", '[{"from": "human", "value": "what ?"}]', "each a JSON object"),
        ("a.json", "", "a.json, line 1: Expecting value"),
        ("a.txt", "[]", r"a.txt has no supported data format: LLaVA's JSON \(\.json: a list of records; \.jsonl"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        list(read_records(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_file_that_is_not_utf_8_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe[")
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 text"):
        list(read_records(str(tmp_path / name)))


def read_turns(folder, *turns):
    return read_data(folder, [{"image": "0.png", "conversations": list(turns)}])[0]


@pytest.mark.parametrize("value", ["<image>\nwhat ?", "what ?\n<image>", "wh<image>at ?", "  <image>  what ?  "])
def test_an_image_anywhere_in_a_turn_is_moved_to_its_start(tmp_path, value):
    assert read_turns(tmp_path, {"from": "human", "value": value}).messages == (Message("user", "what ?", 1),)


def test_a_turn_may_be_an_image_without_text(tmp_path):
    assert read_turns(tmp_path, {"from": "human", "value": "<image>"}).messages == (Message("user", "", 1),)


def test_leading_turns_of_the_assistant_are_dropped(tmp_path):
    hello, *turns = [{"from": "gpt", "value": "hello"}, *make_record(0)["conversations"]]
    assert read_turns(tmp_path, hello, hello, *turns) == read_turns(tmp_path, *turns)
    assert read_turns(tmp_path, hello).messages == ()


def test_a_placeholder_in_the_assistants_text_is_not_an_image(tmp_path):
    turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "an <image> of red"}]
    assert list(read_turns(tmp_path, *turns).messages) == make_messages("what ?", "an  of red")


@pytest.mark.parametrize(
    "turn",
    [{"from": "system", "value": "be kind"}, {"from": "human"}, {"from": "human", "value": 3}, {"from": []}, "what ?"],
)
def test_a_malformed_turn_makes_the_conversation_unusable_but_not_the_images(tmp_path, turn):
    record = read_turns(tmp_path, turn, *make_record(0)["conversations"])
    assert record.problem == f'a turn is {turn!r}; it must be {{"from": "human" or "gpt", "value": text}}'
    assert record.images == ("0.png",) and record.is_readable


class TsvReader:
    """A format of one image, question and answer per line, separated by tabs."""

    description = "a table (.tsv)"

    @staticmethod
    def matches(path):
        return path.suffix == ".tsv"

    @staticmethod
    def read_records(path):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            image, question, answer = line.split("\t")
            yield Record(number, (image,), (Message("user", question, 1), Message("assistant", answer)))


def test_a_new_format_needs_a_reader_and_an_entry_in_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READERS", [LlavaJson, TsvReader])
    (tmp_path / "data.tsv").write_text("0.png\twhat ?\tred\n1.png\twho ?\tme\n")
    records = list(read_records(str(tmp_path / "data.tsv")))
    assert records[1] == Record(1, ("1.png",), tuple(make_messages("<image>\nwho ?", "me")))
    with pytest.raises(UserError, match=r"has no supported data format: LLaVA's JSON .*; a table \(\.tsv\)"):
        (tmp_path / "data.csv").touch()
        list(read_records(str(tmp_path / "data.csv")))
