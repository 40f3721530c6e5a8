"""Canvases: one to four drawings, and on some a word, at random places on a plain ground."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from .drawings import Drawing, cut_out, rasterize


CANVAS_SIZE = 64  # pixels
DRAWING_SIZES = (24, 26, 28, 30, 32)
MAX_DRAWINGS = 4
LETTER_SIZES = (13, 14, 15, 16)
WRITING_SHARE = 0.6  # of the canvases with one or two drawings; more leave no room
NUM_TRIES = 20

Color = tuple[int, int, int]


@cache
def _font(letter_size: int) -> ImageFont.FreeTypeFont:
    """The font that Pillow carries with it, so that a word looks alike on every machine."""
    return ImageFont.load_default(letter_size)


@dataclass(frozen=True)
class Placement:
    """What is where on a canvas, in pixels: a drawing, named by its concept, or a written word."""

    name: str
    left: int
    top: int
    width: int
    height: int
    is_mirrored: bool = False

    @property
    def center(self) -> tuple[float, float]:
        """Across and down."""
        return self.left + self.width / 2, self.top + self.height / 2

    def overlaps(self, other: "Placement") -> bool:
        """Whether the two share a pixel."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )

    def covers(self, across: float, down: float) -> bool:
        """Whether a point is in it."""
        return self.left <= across < self.left + self.width and self.top <= down < self.top + self.height


@dataclass(frozen=True)
class Writing:
    """A word, its place, and how it is written."""

    placement: Placement
    letter_size: int
    color: Color

    def letter_at(self, across: float) -> str:
        """The letter at a distance from the canvas's left edge, or the nearest."""
        word, start = self.placement.name, self.placement.left + 1
        ends = (start + _font(self.letter_size).getlength(word[:number]) for number in range(1, len(word)))
        return word[sum(across >= end for end in ends)]


@dataclass(frozen=True)
class Canvas:
    """What is on one image. All its drawings are of one vendor."""

    vendor: str
    ground: Color
    drawings: tuple[Placement, ...]
    writing: Writing | None


def _color(random: Random, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """A color of any hue; the other two are between bounds."""
    red, green, blue = colorsys.hsv_to_rgb(random.random(), random.uniform(*saturation), random.uniform(*value))
    return round(red * 255), round(green * 255), round(blue * 255)


def _sizes(random: Random, names: Sequence[str], word: str | None, letter_size: int) -> list[tuple[int, int]]:
    sizes = [(size, size) for size in (random.choice(DRAWING_SIZES) for _ in names)]
    if word is not None:
        left, top, right, bottom = _font(letter_size).getbbox(word)
        sizes.append((right - left + 2, bottom - top + 2))  # one pixel of ground around the letters
    return sizes


def _scatter(random: Random, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Placement] | None:
    """Random places that do not overlap, or `None` where the last found no room."""
    places: list[Placement] = []
    for name, (width, height) in zip(names, sizes, strict=True):
        for _ in range(NUM_TRIES):
            left, top = random.randint(0, CANVAS_SIZE - width), random.randint(0, CANVAS_SIZE - height)
            place = Placement(name, left, top, width, height, is_mirrored=random.random() < 0.5)
            if not any(place.overlaps(other) for other in places):
                places.append(place)
                break
        else:
            return None
    return places


def _quarters(random: Random, names: Sequence[str]) -> list[Placement]:
    """A random place for each of four in a quarter of its own: thrown at random, four seldom fit."""
    half = CANVAS_SIZE // 2
    quarters = [(left, top) for left in (0, half) for top in (0, half)]
    random.shuffle(quarters)
    places = []
    for name, (left, top) in zip(names, quarters, strict=True):
        size = random.choice(DRAWING_SIZES)
        left, top = left + random.randint(0, half - size), top + random.randint(0, half - size)
        places.append(Placement(name, left, top, size, size, is_mirrored=random.random() < 0.5))
    return places


def lay_out(random: Random, vendor: str, names: Sequence[str], words: Sequence[str]) -> Canvas:
    """
    Decides what is on a canvas: one to four drawings, as often each, and how many of them are of one concept, from one
    to all as often each.

    Args:
        random (`Random`):
            Decides. The same gives the same canvas.
        vendor (`str`):
            Whose drawings.
        names (`Sequence[str]`):
            Concepts to draw.
        words (`Sequence[str]`):
            Words to write. One that is written is not drawn too.
    """
    num_drawings = random.randint(1, MAX_DRAWINGS)
    num_copies = random.randint(1, num_drawings)
    drawn = random.sample(names, num_drawings - num_copies + 1)
    drawn += drawn[:1] * (num_copies - 1)
    random.shuffle(drawn)
    has_word = num_drawings <= 2 and random.random() < WRITING_SHARE
    word = random.choice([word for word in words if word not in drawn]) if has_word else None
    ground, ink = _color(random, (0.0, 0.5), (0.65, 1.0)), _color(random, (0.0, 1.0), (0.0, 0.35))
    if num_drawings == MAX_DRAWINGS:
        return Canvas(vendor, ground, tuple(_quarters(random, drawn)), None)
    places = None
    while places is None:
        letter_size = random.choice(LETTER_SIZES)
        items = [*drawn, *([word] if word is not None else [])]
        places = _scatter(random, items, _sizes(random, drawn, word, letter_size))
    if word is None:
        return Canvas(vendor, ground, tuple(places), None)
    return Canvas(vendor, ground, tuple(places[:-1]), Writing(places[-1], letter_size, ink))


class Painter:
    """
    Paints canvases. Each drawing is rasterised once for each size.

    Args:
        drawings (`dict[str, dict[str, Drawing]]`):
            The drawing of each concept, by vendor and by the concept's name.
    """

    def __init__(self, drawings: dict[str, dict[str, Drawing]]):
        self.drawings = drawings
        self._painted: dict[tuple[str, str, int], Image.Image] = {}

    def _drawing(self, vendor: str, placement: Placement) -> Image.Image:
        key = (vendor, placement.name, placement.width)
        if key not in self._painted:
            self._painted[key] = rasterize(cut_out(self.drawings[vendor][placement.name]), placement.width)
        image = self._painted[key]
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placement.is_mirrored else image

    def paint(self, canvas: Canvas) -> Image.Image:
        """Makes the image, of mode RGB and `CANVAS_SIZE` by `CANVAS_SIZE` pixels."""
        image = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), canvas.ground)
        for placement in canvas.drawings:
            drawing = self._drawing(canvas.vendor, placement)
            image.paste(drawing, (placement.left, placement.top), drawing)
        if canvas.writing is not None:
            place, font = canvas.writing.placement, _font(canvas.writing.letter_size)
            left, top, _, _ = font.getbbox(place.name)
            corner = (place.left + 1 - left, place.top + 1 - top)
            ImageDraw.Draw(image).text(corner, place.name, fill=canvas.writing.color, font=font)
        return image
