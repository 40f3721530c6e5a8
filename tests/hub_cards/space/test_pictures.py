"""Uploaded pictures."""

import pytest
from PIL import Image

from hawaii.hub_cards.space.hawaii_space.pictures import open_upload
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_image


PROCESSOR = make_processor()


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpeg", "png", "tiff", "webp"])
def test_a_picture_is_opened_as_the_processor_opens_it(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    make_image(3, 20, 10).save(path)
    (expected,) = PROCESSOR.image_processor.fetch_images(str(path))
    assert open_upload(PROCESSOR, path).tobytes() == expected.tobytes()


def test_a_photograph_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera turned by a quarter
    make_image(3, 20, 10).save(tmp_path / "photograph.jpeg", exif=exif)
    assert open_upload(PROCESSOR, tmp_path / "photograph.jpeg").size == (10, 20)


def test_a_format_that_needs_another_program_is_refused(tmp_path):
    make_image(3, 20, 10).save(tmp_path / "drawing.png", format="EPS")
    with pytest.raises(ValueError, match="This file is not a picture that can be read"):
        open_upload(PROCESSOR, tmp_path / "drawing.png")


@pytest.mark.parametrize("side", [9000, 20000])  # Pillow refuses the second
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, side, monkeypatch):
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    monkeypatch.setattr(PROCESSOR.image_processor, "fetch_images", None)
    with pytest.raises(ValueError, match="more than 64,000,000"):
        open_upload(PROCESSOR, tmp_path / "huge.png")


def test_an_error_names_no_path(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"no picture")
    make_image(3, 40, 40).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-60])
    for name, problem in {
        "secret.png": "not a picture",
        "cut.png": "damaged",
        "deleted.png": "not kept any longer",
    }.items():
        with pytest.raises(ValueError, match=problem) as caught:
            open_upload(PROCESSOR, tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
