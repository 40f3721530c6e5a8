"""A data set of the library `datasets` gives the records and the pixels of the same data in LLaVA's form."""

import io
import json
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.encoders import make_encoder_processor
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_record, save_data
from hawaii.training.data.conversation_dataset import ConversationDataset, ConversationReader
from hawaii.training.data.images import ImageDataset
from hawaii.training.data.sample_stream import SampleStream, StreamPart
from hawaii.training.sources import dataset_rows
from hawaii.training.sources.source import Source


RECORDS = [make_record(0), make_record(1, questions=2), make_record(2, image=False), make_record(3)]
ROLES = {"human": "user", "gpt": "assistant"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_data(tmp_path_factory.mktemp("data"), RECORDS)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def expected(folder, processor):
    dataset = ConversationDataset(str(folder / "data.json"), str(folder / "images"), processor)
    return [dataset[index] for index in range(len(dataset))]


def png(record, folder):
    return (folder / "images" / record["image"]).read_bytes()


def as_items(text):
    items = [{"type": "image", "text": None}] if "<image>" in text else []
    return [*items, {"type": "text", "text": text.replace("<image>", "").strip()}]


def chat(record, content):
    return [{"role": ROLES[turn["from"]], "content": content(turn["value"])} for turn in record["conversations"]]


def llava_paths(folder):
    return [{"id": r["id"], "image": r.get("image"), "conversations": r["conversations"]} for r in RECORDS], None


def llava_bytes(folder):
    return [
        {"id": r["id"], "images": [png(r, folder)] if "image" in r else [], "conversations": r["conversations"]}
        for r in RECORDS
    ], None


def messages_of_text(folder):
    rows = [
        {
            "id": r["id"],
            "images": [{"bytes": png(r, folder), "path": None}] if "image" in r else None,
            "messages": chat(r, str),
        }
        for r in RECORDS
    ]
    return rows, None


def messages_of_items(folder):
    rows = [
        {
            "id": r["id"],
            "images": [Image.open(io.BytesIO(png(r, folder)))] if "image" in r else [],
            "messages": chat(r, as_items),
        }
        for r in RECORDS
    ]
    item = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    message = {"role": datasets.Value("string"), "content": datasets.List(item)}
    return rows, datasets.Features(
        {
            "id": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List(message),
        }
    )


FORMS = {
    "llava_paths": llava_paths,
    "llava_bytes": llava_bytes,
    "messages_of_text": messages_of_text,
    "messages_of_items": messages_of_items,
}


def save(form, container, folder, tmp_path):
    rows, features = FORMS[form](folder)
    dataset = datasets.Dataset.from_list(rows, features=features)
    path = tmp_path / "set"
    if container == "save_to_disk":
        dataset.save_to_disk(path)
    elif container == "dict":
        datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(path)
    elif container == "folder":
        path.mkdir()
        for number in range(2):
            dataset.select([2 * number, 2 * number + 1]).to_parquet(path / f"train-{number}.parquet")
    elif container == "jsonl":
        path.mkdir()
        dataset.to_json(path / "train.jsonl")
    else:
        path = tmp_path / "set.parquet"
        dataset.to_parquet(path)
    return str(path)


def assert_equal(samples, expected, ids=True):
    assert len(samples) == len(expected)
    for sample, other in zip(samples, expected):
        assert set(sample) == set(other)
        for name in set(other) - {"record_id"}:
            assert torch.equal(sample[name], other[name]), name
        assert not ids or sample["record_id"] == other["record_id"]


CASES = [
    ("llava_paths", "file"),
    ("llava_paths", "jsonl"),
    ("llava_bytes", "file"),
    ("llava_bytes", "save_to_disk"),
    ("messages_of_text", "folder"),
    ("messages_of_items", "file"),
    ("messages_of_items", "dict"),
]


@pytest.mark.parametrize(("form", "container"), CASES)
def test_samples_are_those_of_llavas_json(folder, processor, expected, tmp_path, form, container):
    path = save(form, container, folder, tmp_path)
    images = str(folder / "images") if form == "llava_paths" else None
    dataset = ConversationDataset(Source(path, images), None, processor)
    assert_equal([dataset[index] for index in range(len(dataset))], expected)
    reader = ConversationReader(Source(path, images).open_images(), processor)
    part = StreamPart(path, Source(path, images, streaming=True).stream(), reader, 1.0)
    streamed = SampleStream([part], 0, "error", 1.0, 0, 1).take(4)
    by_id = {sample["record_id"]: sample for sample in streamed}
    assert_equal([by_id[sample["record_id"]] for sample in expected], expected)
    # A share is the same whether rows are streamed or not; this one has two of the three images, or one.
    share = ConversationDataset(Source(path, images), None, processor, image_share=0.7)
    streamed = SampleStream([part], 0, "error", 0.7, 0, 1).take(2 * len(share))
    assert {sample["record_id"] for sample in streamed} == {repr(record.id) for record in share.records}


def save_shards(folder, tmp_path, captions=False):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for record in (RECORDS[0], RECORDS[1], RECORDS[3])[shard::2]:
                caption = record["conversations"][1]["value"].encode()
                text = {"txt": caption} if captions else {"json": json.dumps(record).encode()}
                for suffix, content in {"png": png(record, folder), **text}.items():
                    info = tarfile.TarInfo(f"{record['id']}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_tar_shards_hold_an_image_and_its_record(folder, processor, expected, tmp_path, streaming):
    path = save_shards(folder, tmp_path)
    wanted = [expected[0], expected[3], expected[1]]
    if streaming:
        part = StreamPart(path, Source(path, streaming=True).stream(), ConversationReader(None, processor), 1.0)
        by_id = {each["record_id"]: each for each in SampleStream([part], 0, "error", 1.0, 0, 1).take(3)}
        assert_equal([by_id[sample["record_id"]] for sample in wanted], wanted)
    else:
        dataset = ConversationDataset(Source(path), None, processor)
        assert_equal([dataset[index] for index in range(3)], wanted)


def test_tar_shards_hold_an_image_and_its_caption(folder, tmp_path):
    dataset = ConversationDataset(Source(save_shards(folder, tmp_path, captions=True)), None, make_processor())
    assert [record.messages[1].text for record in dataset.records] == [
        RECORDS[number]["conversations"][1]["value"] for number in (0, 3, 1)
    ]
    assert [record.messages[0] for record in dataset.records] == [("user", "", 1)] * 3
    assert [record.id for record in dataset.records] == ["0", "3", "1"]


def as_struct(content):
    return content and {"bytes": content, "path": None}


@pytest.mark.parametrize("form", [as_struct, lambda content: content])
@pytest.mark.parametrize(
    "rows",
    [
        [{"images": [None, 0]}, {"images": [1, None, 3]}, {"images": None}, {"images": [3]}],
        [{"image": None, "images": [0]}, {"image": 1, "images": [3]}, {"image": None, "images": [None]}, {"image": 3}],
        [{"__key__": "a", "jpg": None, "png": 0}, {"__key__": "b", "jpg": 1, "png": 3}, {}, {"jpg": 3}],
    ],
)
def test_images_between_nulls_are_found(folder, processor, tmp_path, form, rows):
    def fill(value):
        if isinstance(value, list):
            return list(map(fill, value))
        return form(png(RECORDS[value], folder)) if isinstance(value, int) else value

    rows = [{name: fill(value) for name, value in row.items()} for row in rows]
    turns = [[{"from": "human", "value": "<image>" * n}, {"from": "gpt", "value": "red"}] for n in (1, 2, 0, 1)]
    if "__key__" in rows[0]:
        rows = [{**row, "__key__": str(n), "json": {"conversations": turns[n]}} for n, row in enumerate(rows)]
    else:
        rows = [{**row, "conversations": turns[n]} for n, row in enumerate(rows)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set.parquet")
    expected = [[png(RECORDS[number], folder) for number in numbers] for numbers in ([0], [1, 3], [], [3])]
    source = Source(str(tmp_path / "set.parquet"))
    records, images = source.read()
    assert [record.problem for record in records] == [None] * 4
    assert [[images.find(name) for name in record.images] for record in records] == expected
    assert [images.find_problem(name) for record in records for name in record.images] == [None] * 4
    streamed = [[image["bytes"] for image in record.images] for record in source.stream().read(0, 0, 0, 1)]
    assert sorted(streamed) == sorted(expected)


def test_an_image_with_neither_bytes_nor_a_path_is_none(folder, tmp_path):
    images = [{"bytes": None, "path": None}, as_struct(png(RECORDS[0], folder))]
    rows = [{"images": images, "conversations": RECORDS[0]["conversations"]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set.parquet")
    source = Source(str(tmp_path / "set.parquet"))
    (record,), store = source.read()
    (streamed,) = source.stream().read(0, 0, 0, 1)
    assert [store.find(name) for name in record.images] == [image["bytes"] for image in streamed.images]
    assert len(record.images) == 1 and record.problem is None


def write_tar(path, samples):
    with tarfile.open(path, "w") as archive:
        for key, files in enumerate(samples):
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_caption_whose_image_is_not_read_is_a_problem(folder, tmp_path, streaming):
    """`datasets` reads the suffixes of the first five records of the first shard."""
    content = png(RECORDS[0], folder)
    samples = [{"png": content, "txt": b"red"}] * 5 + [{"webp": content, "txt": b"red"}, {"txt": b"alone"}]
    write_tar(tmp_path / "set.tar", samples)
    source = Source(str(tmp_path / "set.tar"), streaming=streaming)
    records = source.stream().read(0, 0, 0, 1) if streaming else source.read()[0]
    broken = {record.id: record for record in records if record.problem}
    assert {key: record.problem for key, record in broken.items()} == {
        "5": "its image .webp is not read, because the first records have no such suffix",
        "6": "its caption has no image",
    }
    # So an encoder, which needs no caption, does not leave it out, either.
    assert not any(record.is_readable for record in broken.values())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_chat_whose_image_is_not_read_is_a_problem_and_a_text_is_none(folder, processor, tmp_path, streaming):
    content, chat = png(RECORDS[0], folder), {"conversations": RECORDS[3]["conversations"]}
    chat = json.dumps(chat).replace("<image>", "").encode()
    samples = [{"png": content, "json": chat}] * 5
    samples += [{"webp": content, "json": chat}, {"json": chat}, {"PNG": content, "json": chat}]
    write_tar(tmp_path / "set.tar", samples)
    source = Source(str(tmp_path / "set.tar"), streaming=streaming)
    records = source.stream().read(0, 0, 0, 1) if streaming else source.read()[0]
    records = {record.id: record for record in records}
    problem = "its image .{} is not read, because the first records have no such suffix"
    assert [records[key].problem for key in map(str, range(5, 8))] == [
        problem.format("webp"),
        None,
        problem.format("PNG"),
    ]
    assert [len(records[key].images) for key in map(str, range(8))] == [1] * 5 + [0] * 3


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_text_in_a_shard_is_one_bad_record_and_fields_may_differ(folder, processor, tmp_path, streaming):
    content = png(RECORDS[0], folder)
    good = [
        {"conversations": RECORDS[0]["conversations"], "id": key, "extra": extra}
        for key, extra in (("text", 1), (7, "one"), (None, {"two": [2]}))
    ]
    texts = {
        b"{broken": "0.json, line 1: Expecting property name enclosed in double quotes",
        b"[]": "it is [], not a JSON object",
        b'{"conversations": [], "conversations": []}': "it has the field 'conversations' twice",
        b'"\xff"': "'utf-8' codec can't decode byte 0xff",
        b"[" * 100_000: "its JSON is nested too deeply",
    }
    files = [*texts, *(json.dumps(record).encode() for record in good)]
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "a.tar", [{"png": content, "json": text} for text in files])
    source = Source(str(tmp_path / "shards"), streaming=streaming)
    records = list(source.stream().read(0, 0, 0, 1) if streaming else source.read()[0])
    problems = {record.id: record.problem for record in records if record.problem is not None}
    assert sorted(problems) == ["0", "1", "2", "3", "4"]
    for key, problem in zip("01234", texts.values()):
        assert problem in problems[key]
    assert {repr(record.id) for record in records if record.problem is None} == {"'text'", "7", "'7'"}
    samples = read_all(tmp_path / "shards", processor, streaming, bad_records="skip")
    assert {sample["record_id"] for sample in samples} == {"'text'", "7", "'7'"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["image", "images"])
def test_names_of_images_in_the_text_of_a_shard_do_not_matter(folder, processor, expected, tmp_path, streaming, name):
    text = {**RECORDS[0], name: ["0.jpg"]}
    if name == "images":
        del text["image"]
    write_tar(tmp_path / "a.tar", [{"png": png(RECORDS[0], folder), "json": json.dumps(text).encode()}])
    assert_equal(read_all(tmp_path / "a.tar", processor, streaming)[:1], expected[:1])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_caption_is_one_bad_record(folder, tmp_path, streaming):
    content = png(RECORDS[0], folder)
    write_tar(tmp_path / "a.tar", [{"png": content, "txt": text} for text in (b"red", "grün".encode("latin-1"))])
    source = Source(str(tmp_path / "a.tar"), streaming=streaming)
    good, broken = sorted(
        source.stream().read(0, 0, 0, 1) if streaming else source.read()[0], key=lambda each: each.id
    )
    assert good.problem is None and good.messages[1].text == "red"
    assert broken.problem is not None and broken.problem.startswith("its text cannot be read ('utf-8' codec")


@pytest.mark.parametrize("name", ["img", "picture", "jpg", "image_0", "Image"])
@pytest.mark.parametrize("form", ["Image", "list", "bytes"])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_an_unknown_column_are_refused(folder, tmp_path, name, form, streaming):
    image = {"bytes": png(RECORDS[0], folder), "path": None}
    rows = datasets.Dataset.from_list(
        [{name: [image] if form == "list" else image, "messages": chat(RECORDS[0], str)}]
    )
    if form != "bytes":
        feature = datasets.Image()
        rows = rows.cast_column(name, [feature] if form == "list" else feature)
    rows.to_parquet(tmp_path / "a.parquet")
    source = Source(str(tmp_path / "a.parquet"), streaming=streaming)
    with pytest.raises(UserError, match=f"has images in '{name}', which is not read: rename it to image or images"):
        source.stream() if streaming else source.read()


def test_another_column_of_images_beside_those_that_are_read_is_left_alone(folder, tmp_path):
    image = {"bytes": png(RECORDS[0], folder), "path": None}
    rows = [{"image": image, "depth": image, "messages": chat(RECORDS[0], str)}]
    datasets.Dataset.from_list(rows).cast_column("depth", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    (record,) = Source(str(tmp_path / "a.parquet")).read()[0]
    assert len(record.images) == 1 and record.problem is None


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["bytes_alone", "large_binary", "fixed_size", "view"])
def test_bytes_of_images_may_have_every_type(folder, processor, expected, tmp_path, form, streaming):
    content = png(RECORDS[0], folder)
    kind = {
        "bytes_alone": pa.struct([("bytes", pa.binary())]),
        "large_binary": pa.large_binary(),
        "fixed_size": pa.binary(len(content)),
        "view": pa.binary_view(),
    }[form]
    image = {"bytes": content} if form == "bytes_alone" else content
    columns = {"image": pa.array([image], kind), "messages": [chat(RECORDS[0], str)], "id": ["0"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert_equal(read_all(tmp_path / "a.parquet", processor, streaming)[:1], expected[:1])


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_in_messages_are_a_problem_and_not_shown_at_length(folder, tmp_path, streaming):
    image = {"bytes": bytes(10_000) + png(RECORDS[0], folder), "path": None}
    content = [{"type": "image", "image": image, "text": None}, {"type": "text", "image": None, "text": "red ?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [content[1]]}]
    pq.write_table(pa.table({"messages": pa.array([messages])}), tmp_path / "a.parquet")
    source = Source(str(tmp_path / "a.parquet"), streaming=streaming)
    (record,) = source.stream().read(0, 0, 0, 1) if streaming else source.read()[0]
    assert "instead of an image's path; use a column images" in record.problem and len(record.problem) < 1000


def test_rows_are_read_chunk_by_chunk(folder, tmp_path, monkeypatch):
    """Joined, the images of 1,000 rows may have more bytes than an array can."""
    image = {"bytes": png(RECORDS[0], folder), "path": None}
    rows = [
        {"id": str(number), "images": [image] * (number % 3), "messages": chat(RECORDS[0], str)} for number in range(9)
    ]
    table = pa.concat_tables([datasets.Dataset.from_list(rows[start : start + 4]).data.table for start in (0, 4, 8)])
    assert table.column("images").num_chunks == 3
    monkeypatch.setattr(dataset_rows, "NUM_ROWS", 5)  # not a multiple of a chunk
    rows = datasets.Dataset(pa.Table.from_batches(table.to_batches()))
    monkeypatch.setattr(dataset_rows, "load_rows", lambda *args: rows)
    records, images = dataset_rows.read_dataset("set", None, "train", None)
    assert [record.id for record in records] == [str(number) for number in range(9)]
    assert [len(record.images) for record in records] == [number % 3 for number in range(9)]
    assert {images.find(name) for record in records for name in record.images} == {image["bytes"]}


def test_images_in_rows_are_used_once_by_their_content(folder, tmp_path):
    content = [png(RECORDS[0], folder), png(RECORDS[1], folder), png(RECORDS[0], folder)]
    rows = [{"images": [image], "messages": chat(RECORDS[0], str)} for image in content]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set.parquet")
    dataset = ImageDataset(
        Source(str(tmp_path / "set.parquet")), None, make_encoder_processor(), teacher_image_size=32
    )
    assert [record.id for record in dataset.records] == [0, 1]
    assert dataset[1]["pixel_values"].shape == (1, 3, 16, 16)


def bad(**changes):
    row = {"images": [{"bytes": b"no image", "path": None}], "messages": chat(RECORDS[0], str), **changes}
    return row


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (bad(), r"record 0: its image .*set\.parquet, row 0, image 0 cannot be read"),
        (bad(images=[]), "record 0: its conversation shows 1 images but it has 0 images"),
        (bad(images=[{"bytes": None, "path": "gone.png"}]), "record 0: its image .*gone.png is missing"),
        (bad(images=[{"bytes": None, "path": "/etc/hostname"}]), "record 0: its image /etc/hostname is outside"),
        (bad(messages=[{"role": "tool", "content": "x"}]), "record 0: a message is .*'tool'.* it must be"),
    ],
)
def test_a_bad_row_is_named(processor, tmp_path, row, problem):
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "set.parquet")
    source = Source(str(tmp_path / "set.parquet"))
    with pytest.raises(UserError, match=problem):
        ConversationDataset(source, None, processor)[0]
    part = StreamPart(source.path, source.stream(), ConversationReader(source.open_images(), processor), 1.0)
    problem = problem.replace(r".*set\.parquet, row 0, image 0", "in its row")
    with pytest.raises(UserError, match=f"set.parquet, {problem}"):
        SampleStream([part], 0, "error", 1.0, 0, 1).take(1)


def test_what_cannot_be_loaded_is_a_sentence(processor, tmp_path):
    datasets.Dataset.from_list([{"text": "x"}]).to_parquet(tmp_path / "text.parquet")
    for source, problem in {
        Source(str(tmp_path / "text.parquet")): "has no conversations: its columns are text, but one must be",
        Source(str(tmp_path / "gone.parquet")): "There is no data set .*gone.parquet",
        Source(str(tmp_path / "gone")): "There is no data set .*gone: it is neither a file or folder here nor",
        Source("nobody/nothing"): "The data set nobody/nothing cannot be loaded",
        Source(str(tmp_path), split="train", config="none"): "The data set .* cannot be loaded",
    }.items():
        with pytest.raises(UserError, match=problem):
            ConversationDataset(source, None, processor)
    (tmp_path / "broken.parquet").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"The data set .*broken\.parquet cannot be loaded"):
        ConversationDataset(Source(str(tmp_path / "broken.parquet")), None, processor)


def read_all(path, processor, streaming, bad_records="error"):
    source = Source(str(path), streaming=streaming)
    if not streaming:
        dataset = ConversationDataset(source, None, processor, bad_records=bad_records)
        return [dataset[index] for index in range(len(dataset))]
    part = StreamPart(source.path, source.stream(), ConversationReader(None, processor), 1.0)
    return SampleStream([part], 0, "skip", 1.0, 0, 1).take(40)


def change_header(path):
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(byte ^ 90 for byte in content[4:60])
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


def change_columns(path):
    datasets.Dataset.from_list([{"text": "x"}]).to_parquet(path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (change_header, "set cannot be loaded.*: .*page header"),
        (cut, r"set cannot be loaded, because of .*set/b\.parquet: .*magic bytes"),
        (empty, r"set cannot be loaded, because of .*set/b\.parquet: .*Parquet file size is 0 bytes"),
        (change_columns, r"set cannot be loaded, because of .*set/b\.parquet: Couldn't cast"),
    ],
)
def test_a_broken_shard_among_others_is_named(folder, processor, tmp_path, streaming, damage, problem):
    """Raised even if records are skipped, because a file contains many of them."""
    (tmp_path / "set").mkdir()
    rows = [{"images": [{"bytes": png(RECORDS[0], folder), "path": None}], "messages": chat(RECORDS[0], str)}] * 20
    for name in ("a", "b"):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set" / f"{name}.parquet")
    assert len(read_all(tmp_path / "set", processor, streaming)) == 40
    damage(tmp_path / "set" / "b.parquet")
    with pytest.raises(UserError, match=f"The data set .*{problem}"):
        read_all(tmp_path / "set", processor, streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"0.png": b"x"}, "has no conversations: its columns are .*png.* each NAME.jpg has a NAME.json"),
        (None, "cannot be loaded: "),
    ],
)
def test_a_broken_tar_shard_is_a_sentence(processor, tmp_path, streaming, files, problem):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"no archive" * 200)
    if files is not None:
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=rf"The data set .*shard\.tar {problem}"):
        read_all(path, processor, streaming)
