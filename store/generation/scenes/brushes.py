"""Brushes: what every scene paints with. Coordinates are pixels; lengths follow the sheet, so that
the same dice give the same composition at every size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Final, NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from store.generation.scenes.palettes import Colour, Palette, ramp

__all__ = [
    "Point",
    "Sheet",
    "broken",
    "circle",
    "fade",
    "field",
    "finished",
    "glow",
    "gradient",
    "softened",
    "stars",
    "veil",
    "waves",
]

Point = tuple[float, float]


class Sheet(NamedTuple):
    """What a scene gets: a size, colours, and dice that only the prompt and the seed decide."""

    width: int
    height: int
    palette: Palette
    dice: Random

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def unit(self) -> float:
        """The shorter side: a round thing of `0.1 * unit` fits whatever the proportions."""
        return float(min(self.width, self.height))

    @property
    def fine(self) -> int:
        """How many samples per pixel and direction make edges smooth: fewer where pixels are small."""
        return 4 if self.unit <= 256 else 3 if self.unit <= 640 else 2

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.dice.random()

    def whole(self, low: int, high: int) -> int:
        """Returns a whole number, both ends included."""
        return low + int(self.dice.random() * (high - low + 1))

    def accent(self) -> Colour:
        return self.palette.accents[int(self.dice.random() * 4)]

    def mask(self, *polygons: Sequence[Point]) -> Image.Image:
        """Returns where the polygons are, 0 to 255, with smooth edges."""
        fine = self.fine
        large = Image.new("L", (self.width * fine, self.height * fine))
        draw = ImageDraw.Draw(large)
        for polygon in polygons:
            draw.polygon([(x * fine, y * fine) for x, y in polygon], fill=255)
        return large.reduce(fine)


def circle(centre: Point, radius: float, corners: int = 64) -> list[Point]:
    """Returns a polygon that looks round."""
    turns = (k / corners * math.tau for k in range(corners))
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in turns]


def gradient(size: tuple[int, int], *colours: Colour) -> Image.Image:
    """Returns a fill that goes through the colours from top to bottom."""
    strip = Image.new("RGB", (1, 48))
    strip.putdata(ramp(colours, 48))
    return strip.resize((1, size[1]), Image.Resampling.BICUBIC).resize(size, Image.Resampling.NEAREST)


def veil(size: tuple[int, int], *levels: int) -> Image.Image:
    """Returns a mask that goes through the levels from top to bottom."""
    return gradient(size, *((level, level, level) for level in levels)).getchannel(0)


def glow(
    image: Image.Image,
    centre: Point,
    radius: float,
    colour: Colour,
    strength: float,
    power: float = 2,
) -> None:
    """Lays light over the image, strongest at the centre and gone at the radius."""
    side = max(2, round(2 * radius))
    mask = _falloff(power).resize((side, side), Image.Resampling.BILINEAR)
    corner = round(centre[0] - radius), round(centre[1] - radius)
    image.paste(colour, corner, mask.point([round(v * strength) for v in range(256)]))


@lru_cache(maxsize=16)
def _falloff(power: float) -> Image.Image:
    # Pillow's gradient has 181 at the middle of each side, and 255 only in the corners.
    table = [round(255 * max(0.0, 1 - v / 180) ** power) for v in range(256)]
    return Image.radial_gradient("L").point(table)


def fade(mask: Image.Image, strength: float) -> Image.Image:
    return mask.point([round(v * strength) for v in range(256)])


def softened(mask: Image.Image, radius: float) -> Image.Image:
    """Blurs; at a quarter of the size when the radius allows it, which nobody can see."""
    if radius < 8:
        return mask.filter(ImageFilter.GaussianBlur(radius))
    small = mask.reduce(4).filter(ImageFilter.GaussianBlur(radius / 4))
    return small.resize(mask.size, Image.Resampling.BICUBIC)


def waves(sheet: Sheet, octaves: int = 3, frequency: float = 1.0) -> Callable[[float], float]:
    """Returns a smooth curve over 0..1 with values in about -1..1."""
    parts = [
        (0.55**k, frequency * 2**k * math.tau * sheet.between(0.75, 1.25), sheet.between(0, math.tau))
        for k in range(octaves)
    ]
    total = sum(part[0] for part in parts)
    return lambda t: sum(size * math.sin(turns * t + phase) for size, turns, phase in parts) / total


def field(sheet: Sheet, columns: int, rows: int) -> Image.Image:
    """Returns soft patches, 0 to 255, about as many as columns times rows."""
    patches = bytes(sheet.whole(0, 255) for _ in range(columns * rows))
    return Image.frombytes("L", (columns, rows), patches).resize(sheet.size, Image.Resampling.BICUBIC)


def broken(
    sheet: Sheet,
    line: list[float],
    roughness: float,
    reach: float = 0.5,
    halvings: int = 5,
) -> list[float]:
    """Returns the line with each span halved and its middle displaced, again and again."""
    for _ in range(halvings):
        middles = [(a + b) / 2 + sheet.between(-reach, reach) for a, b in pairwise(line)]
        line = [height for pair in zip(line, middles, strict=False) for height in pair] + [line[-1]]
        reach *= roughness
    return line


def stars(sheet: Sheet, image: Image.Image, count: int, lowest: float) -> None:
    """Puts points of light above a height, a few of them with a halo."""
    draw = ImageDraw.Draw(image, "RGBA")
    for index in range(count):
        x, y = sheet.between(0, sheet.width), sheet.between(0, lowest)
        size = sheet.unit * (0.0008 + 0.0022 * sheet.dice.random() ** 3)
        if index % 14 == 0:
            glow(image, (x, y), size * 8, sheet.palette.light, 0.35)
        alpha = round(255 * sheet.between(0.3, 0.95) * (1 - 0.7 * y / lowest))
        draw.ellipse((x - size, y - size, x + size, y + size), fill=(*sheet.palette.light, alpha))


_GRAIN_PX: Final = 256


@lru_cache(maxsize=1)
def _grain() -> Image.Image:
    """A tile of 128, with an eighth of it one level off: enough to hide the steps of a gradient.

    Twice as many would make a PNG a fifth larger.
    """
    noise = Random(0).randbytes(_GRAIN_PX * _GRAIN_PX)
    return Image.frombytes("L", (_GRAIN_PX, _GRAIN_PX), bytes(127 + (v >= 16) + (v >= 240) for v in noise))


def finished(image: Image.Image) -> Image.Image:
    """Returns the image a little darker in its corners, with a grain that is just not seen."""
    corners = Image.radial_gradient("L").resize(image.size, Image.Resampling.BILINEAR)
    image.paste((0, 0, 0), mask=corners.point([max(0, round((v - 120) * 0.3)) for v in range(256)]))
    cover = Image.new("L", image.size)
    for top in range(0, image.height, _GRAIN_PX):
        for left in range(0, image.width, _GRAIN_PX):
            cover.paste(_grain(), (left, top))
    return ImageChops.add(image, Image.merge("RGB", (cover, cover, cover)), 1, -128)
