"""Images, records and data files that are broken in many ways."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from hawaii.tests.tiny.training import make_image, make_record


def save(image: Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes | None = None, depth: int = 8, color: int = 2, crc: int = 0) -> bytes:
    """Returns a small black PNG file, or one with the given rows, without an image library."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ crc)

    packer = zlib.compressobj(9)
    row = bytes(1 + width * depth * {0: 1, 2: 3, 6: 4}[color] // 8)
    data = b"".join([packer.compress(row) for _ in range(height)] if rows is None else [packer.compress(rows)])
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", data + packer.flush()), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NOISE = make_image(0, 64, 48)
JPEG, PNG = save(NOISE, "JPEG"), save(NOISE, "PNG")
LATE_CRC = bytearray(PNG)
LATE_CRC[len(PNG) // 2] ^= 0xFF
# The size in the header of a real file is far too large for its content.
LYING = bytearray(JPEG)
LYING[JPEG.index(b"\xff\xc0") + 5 : JPEG.index(b"\xff\xc0") + 9] = struct.pack(">HH", 60000, 60000)
LYING_PNG = PNG[:8] + png(40000, 40000, b"")[8:]

BROKEN_IMAGES = {
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(4096),
    "random": np.random.default_rng(0).bytes(4096),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "json": b'{"error": "rate limit"}',
    "text of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "JPEG header alone": JPEG[:200],
    "JPEG of 10 bytes": JPEG[:10],
    "truncated PNG": PNG[: len(PNG) // 2],
    "PNG header alone": PNG[:33],
    "PNG signature alone": PNG[:8],
    "PNG with a wrong checksum of its header": png(4, 4, crc=1),
    "PNG with a flipped byte": bytes(LATE_CRC),
    "PNG of other compressed data": png(64, 64, b"too short"),
    "PNG of no width": png(0, 5),
    "PNG of no height": png(5, 0, b""),
    "PNG of 16 gigapixels": png(131072, 131072, b""),
    "PNG of 400 megapixels": png(20000, 20000),
    "strip of 150 megapixels": png(150_000_000, 1, bytes(1 + 150_000_000 // 8), depth=1, color=0),
    "standing strip of 200,000 pixels": png(1, 200_000),
    "JPEG that claims 3.6 gigapixels": bytes(LYING),
    "PNG that claims 1.6 gigapixels": LYING_PNG,
    "truncated GIF": save(NOISE, "GIF")[:300],
    "truncated WebP": save(NOISE, "WEBP")[:300],
    "truncated TIFF": save(NOISE, "TIFF")[:300],
    "truncated BMP": save(NOISE, "BMP")[:300],
    "TIFF with a cycle of directories": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "PDF": b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "zip": b"PK\x03\x04" + bytes(100),
    "gzip": zlib.compress(JPEG),
    "video": b"\0\0\0\x18ftypmp42" + bytes(100),
    "safetensors": struct.pack("<Q", 2) + b"{}",
    "PNG with a bomb in its text": PNG[:33]
    + (lambda data: struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data)))(
        b"a\0\0" + zlib.compress(bytes(2**27), 9)
    )
    + PNG[33:],
}

GOOD_IMAGES = {
    "JPEG": JPEG,
    "CMYK": save(NOISE.convert("CMYK"), "JPEG"),
    "gray": save(NOISE.convert("L"), "JPEG"),
    "palette": save(NOISE.convert("P"), "PNG"),
    "opacity": save(NOISE.convert("RGBA"), "PNG"),
    "16 bits": save(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG"),
    "1 bit": save(NOISE.convert("1"), "PNG"),
    "animated GIF": save(NOISE, "GIF", save_all=True, append_images=[make_image(n, 64, 48) for n in range(1, 5)]),
    "animated WebP": save(NOISE, "WEBP", save_all=True, append_images=[make_image(1, 64, 48)]),
    "progressive JPEG": save(NOISE, "JPEG", progressive=True),
    "strip of 167 bytes": png(30000, 1),
    "standing strip": png(1, 30000),
    "one pixel": png(1, 1),
}


def make_special_files(folder: Path) -> list[str]:
    """Creates paths that are not image files; returns their names."""
    os.mkfifo(folder / "fifo.png")
    (folder / "directory.png").mkdir()
    (folder / "fifo link.png").symlink_to(folder / "fifo.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "loop of two.png").symlink_to(folder / "other loop.png")
    (folder / "other loop.png").symlink_to(folder / "loop of two.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    names = ["fifo", "directory", "fifo link", "device", "loop", "loop of two", "nowhere", "missing"]
    return [f"{name}.png" for name in names]


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


GOOD = {**make_record(0), "image": "good.png"}
ASK, ANSWER = GOOD["conversations"]


def change(**fields) -> str:
    """A good record with other fields, as JSON."""
    return json.dumps({**GOOD, **fields})


def talk(*conversation) -> str:
    return change(conversations=list(conversation))


DEEP = "[" * 500 + "]" * 500
# Records in the text of a JSON file.
BROKEN_RECORDS = {
    "null": "null",
    "number": "7",
    "text": '"a record"',
    "list": "[1, 2]",
    "empty": "{}",
    "no conversations": json.dumps({"id": "x", "image": "good.png"}),
    "conversations null": change(conversations=None),
    "conversations of text": change(conversations="what ?"),
    "conversations of one turn": change(conversations=ASK),
    "no turns": talk(),
    "turn null": talk(None, ANSWER),
    "turn of text": talk("what ?", "red"),
    "turn in a list": talk([ASK], [ANSWER]),
    "turn without speaker": talk({"value": "<image>"}, ANSWER),
    "turn without text": talk(ASK, {"from": "gpt"}),
    "turn of another speaker": talk({"from": "system", "value": "be kind"}, ASK, ANSWER),
    "speaker of another type": talk({"from": 1, "value": "what ?"}, ANSWER),
    "text null": talk(ASK, {"from": "gpt", "value": None}),
    "text a number": talk(ASK, {"from": "gpt", "value": 5}),
    "text a list": talk(ASK, {"from": "gpt", "value": ["red"]}),
    "text NaN": talk(ASK, {"from": "gpt", "value": float("nan")}),
    "names of messages": change(conversations=[{"role": "user", "content": "what ?"}]),
    "question alone": talk(ASK),
    "answer alone, dropped": talk(ANSWER),
    "answer before its question": talk(ANSWER, ASK),
    "empty answer": talk(ASK, {"from": "gpt", "value": ""}),
    "blank answer": talk(ASK, {"from": "gpt", "value": " \n\t "}),
    "answer of private characters": talk(ASK, {"from": "gpt", "value": "\ue000\ue001"}),
    "answer of an image": talk(ASK, {"from": "gpt", "value": "<image>"}),
    "more placeholders": talk({"from": "human", "value": "<image><image>"}, ANSWER),
    "fewer placeholders": talk({"from": "human", "value": "what ?"}, ANSWER),
    "a thousand placeholders": talk({"from": "human", "value": "<image>" * 1000}, ANSWER),
    "too many images": change(image=["good.png"] * 40, conversations=turns("<image>" * 40, "red")),
    "longer than max_length": talk({"from": "human", "value": "<image>" + "what is this ? " * 2000}, ANSWER),
    "lone surrogate": talk(ASK, {"from": "gpt", "value": "red \ud83d"}),
    "lone surrogate in a question": talk({"from": "human", "value": "<image> \udc00 ?"}, ANSWER),
    "image a number": change(image=5),
    "image an object": change(image={"path": "good.png"}),
    "image a list of lists": change(image=[["good.png"]]),
    "image missing": change(image="gone.png"),
    "image without its field": json.dumps({"id": "x", "conversations": [ASK, ANSWER]}),
    "image with a null byte": change(image="a\0b.png"),
    "image with a surrogate": change(image="\ud83d.png"),
    "image of a long name": change(image="a" * 5000),
    "image above the folder": change(image="../good.png"),
    "image elsewhere": change(image="/etc/hostname"),
    "image from the network": change(image="http://127.0.0.1:9/a.png"),
    "image in base64": change(image="data:image/png;base64,AAAA"),
    "image the folder": change(image="."),
    "deep nesting in a turn": talk(ASK, ANSWER).replace(json.dumps(ANSWER), DEEP),
    "deep nesting in an image": change(image="DEEP").replace('"DEEP"', DEEP),
    "other images in image and in images": change(images=["gone.png"]),
    "a field twice": change()[:-1] + ', "image": "gone.png"}',
    "a turn's field twice": talk(ASK, ANSWER).replace('"from": "gpt"', '"from": "gpt", "value": "blue"'),
}

LIST = json.dumps([GOOD, GOOD], indent=1)
# Broken data files, which no policy can skip, and the reason in the error.
BROKEN_FILES = {
    "empty": (b"", "line 1: Expecting value"),
    "blank": (b" \n \n", "Expecting value"),
    "truncated": (LIST[:-20].encode(), r"line \d+: "),
    "truncated in a text": (LIST[:-30].encode(), r"line \d+: "),
    "one bracket": (b"[", "line 1: Expecting value"),
    "no record": (b"[]", "one or more"),
    "an object": (b'{"data": []}', "must hold a list of records"),
    "a number": (b"17", "must hold a list of records"),
    "a text": (b'"data"', "must hold a list of records"),
    "null": (b"null", "must hold a list of records"),
    "list of lists": (json.dumps([[GOOD]]).encode(), "must hold a list of records"),
    "list of numbers": (b"[1, 2]", "must hold a list of records"),
    "single quotes": (str([GOOD]).encode(), "line 1: "),
    "trailing comma": (LIST[:-2].encode() + b",]", r"line \d+: "),
    "two lists": ((LIST + LIST).encode(), r"line \d+: "),
    "comment": (b"// records\n" + LIST.encode(), "line 1: "),
    "Latin 1": ('[{"id": "\xe9"}]'.encode("latin-1"), "not UTF-8"),
    "UTF-16": (LIST.encode("utf-16"), "not UTF-8"),
    "UTF-16 without a mark": (LIST.encode("utf-16-le"), "line 1: "),
    "UTF-32": (LIST.encode("utf-32"), "not UTF-8"),
    "null bytes": (LIST.encode() + bytes(100), r"line \d+: "),
    "nothing but null bytes": (bytes(1000), "line 1: "),
    "control character in a text": (b'[{"id": "a\x01b"}]', "line 1: Invalid control character"),
    "deep nesting": (b"[" * 100_000 + b"]" * 100_000, "line 1: its JSON is nested too deeply"),
    "deep nesting in a record": (
        b'[{"id": 1},\n{"id": ' + b"[" * 5000 + b"]" * 5000 + b"}]",
        "line 2: its JSON is nested too deeply",
    ),
    "number of 5,000 digits": (b'[{"id": 1},\n{"id": ' + b"7" * 5000 + b"}]", "line 2: a number has too many digits"),
    "gzip": (zlib.compress(LIST.encode()), "not UTF-8|line 1"),
    "parquet": (b"PAR1" + bytes(100) + b"PAR1", "line 1: "),
}


def huge_line() -> str:
    """A good file of one line, 30 MB long."""
    return json.dumps([{**GOOD, "note": "a" * 30_000_000}, GOOD])
