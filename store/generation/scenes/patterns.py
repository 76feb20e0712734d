"""Patterns: silk, woven rings, cut paper."""

from __future__ import annotations

import math
from typing import Final

from PIL import Image, ImageDraw, ImageFilter

from store.generation.scenes.brushes import Point, Sheet, fade, field, glow, gradient, softened, waves
from store.generation.scenes.palettes import Colour, mix, ramp

__all__ = ["paper", "ribbons", "woven"]

_STRANDS: Final = 12


def ribbons(sheet: Sheet) -> Image.Image:
    """Bands of silk that twist as they cross the sheet."""
    palette = sheet.palette
    back = [mix(colour, palette.land[1], 0.3 if palette.is_dark else 0.04) for colour in palette.sky]
    image = gradient(sheet.size, *back)
    spot = sheet.between(0, 1) * sheet.width, sheet.between(0, 1) * sheet.height
    glow(image, spot, sheet.unit * 0.9, palette.light, 0.5)
    bands, slope = sheet.whole(4, 6), sheet.between(-0.5, 0.5)
    for band in range(bands):
        first, second = palette.accents[band % 4], palette.accents[(band + sheet.whole(1, 3)) % 4]
        depth = 1 - (band + 1) / bands
        colours = [mix(colour, back[1], 0.5 * depth) for colour in ramp((first, second), _STRANDS)]
        _silk(sheet, image, (band + 0.6) / bands, slope, colours)
    return image


def _silk(sheet: Sheet, image: Image.Image, level: float, slope: float, colours: list[Colour]) -> None:
    """Draws a band: small and in strands for its colours, in full for its outline.

    Bright where it faces the light, dark where it turns, and dark again on its back.
    """
    w, h = sheet.size
    middle, width, sheen = waves(sheet, 2, 0.5), sheet.between(0.16, 0.4) * h, waves(sheet, 2, 0.8)
    twist, phase, steps = sheet.between(2.0, 5.5), sheet.between(0, math.tau), 48
    dark, light = sheet.palette.land[1], sheet.palette.light
    small = Image.new("RGB", (max(1, w // 4), max(1, h // 4)), colours[0])
    draw = ImageDraw.Draw(small)
    upper: list[Point] = []
    lower: list[Point] = []
    for i in range(steps + 1):
        t = (i / steps) * 1.04 - 0.02
        turn, spot = math.cos(twist * t + phase), 0.5 + 0.5 * sheen(t)
        y = h * (level + slope * (t - 0.5) + 0.13 * middle(t))
        reach, x, face = width * turn / 2, t * w, abs(turn)
        upper.append((x, y - reach))
        lower.append((x, y + reach))
        dim = round(16 * (0.6 - 0.6 * face + (0.0 if turn > 0 else 0.16))) / 16
        for s in range(-2, _STRANDS + 2):
            at = min(max(s, 0), _STRANDS - 1) / (_STRANDS - 1)
            gloss = max(0.0, 1 - abs(at - spot) * 2.6) * face
            tone = mix(mix(colours[round(at * (_STRANDS - 1))], dark, dim), light, round(8 * gloss**1.5) / 13)
            a, b = sorted((y + reach * (s / _STRANDS * 2 - 1), y + reach * ((s + 1) / _STRANDS * 2 - 1)))
            half = w / steps * 0.55
            draw.rectangle(((x - half) / 4, a / 4, (x + half) / 4, b / 4), fill=tone)
    outline = sheet.mask([*upper, *lower[::-1]])
    _drop(sheet, image, outline, 0.4)
    small = small.filter(ImageFilter.GaussianBlur(sheet.unit / 300))
    image.paste(small.resize(sheet.size, Image.Resampling.BICUBIC), mask=outline)


def _drop(sheet: Sheet, image: Image.Image, mask: Image.Image, strength: float) -> None:
    """Lays the shadow of a shape on what is below it."""
    shadow = softened(mask, sheet.unit / 50)
    moved = shadow.copy()
    moved.paste(shadow, (round(sheet.unit * 0.008), round(sheet.unit * 0.016)))
    image.paste(mix(sheet.palette.land[1], (0, 0, 0), 0.5), mask=fade(moved, strength))


def woven(sheet: Sheet) -> Image.Image:
    """Rings that go over and under each other."""
    w, h, palette = sheet.width, sheet.height, sheet.palette
    dim = 0.5 if palette.is_dark else 0.05
    image = gradient((w * 2, h * 2), *(mix(colour, palette.land[1], dim) for colour in palette.sky))
    draw = ImageDraw.Draw(image)
    step, turn = 2 * math.sqrt(w * h) * sheet.between(0.2, 0.34), sheet.between(0, math.pi / 3)
    radius, width = step * 0.66, step * 0.13
    cos, sin = math.cos(turn) * step, math.sin(turn) * step
    reach = math.ceil(1.2 * max(w, h) * 2 / step)
    rings: dict[tuple[int, int], tuple[Point, Colour]] = {}
    tint = field(sheet, 5, 5).resize((64, 64))
    colours = ramp((*palette.accents, palette.accents[0]), 256)
    for j in range(-reach, reach + 1):
        for i in range(-reach, reach + 1):
            u, v = i + j * 0.5, j * 0.8660254
            x, y = w + u * cos - v * sin, h + u * sin + v * cos
            if -radius < x < 2 * w + radius and -radius < y < 2 * h + radius:
                seen = tint.getpixel((min(63, max(0, int(x / w * 32))), min(63, max(0, int(y / h * 32)))))
                assert isinstance(seen, int | float)
                rings[i, j] = (x, y), colours[int(seen)]
    for centre, colour in rings.values():
        _ring(draw, sheet, centre, radius, width, colour, 0.0, math.tau, 40)
    for (i, j), (centre, colour) in rings.items():
        for index, (di, dj) in enumerate(((1, 0), (0, 1), (-1, 1))):
            if (i + di, j + dj) in rings:
                # Later rings lie on top at both crossings; at one of them the earlier one comes up again.
                middle = turn + index * math.pi / 3 + math.acos(step / 2 / radius)
                _ring(draw, sheet, centre, radius, width, colour, middle - 0.26, middle + 0.26, 5)
    return image.reduce(2)


def _ring(
    draw: ImageDraw.ImageDraw,
    sheet: Sheet,
    centre: Point,
    radius: float,
    width: float,
    colour: Colour,
    start: float,
    end: float,
    steps: int,
) -> None:
    """Draws a part of a ring: a dark edge, the body, and a line of light on it."""
    dark, light = mix(colour, sheet.palette.land[1], 0.7), mix(colour, sheet.palette.light, 0.6)
    body = mix(colour, sheet.palette.light, 0.08)
    for offset, thick, tone in (
        (0.0, 1.0, dark),
        (0.0, 0.74, colour),
        (-0.05, 0.42, body),
        (-0.13, 0.13, light),
    ):
        middle, half = radius - offset * width, thick * width / 2
        turns = [start + (end - start) * k / steps for k in range(steps + 1)]
        far, near = middle + half, middle - half
        outer = [(centre[0] + far * math.cos(a), centre[1] + far * math.sin(a)) for a in turns]
        inner = [(centre[0] + near * math.cos(a), centre[1] + near * math.sin(a)) for a in turns]
        for k in range(steps):
            draw.polygon((outer[k], outer[k + 1], inner[k + 1], inner[k]), fill=tone)


def paper(sheet: Sheet) -> Image.Image:
    """Sheets of paper with holes, one above the other, each with its shadow."""
    w, h, palette = sheet.width, sheet.height, sheet.palette
    cells, turn = sheet.between(2.6, 4.6), sheet.between(0, math.tau)
    hills = Image.frombytes("L", (12, 12), bytes(sheet.whole(0, 255) for _ in range(144)))
    # In floating point: eight bits would turn the borders into stairs. Turned: no border follows the grid.
    cos, sin = math.cos(turn) * cells / max(w, h), math.sin(turn) * cells / max(w, h)
    place = (cos, -sin, 6 - cos * w / 2 + sin * h / 2, sin, cos, 6 - sin * w / 2 - cos * h / 2)
    plane = hills.convert("F").transform(sheet.size, Image.Transform.AFFINE, place, Image.Resampling.BICUBIC)
    layers, edge = sheet.whole(7, 9), max(w, h) / (cells * 1.6)
    order = (palette.land[1], palette.accents[3], palette.accents[0], palette.accents[1], palette.sky[2])
    colours = ramp(order if sheet.dice.random() < 0.5 else order[::-1], layers + 1)
    image = Image.new("RGB", sheet.size, colours[0])
    for layer in range(layers):
        level = 20 + 215 * (layer + 0.5) / layers
        mask = plane.point(lambda v, k=edge, c=level: v * k + (127.5 - c * k)).convert("L")
        _drop(sheet, image, mask, 0.55)
        colour = colours[layer + 1]
        image.paste(gradient(sheet.size, mix(colour, palette.light, 0.12), colour), mask=mask)
    return image
