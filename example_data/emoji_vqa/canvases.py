"""Canvases: one to four drawings, and sometimes a word, at random positions on a plain ground."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from .drawings import Drawing, crop, rasterize


CANVAS_SIZE = 64  # pixels
DRAWING_SIZES = (24, 26, 28, 30, 32)
MAX_DRAWINGS = 4
LETTER_SIZES = (13, 14, 15, 16)
WRITING_SHARE = 0.6  # of the canvases with one or two drawings; more drawings leave no room
NUM_TRIES = 20

Color = tuple[int, int, int]


@cache
def _font(letter_size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font, so that a word looks the same on every machine."""
    return ImageFont.load_default(letter_size)


@dataclass(frozen=True)
class Placement:
    """Position in pixels of a drawing, named by its concept, or of a written word."""

    name: str
    left: int
    top: int
    width: int
    height: int
    is_mirrored: bool = False

    @property
    def center(self) -> tuple[float, float]:
        """Horizontal and vertical coordinate."""
        return self.left + self.width / 2, self.top + self.height / 2

    def overlaps(self, other: "Placement") -> bool:
        """Returns whether the two share a pixel."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )

    def covers(self, x: float, y: float) -> bool:
        """Returns whether the placement contains a point."""
        return self.left <= x < self.left + self.width and self.top <= y < self.top + self.height


@dataclass(frozen=True)
class Writing:
    """A word with its position, letter size and color."""

    placement: Placement
    letter_size: int
    color: Color

    def letter_at(self, x: float) -> str:
        """Returns the letter at a horizontal coordinate, or the nearest one."""
        word, start = self.placement.name, self.placement.left + 1
        ends = (start + _font(self.letter_size).getlength(word[:number]) for number in range(1, len(word)))
        return word[sum(x >= end for end in ends)]


@dataclass(frozen=True)
class Canvas:
    """Content of one image. One vendor made all its drawings."""

    vendor: str
    ground: Color
    drawings: tuple[Placement, ...]
    writing: Writing | None


def _color(random: Random, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """A random color with saturation and value between bounds."""
    red, green, blue = colorsys.hsv_to_rgb(random.random(), random.uniform(*saturation), random.uniform(*value))
    return round(red * 255), round(green * 255), round(blue * 255)


def _scatter(random: Random, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Placement] | None:
    """Random placements that do not overlap, or `None` if one has not found room in `NUM_TRIES` tries."""
    placements: list[Placement] = []
    for name, (width, height) in zip(names, sizes, strict=True):
        for _ in range(NUM_TRIES):
            left, top = random.randint(0, CANVAS_SIZE - width), random.randint(0, CANVAS_SIZE - height)
            placement = Placement(name, left, top, width, height, is_mirrored=random.random() < 0.5)
            if not any(placement.overlaps(other) for other in placements):
                placements.append(placement)
                break
        else:
            return None
    return placements


def _one_per_quarter(random: Random, names: Sequence[str]) -> list[Placement]:
    """A random placement of each of four drawings in another quarter: four anywhere rarely fit."""
    half = CANVAS_SIZE // 2
    quarters = [(left, top) for left in (0, half) for top in (0, half)]
    random.shuffle(quarters)
    placements = []
    for name, (left, top) in zip(names, quarters, strict=True):
        size = random.choice(DRAWING_SIZES)
        left, top = left + random.randint(0, half - size), top + random.randint(0, half - size)
        placements.append(Placement(name, left, top, size, size, is_mirrored=random.random() < 0.5))
    return placements


def lay_out(random: Random, vendor: str, names: Sequence[str], words: Sequence[str]) -> Canvas:
    """
    Lays out a random canvas with drawings of concepts from `names` and perhaps one of the `words`, which is then not
    drawn. One to four drawings are equally likely, and so are one to all of them with the same concept.
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
        return Canvas(vendor, ground, tuple(_one_per_quarter(random, drawn)), None)
    names, placements = [*drawn, *([word] if word is not None else [])], None
    while placements is None:
        letter_size = random.choice(LETTER_SIZES)
        sizes = [(size, size) for size in (random.choice(DRAWING_SIZES) for _ in drawn)]
        if word is not None:
            left, top, right, bottom = _font(letter_size).getbbox(word)
            sizes.append((right - left + 2, bottom - top + 2))  # one pixel of ground around the letters
        placements = _scatter(random, names, sizes)
    if word is None:
        return Canvas(vendor, ground, tuple(placements), None)
    return Canvas(vendor, ground, tuple(placements[:-1]), Writing(placements[-1], letter_size, ink))


class Painter:
    """Paints canvases with `drawings`, by vendor and name of the concept. Each is rasterized once per size."""

    def __init__(self, drawings: dict[str, dict[str, Drawing]]):
        self.drawings = drawings
        self._rasterize = cache(lambda vendor, name, size: rasterize(crop(self.drawings[vendor][name]), size))

    def paint(self, canvas: Canvas) -> Image.Image:
        """Returns the RGB image with `CANVAS_SIZE` by `CANVAS_SIZE` pixels."""
        image = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), canvas.ground)
        for placement in canvas.drawings:
            drawing = self._rasterize(canvas.vendor, placement.name, placement.width)
            if placement.is_mirrored:
                drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image.paste(drawing, (placement.left, placement.top), drawing)
        if canvas.writing is not None:
            placement, font = canvas.writing.placement, _font(canvas.writing.letter_size)
            left, top, _, _ = font.getbbox(placement.name)
            corner = (placement.left + 1 - left, placement.top + 1 - top)
            ImageDraw.Draw(image).text(corner, placement.name, fill=canvas.writing.color, font=font)
        return image
