"""Blossom: dahlias before a dim garden."""

from __future__ import annotations

import math
from typing import Final

from PIL import Image, ImageDraw

from store.generation.scenes.brushes import Point, Sheet, glow, gradient
from store.generation.scenes.palettes import Colour, mix

__all__ = ["blossom"]

_GOLDEN: Final = math.pi * (3 - math.sqrt(5))


def blossom(sheet: Sheet) -> Image.Image:
    """Dahlias: petals in the golden angle, each row smaller than the one below."""
    w, h, palette = sheet.width, sheet.height, sheet.palette
    deep = mix(palette.land[1], palette.sky[1], 0.35)
    image = gradient((w * 2, h * 2), mix(deep, palette.sky[1], 0.5), deep, mix(deep, palette.land[1], 0.5))
    for _ in range(12):
        spot = sheet.between(0, 2) * w, sheet.between(0, 2) * h
        tint = mix(sheet.accent(), palette.light, 0.4)
        glow(image, spot, sheet.unit * sheet.between(0.06, 0.5), tint, sheet.between(0.06, 0.2), 1.2)
    draw = ImageDraw.Draw(image)
    flowers = []
    count = sheet.whole(1, 4)
    for index in range(count):
        radius = 2 * sheet.unit * (sheet.between(0.4, 0.5) if count == 1 else sheet.between(0.2, 0.34))
        x = 2 * w * ((index + 0.5) / count + sheet.between(-0.08, 0.08))
        y = 2 * h * (0.5 + (sheet.between(-0.1, 0.1) if count == 1 else sheet.between(-0.27, 0.27)))
        flowers.append(((x, y), radius))
    for centre, radius in flowers:
        _leaves(sheet, draw, centre, radius, mix(deep, sheet.accent(), 0.3))
    for index, (centre, radius) in enumerate(flowers):
        outer, inner = palette.accents[(index + sheet.whole(0, 3)) % 4], palette.accents[sheet.whole(0, 3)]
        _dahlia(sheet, draw, centre, radius, mix(outer, palette.light, 0.15), inner)
    return image.reduce(2)


def _leaves(sheet: Sheet, draw: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    turn = sheet.between(0, math.tau)
    for index in range(7):
        angle = turn + (index + sheet.between(0, 0.6)) / 7 * math.tau
        for scale, tone in ((1.0, mix(colour, sheet.palette.land[1], 0.6)), (0.9, colour)):
            leaf = _petal(centre, angle, radius * 1.25, radius, radius * 0.36 * scale, scale)
            draw.polygon(leaf, fill=tone)


def _dahlia(
    sheet: Sheet, draw: ImageDraw.ImageDraw, centre: Point, radius: float, outer: Colour, inner: Colour
) -> None:
    palette, turn = sheet.palette, sheet.between(0, math.tau)
    petals, wide = sheet.whole(50, 150), sheet.between(0.18, 0.3)
    for index in range(petals):
        t = 1 - index / petals
        angle, reach = turn + index * _GOLDEN, radius * (0.1 + 0.9 * t**0.72)
        length = reach * 0.62 + radius * 0.08
        colour = mix(inner, outer, t**0.8)
        tones = mix(colour, palette.land[1], 0.5), colour, mix(colour, palette.light, 0.3)
        across = radius * wide * (0.3 + 0.7 * t)
        for scale, tone in zip((1.0, 0.93, 0.5), tones, strict=True):
            draw.polygon(_petal(centre, angle, reach, length, across * scale, scale), fill=tone)
    for index in range(90):
        far, angle, dot = radius * 0.1 * math.sqrt(1 - index / 90), index * _GOLDEN, radius * 0.009
        x, y = centre[0] + far * math.cos(angle), centre[1] + far * math.sin(angle)
        tone = mix(mix(inner, palette.land[1], 0.45), palette.light, 0.75 * index / 90)
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=tone)


def _petal(
    centre: Point,
    angle: float,
    reach: float,
    length: float,
    wide: float,
    scale: float,
) -> list[Point]:
    cos, sin = math.cos(angle), math.sin(angle)
    points = []
    for k in range(-8, 9):
        along = 1 - abs(k) / 8
        across = math.copysign(math.sin(math.pi * along**1.6) * 0.5 * wide, k)
        far = reach - length + length * along * (0.86 + 0.14 * scale)
        points.append((centre[0] + far * cos - across * sin, centre[1] + far * sin + across * cos))
    return points
