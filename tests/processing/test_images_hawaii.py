"""Every form of an image gives the same pixels, whatever it is read from and wherever it goes."""

import base64
import io
import re
import struct
import tracemalloc
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import EpsImagePlugin, Image, ImageFile
from transformers import CLIPImageProcessorPil

from hawaii.processing import images_hawaii
from hawaii.processing.images_hawaii import open_image, read_image_size, square_image
from hawaii.tests.tiny.models import make_processor


GRAY = np.arange(0, 252, 7, dtype=np.uint8).reshape(4, 9)
COLORS = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=-1)


def levels(image):
    return np.asarray(open_image(image)).tolist()


def gray(array):
    return np.repeat(array[..., None], 3, axis=-1).tolist()


def content(image, image_format="PNG"):
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Makes, of an image, everything that it can be read from."""
    folder = tmp_path_factory.mktemp("images")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()

    def make(image):
        path = folder / "image.png"
        image.save(path)
        data = path.read_bytes()
        text = base64.b64encode(data).decode()
        return {
            "path": path,
            "name": str(path),
            "url": f"http://127.0.0.1:{server.server_port}/image.png",
            "data": f"data:image/png;base64,{text}",
            "base64": text,
            "base64 in lines": base64.encodebytes(data).decode(),
            "bytes": data,
            "bytearray": bytearray(data),
            "file": io.BytesIO(data),
            "open file": path.open("rb"),
            "bytes of a data set": ImageFeature().encode_example({"bytes": data, "path": None}),
            "path of a data set": ImageFeature().encode_example(str(path)),
            "image of a data set": ImageFeature().decode_example({"bytes": data, "path": None}),
            "PIL": Image.open(path),
            "pixels": image,
            "array": np.asarray(image),
            "tensor": torch.from_numpy(np.asarray(image).astype(np.asarray(image).dtype)),
        }

    yield make
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (COLORS, COLORS.tolist()),
        (GRAY, gray(GRAY)),
        (GRAY.astype(np.uint16) * 257, gray(GRAY)),
        (np.dstack([COLORS, GRAY]), COLORS.tolist()),
        (np.dstack([GRAY, 255 - GRAY]), gray(GRAY)),
    ],
    ids=["RGB", "gray", "16 bits", "RGBA", "gray and opacity"],
)
def test_an_image_has_the_same_levels_whatever_it_is_read_from(sources, array, expected):
    for name, source in sources(Image.fromarray(array)).items():
        assert levels(source) == expected, name


def test_a_dark_file_of_16_bits_stays_dark(tmp_path):
    Image.fromarray(np.full((4, 4), 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert open_image(tmp_path / "dark.png").getextrema() == ((0, 0),) * 3


def test_floating_point_values_are_not_rescaled_on_request():
    image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    processor = make_processor().image_processor
    plain = CLIPImageProcessorPil(size=processor.size, crop_size=processor.crop_size)
    plain.image_mean, plain.image_std = processor.image_mean, processor.image_std
    expected = plain(image, do_rescale=False, return_tensors="pt")["pixel_values"]
    found = processor(image, do_rescale=False, return_tensors="pt")["pixel_values"]
    assert (found - expected).abs().max() < 0.02  # half a level


def test_a_missing_download_is_an_error(sources):
    url = sources(Image.fromarray(GRAY))["url"].replace("image.png", "gone.png")
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:\d+/gone\.png could not be downloaded: .*404"):
        open_image(url)


FORMS = {
    "16 bits": GRAY.astype(np.uint16) * 257,
    "16 bits, big-endian": (GRAY.astype(np.uint16) * 257).astype(">u2"),
    "16 bits in 32": GRAY.astype(np.int32) * 257,
    "8 bits in 16": GRAY.astype(np.uint16),
    "8 bits in 32": GRAY.astype(np.int32),
    "8 bits in 64": GRAY.astype(np.int64),
    "fractions": (GRAY / 255).astype(np.float32),
    "half fractions": (GRAY / 255).astype(np.float16),
    "double fractions": GRAY / 255,
    "floating-point levels": GRAY.astype(np.float32),
    "floating-point 16 bits": GRAY.astype(np.float32) * 257,
}


@pytest.mark.parametrize("array", FORMS.values(), ids=FORMS)
def test_an_array_of_any_type_is_the_image_of_8_bits(array):
    assert levels(array) == levels(array[None]) == levels(array[..., None]) == gray(GRAY)
    colors = np.stack([array] * 3)
    assert levels(colors) == levels(colors.transpose(1, 2, 0)) == gray(GRAY)
    if array.dtype.isnative:
        assert levels(torch.from_numpy(array)) == gray(GRAY)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GRAY.astype(np.uint16) * 257),
        Image.fromarray((GRAY.astype(np.uint16) * 257).astype(">u2")),
        Image.fromarray(GRAY.astype(np.int32) * 257),
        Image.fromarray(GRAY.astype(np.int32)),
        Image.fromarray((GRAY / 255).astype(np.float32)),
        Image.fromarray(GRAY.astype(np.float32)),
    ],
    ids=["I;16", "I;16B", "I of 16 bits", "I of 8 bits", "F of fractions", "F of levels"],
)
def test_a_pil_image_of_more_than_8_bits_is_the_gray_one_of_8_bits(image):
    assert image.mode[0] in "IF"
    assert levels(image) == gray(GRAY)


def test_brain_floats_are_accepted():
    tensor = torch.from_numpy(GRAY / 255).bfloat16()
    assert np.abs(np.array(levels(tensor)) - gray(GRAY)).max() <= 1  # 8 bits of precision


def test_a_tensor_may_need_a_gradient_and_an_array_be_reversed_or_read_only():
    fractions = torch.from_numpy(GRAY / 255).requires_grad_()
    assert levels(fractions) == levels(GRAY[:, ::-1][:, ::-1]) == gray(GRAY)
    frozen = GRAY.copy()
    frozen.flags.writeable = False
    assert levels(frozen) == gray(GRAY)


def test_a_mask_is_black_and_white():
    assert levels(GRAY > 100) == levels(torch.from_numpy(GRAY > 100)) == gray(255 * (GRAY > 100))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_first_or_last(channels):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    expected = array[..., :3].tolist() if channels > 2 else gray(array[..., 0])
    for image in (array, torch.from_numpy(array), array.transpose(2, 0, 1), torch.from_numpy(array).permute(2, 0, 1)):
        assert levels(image) == expected


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (None, "None is no image; give a path, a URL"),
        (3, "3 is no image"),
        ("", "There is no image"),
        ("cat.png", r"There is no image cat\.png\."),
        ("AAAA" * 100, r"There is no image (AAAA){15}\.\.\.\."),
        ("data:image/png;base64,AAAA", "is no image that Pillow can read"),
        ("data:image/svg+xml,<svg/>", "is no image that Pillow can read without other programs; convert it to PNG"),
        (b"not an image", "A value of 12 bytes is no image that Pillow can read"),
        ({"bytes": None, "path": None}, "None is no image"),
        ({"url": "cat.png"}, "None is no image"),
        (np.zeros((2, 3, 4, 5)), r"its shape \(2, 3, 4, 5\) is not height x width"),
        (np.zeros(5), r"its shape \(5,\) is not height x width"),
        (np.zeros((0, 5)), r"its shape \(0, 5\) is not height x width"),
        (np.zeros((6, 6, 6)), r"neither the first nor the last dimension of shape \(6, 6, 6\) is 1 to 4 colours"),
        (torch.full((3, 3), -1.5), "its values are from -1.5 to -1.5, but must be from 0 to 1, 255 or 65535"),
        (torch.full((3, 3), float("nan")), "its values are from nan to nan"),
        (np.full((3, 3), 70000), "its values are from 70000 to 70000"),
        (Image.new("RGB", (0, 5)), "its size is 0 x 5"),
    ],
)
def test_what_is_no_image_is_one_sentence(image, problem):
    with pytest.raises(ValueError, match=problem) as error:
        open_image(image)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_too_many_pixels_are_one_sentence(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    data = content(Image.new("L", (9, 9)))
    for image in (data, io.BytesIO(data), base64.b64encode(data).decode()):
        with pytest.raises(ValueError, match="has more than 40 pixels; make it smaller"):
            open_image(image)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def test_a_format_of_another_program_is_refused_before_it_runs(tmp_path, monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / "picture.eps").write_bytes(EPS)
    (tmp_path / "picture.png").write_bytes(EPS)
    text = base64.b64encode(EPS).decode()
    images = [tmp_path / "picture.eps", str(tmp_path / "picture.png"), EPS, io.BytesIO(EPS)]
    images += [f"data:image/png;base64,{text}", {"bytes": EPS, "path": None}, Image.open(tmp_path / "picture.eps")]
    for image in images:
        with pytest.raises(ValueError, match="no image that Pillow can read without other programs; convert it"):
            open_image(image)
    with pytest.raises(ValueError, match="There is no image"):
        open_image(text)


@pytest.mark.parametrize(
    "image_format", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP", "MPO"]
)
def test_raster_formats_are_opened(image_format):
    data = content(Image.new("RGB", (20, 10), (200, 100, 50)), image_format)
    for image in (data, Image.open(io.BytesIO(data))):
        opened = open_image(image)
        assert opened.size == (20, 10) and np.abs(np.subtract(opened.getpixel((5, 5)), (200, 100, 50))).max() <= 4


def pad_and_resize(image, mean, side, resample):
    """The definition, at full size."""
    square = Image.new("RGB", (max(image.size),) * 2, tuple(int(255 * value) for value in mean))
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return square.resize((side, side), resample)


SIZES = [(600, 3), (3, 600), (1, 333), (333, 1), (97, 13), (13, 97), (40, 30), (30, 40), (200, 49), (49, 200), (31, 2)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resample", [0, 2, 3], ids=["nearest", "bilinear", "bicubic"])
def test_a_strip_is_padded_as_at_full_size(size, resample):
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (size[1], size[0], 3))
    blocks = 255 * np.kron(generator.integers(0, 2, (size[1] // 5 + 1, size[0] // 5 + 1, 3)), np.ones((5, 5, 1)))
    for array in (noise, blocks[: size[1], : size[0]]):
        image = Image.fromarray(array.astype(np.uint8))
        for mean in ([0.48, 0.45, 0.4], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]):
            for side in (16, 60):
                found = np.asarray(square_image(image, "pad", mean, side, resample)).astype(int)
                assert np.abs(found - np.asarray(pad_and_resize(image, mean, side, resample))).max() <= 1


@pytest.mark.parametrize("size", [(16000, 20), (20, 16000), (50000, 1), (1, 50000)])
def test_a_strip_is_squared_in_little_memory(size):
    data = content(Image.new("RGB", size, "red"))
    original, areas = Image.new, []

    def new(mode, size, *args):
        areas.append(size[0] * size[1])
        return original(mode, size, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "new", new)
        tracemalloc.start()
        pixel_values = make_processor(image_size=64)(images=data, return_tensors="pt")["pixel_values"]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert pixel_values.shape == (1, 3, 64, 64)
    area = size[0] * size[1] + 64 * 64
    assert max(areas) <= 4 * area and peak < 20 * 3 * area


@pytest.mark.parametrize("size", [(150_000, 1), (1, 150_000), (140_000, 3)], ids=str)
def test_a_longer_strip_is_refused_before_its_pixels_are_decoded(size, monkeypatch):
    image = Image.new("RGB", size)
    data = content(image)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    for form in (data, image, np.zeros(size[::-1], dtype=np.uint8)):
        with pytest.raises(ValueError, match=f"its size is {size[0]} x {size[1]}, but sides must have 1 to 131072"):
            open_image(form)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    "damaged",
    [chunk(b"eXIf", b"junk"), chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  10\nzz"), chunk(b"eXIf", b"MM\0*")],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_an_image_with_damaged_exif_is_upright(damaged, mode):
    image = Image.fromarray(COLORS).convert(mode)
    data = content(image)
    assert levels(data[:33] + damaged + data[33:]) == levels(image)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (61, 37), (37, 61), (100, 30), (30, 100), (40, 40)], ids=str)
@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5], ids=lambda kernel: Image.Resampling(kernel).name)
def test_a_padded_image_has_exactly_the_pixels_of_the_definition(size, resample, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for area in (2**22, 700):  # also where an image is resized in parts
        monkeypatch.setattr(images_hawaii, "BAND_AREA", area)
        for side in (24, 64, 77):
            expected = pad_and_resize(image, [0.48, 0.45, 0.4], side, resample)
            assert square_image(image, "pad", [0.48, 0.45, 0.4], side, resample).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "settings", [{}, {"do_normalize": False}, {"do_rescale": False}, {"image_std": [0.5, 0.25, 2.0]}], ids=str
)
def test_values_are_exactly_those_of_clips_image_processor(settings):
    processor = make_processor().image_processor
    for name, value in settings.items():
        setattr(processor, name, value)
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    clip = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, **{n: getattr(processor, n) for n in names})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    found = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, clip(image, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("ratio", ["pad", "crop"])
@pytest.mark.parametrize("size", [(3, 3), (1, 3), (3, 1), (1, 1), (30, 20)], ids=str)
def test_every_route_has_the_same_pixels(sources, size, ratio):
    array = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    processor = make_processor(image_aspect_ratio=ratio)
    expected = processor(images=Image.fromarray(array), return_tensors="pt")["pixel_values"]
    for name, source in sources(Image.fromarray(array)).items():
        if name in ("array", "tensor") and size != (30, 20):
            continue  # transformers reads the first of its dimensions as colours
        message = {"role": "user", "content": [{"type": "image", "image": source}]}
        results = [
            processor(images=source, text="<image>", return_tensors="pt"),
            processor(images=[[source]], text=["<image>"], return_tensors="pt"),
            processor.image_processor(source, return_tensors="pt"),
            processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt"),
        ]
        assert all(torch.equal(result["pixel_values"], expected) for result in results), name


def test_images_may_be_in_any_sequence():
    arrays = np.stack([COLORS, 255 - COLORS])
    column = Dataset.from_dict({"image": [Image.fromarray(array) for array in arrays]})["image"]
    processor = make_processor()
    expected = processor(images=[Image.fromarray(array) for array in arrays], return_tensors="pt")["pixel_values"]
    batches = [column, tuple(column), [[column[0]], (column[1],)], arrays, [arrays[:1], arrays[1:]]]
    for images in [*batches, torch.from_numpy(arrays).permute(0, 3, 1, 2), arrays[None]]:
        assert torch.equal(processor(images=images, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("images", [None, [], [[]], [None]])
def test_no_image_is_one_sentence(images):
    processor = make_processor()
    for call in (processor, processor.image_processor):
        with pytest.raises(
            ValueError, match="Give images, text or both|There are no images|None is no image"
        ) as error:
            call(images=images)
        assert re.fullmatch(r"[^\n]{10,200}", str(error.value))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_the_size_of_a_file_is_that_of_its_upright_image(tmp_path, image_format, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / "image"
    Image.new("RGB", (31, 17), "red").save(path, image_format, exif=exif)
    upright = open_image(path)
    assert read_image_size(path) == read_image_size(path.read_bytes()) == (upright.height, upright.width)
    assert (upright.width, upright.height) == ((17, 31) if (orientation or 1) > 4 else (31, 17))


def test_the_size_of_a_large_jpeg_is_read_without_its_pixels(tmp_path, monkeypatch):
    Image.new("L", (5000, 4000)).save(tmp_path / "image.jpg")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    assert read_image_size(tmp_path / "image.jpg") == (4000, 5000)


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "There is no image"), (b"no image", "is no image that Pillow can read")]
)
def test_the_size_of_what_is_no_image_is_one_sentence(tmp_path, content, problem):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_image_size(path)
