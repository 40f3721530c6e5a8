"""Images in a zip or tar are read without extraction, in any process, and equal the extracted ones."""

import io
import multiprocessing
import os
import pickle
import random
import tarfile
import tracemalloc
import zipfile

import pytest
import torch
from torch.utils.data import DataLoader

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_record, save_data
from hawaii.tests.tiny.waiting import HANG_SECONDS
from hawaii.training.data.conversation_dataset import ConversationDataset
from hawaii.training.sources.archives import ImageArchive
from hawaii.training.sources.image_folder import open_image_folder


FILES = {"0.png": b"zero", "a/1.png": b"one" * 1000, "a/b/2.png": b"", "ä/é 3.png": b"three"}


def pack(path, files, links=(), compression=zipfile.ZIP_DEFLATED):
    """Writes an archive; links are names and targets, symbolic except for those whose name begins with hard."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type = tarfile.LNKTYPE if name.startswith("hard") else tarfile.SYMTYPE
            info.linkname = target
            archive.addfile(info)
    return path


@pytest.fixture(params=["stored.zip", "deflated.zip", "plain.tar"])
def archive_path(request, tmp_path):
    method = zipfile.ZIP_STORED if request.param.startswith("stored") else zipfile.ZIP_DEFLATED
    return pack(tmp_path / request.param, FILES, compression=method)


def test_every_file_has_its_content(archive_path):
    archive = ImageArchive(archive_path)
    assert list(archive.names()) == sorted(FILES)
    assert {name: archive.read(name) for name in FILES} == FILES
    assert "a" not in archive and "a/b" not in archive and "z" not in archive


def test_a_sample_has_the_pixels_of_the_extracted_folder(tmp_path):
    records = [make_record(number) for number in range(4)]
    save_data(tmp_path, records)
    files = {f"deep/er/{path.name}": path.read_bytes() for path in (tmp_path / "images").iterdir()}
    processor = make_processor()
    expected = ConversationDataset(str(tmp_path / "data.json"), str(tmp_path / "images"), processor)
    for name in ("images.zip", "images.tar"):
        folder = pack(tmp_path / name, files) / "deep" / "er"
        dataset = ConversationDataset(str(tmp_path / "data.json"), str(folder), processor)
        for index in range(4):
            assert torch.equal(dataset[index]["pixel_values"], expected[index]["pixel_values"])


def read_in_process(archive, seed, queue):
    names = random.Random(seed).choices(sorted(FILES), k=200)
    queue.put(all(archive.read(name) == FILES[name] for name in names))


def read_in_processes(path, method, num_workers):
    archive = ImageArchive(path)
    archive.read("0.png")  # opens the file before the fork
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=read_in_process, args=(archive, seed, queue)) for seed in range(num_workers)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=HANG_SECONDS) for _ in workers] == [True] * num_workers
    for worker in workers:
        worker.join()


def test_processes_read_at_the_same_time(archive_path):
    read_in_processes(archive_path, "fork", 3)


def test_a_new_process_reads_the_archive(tmp_path):
    read_in_processes(pack(tmp_path / "a.zip", FILES), "spawn", 1)


def test_a_copy_of_an_archive_reads_the_same(archive_path):
    archive = pickle.loads(pickle.dumps(ImageArchive(archive_path)))
    assert archive.read("a/1.png") == FILES["a/1.png"]


@pytest.mark.parametrize("name", ["../0.png", "a/../../0.png", "/0.png", "..", "/etc/hostname"])
def test_a_path_may_not_lead_out(archive_path, name):
    for folder in (archive_path, archive_path / "a"):
        images = open_image_folder(str(folder))
        assert "is outside" in images.find_problem(name)
        with pytest.raises(ValueError, match="it is outside"):
            images.find(name)


def test_a_path_may_turn_around_inside(archive_path):
    images = open_image_folder(str(archive_path / "a"))
    assert images.find_problem("b/../1.png") is None and images.find("b/../1.png") == FILES["a/1.png"]
    assert images.find_problem("2.png") == f"its image {archive_path}/a/2.png is missing"


def test_files_that_lead_out_of_an_archive_are_left_out(tmp_path):
    for name in ("bad.zip", "bad.tar"):
        path = pack(tmp_path / name, {"../out.png": b"x", "/abs.png": b"y", "in.png": b"z"})
        assert "in.png" in list(ImageArchive(path).names())
        assert not [each for each in ImageArchive(path).names() if each.startswith(("/", ".."))]


def test_links_in_a_tar_are_followed_inside_it(tmp_path):
    links = [("hard.png", "a/1.png"), ("a/soft.png", "1.png"), ("chain.png", "a/soft.png"), ("out.png", "../../etc/x")]
    links += [("cycle1.png", "cycle2.png"), ("cycle2.png", "cycle1.png")]
    archive = ImageArchive(pack(tmp_path / "a.tar", {"a/1.png": b"one"}, links))
    assert list(archive.names()) == ["a/1.png", "a/soft.png", "chain.png", "hard.png"]
    assert {archive.read(name) for name in archive.names()} == {b"one"}


def test_a_changed_archive_gets_another_index(tmp_path):
    path = pack(tmp_path / "a.tar", {"0.png": b"old", "1.png": b"x"})
    old = ImageArchive(path)
    path.unlink()
    pack(path, {"1.png": b"longer", "0.png": b"new"})
    os.utime(path, (1, 1))
    assert ImageArchive(path).read("0.png") == b"new" and old.read("1.png") is not None


def test_a_damaged_file_in_a_zip_is_an_error(tmp_path):
    path = pack(tmp_path / "a.zip", {"0.png": b"content"}, compression=zipfile.ZIP_STORED)
    archive = ImageArchive(path)
    path.write_bytes(path.read_bytes().replace(b"content", b"tnetnoc", 1))
    with pytest.raises(ValueError, match=r"0\.png in .*a\.zip has changed or is damaged"):
        archive.read("0.png")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.zip has changed or is incomplete"):
        archive.read("0.png")


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_what_is_no_archive_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"no archive" * 200)
    with pytest.raises(UserError, match=rf"{name} cannot be read as a "):
        open_image_folder(str(tmp_path / name))
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(UserError, match=r"packed\.tar cannot be read as a tar without compression"):
        open_image_folder(str(tmp_path / "packed.tar"))
    pack(tmp_path / "other.zip", {"0.png": b"x"}, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match=r"0\.png is encrypted, or compressed with another method"):
        open_image_folder(str(tmp_path / "other.zip"))
    pack(tmp_path / "empty.tar", {})
    with pytest.raises(UserError, match=r"empty\.tar has no file"):
        open_image_folder(str(tmp_path / "empty.tar"))


BLOCK = tarfile.BLOCKSIZE


@pytest.mark.parametrize(
    ("place", "damage"),
    [
        (6 * BLOCK, lambda content: content[: 6 * BLOCK + 9] + b"\x01" + content[6 * BLOCK + 10 :]),  # a header
        (6 * BLOCK, lambda content: content[: 6 * BLOCK]),  # before a header
        (6 * BLOCK, lambda content: content[: 6 * BLOCK + 100]),  # inside one
        (6 * BLOCK, lambda content: content[: 6 * BLOCK] + bytes(BLOCK) + content[7 * BLOCK :]),  # a hole
        (20 * BLOCK, lambda content: content[: 20 * BLOCK]),  # after the last file
        (20 * BLOCK, lambda content: content[: 20 * BLOCK + 100]),
        (20 * BLOCK, lambda content: content * 2),  # joined by `cat`
    ],
)
def test_a_tar_that_was_not_listed_to_its_end_is_an_error(tmp_path, place, damage):
    path = pack(tmp_path / "a.tar", {f"{number}.png": b"content" for number in range(10)})
    content = path.read_bytes()
    for ending in (content, content[: 22 * BLOCK], content[: 21 * BLOCK]):
        path.write_bytes(ending)
        assert len(list(ImageArchive(path).names())) == 10
    path.write_bytes(damage(content))
    with pytest.raises(UserError, match=rf"The tar .*a\.tar is cut off or damaged at byte {place}: "):
        ImageArchive(path)


@pytest.mark.parametrize("name", ["images.zip", "images.tar"])
def test_a_record_whose_image_is_not_in_the_archive_is_named_before_training(tmp_path, name):
    folder = save_data(tmp_path, [make_record(number) for number in range(3)])
    pack(tmp_path / name, {f"{number}.png": (folder / "images" / f"{number}.png").read_bytes() for number in (0, 2)})
    arguments = (str(folder / "data.json"), str(tmp_path / name), make_processor())
    problem = rf"1 of 3 records of .*data\.json cannot be used: record '1': its image .*{name}/1\.png is missing"
    with pytest.raises(UserError, match=problem):
        ConversationDataset(*arguments)
    dataset = ConversationDataset(*arguments, bad_records="skip")
    assert [sample["record_id"] for sample in dataset] == ["'0'", "'2'"]


@pytest.mark.parametrize("name", ["images", "images.zip", "images.tar"])
def test_forked_workers_make_the_samples_of_the_main_process(tmp_path, name):
    """Records and archives are open, and have been read, when the workers start, as in training."""
    folder = save_data(tmp_path, [make_record(number, questions=1 + number % 3) for number in range(9)])
    if name != "images":
        pack(tmp_path / name, {path.name: path.read_bytes() for path in (folder / "images").iterdir()})
    dataset = ConversationDataset(str(folder / "data.json"), str(tmp_path / name), make_processor())
    expected = [dataset[index] for index in range(9)]
    for _ in range(3):
        loader = DataLoader(
            dataset, batch_size=None, num_workers=3, multiprocessing_context="fork", timeout=HANG_SECONDS
        )
        for sample, other in zip(loader, expected, strict=True):
            assert sample["record_id"] == other["record_id"]
            assert all(torch.equal(sample[key], other[key]) for key in ("input_ids", "labels", "pixel_values"))


@pytest.mark.parametrize("size", [0, 10])
def test_a_file_that_is_larger_than_declared_is_not_unpacked(tmp_path, size):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**26))
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    archive = ImageArchive(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.png in .*a\.zip has changed or is damaged"):
        archive.read("a.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22
