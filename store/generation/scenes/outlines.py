"""Outlines: a forest and a city, rows of them that fade into haze with distance."""

from __future__ import annotations

from PIL import Image

from store.generation.scenes.brushes import Point, Sheet, fade, softened, waves
from store.generation.scenes.land import depths, layer, mirror, sky_with_sun
from store.generation.scenes.palettes import mix

__all__ = ["city", "forest"]


def forest(sheet: Sheet) -> Image.Image:
    """Firs on slopes in the fog."""
    w, h = sheet.size
    horizon = h * sheet.between(0.3, 0.45)
    image, _ = sky_with_sun(sheet, horizon * 1.5)
    for t, y, colour, haze in depths(sheet, sheet.whole(4, 6), horizon):
        slope = waves(sheet, 3, 0.5)
        tall, step = h * (0.07 + 0.26 * t * t), w * (0.016 + 0.05 * t)
        ground = [(i / 32 * w, y + h * 0.05 - h * 0.05 * slope(i / 32)) for i in range(33)]
        trees: list[list[Point]] = []
        x = -step * sheet.dice.random()
        while x < w + step:
            foot = y + h * 0.06 - h * 0.05 * slope(x / w)
            trees.append(_fir(sheet, x, foot, tall * sheet.between(0.55, 1.1)))
            x += step * sheet.between(0.35, 1.3)
        mask = sheet.mask([(0, h + 1), *ground, (w, h + 1)], *trees)
        layer(sheet, image, mask, y - tall, colour, haze)
    return image


def _fir(sheet: Sheet, x: float, foot: float, tall: float) -> list[Point]:
    tiers = 7
    left: list[Point] = [(x, foot - tall)]
    right: list[Point] = []
    for tier in range(1, tiers + 1):
        t = tier / tiers
        wide, y = tall * 0.2 * t * sheet.between(0.75, 1.15), foot - tall * (1 - t * 0.94)
        left += [(x - wide, y), (x - wide * 0.45, y - tall * 0.02)]
        right += [(x + wide, y), (x + wide * 0.45, y - tall * 0.02)]
    return [*left, (x - tall * 0.015, foot), (x + tall * 0.015, foot), *right[::-1]]


def city(sheet: Sheet) -> Image.Image:
    """Rows of houses with windows lit, before a low sun; some at the edge of the water."""
    w, h = sheet.size
    has_water = sheet.dice.random() < 0.4
    ground = h * (0.8 if has_water else 1.04)
    image, _ = sky_with_sun(sheet, ground * sheet.between(0.6, 0.75))
    for t, _, colour, haze in depths(sheet, sheet.whole(4, 5), h * 0.5):
        houses: list[list[Point]] = []
        windows: list[list[Point]] = []
        x = -w * 0.02
        while x < w:
            wide = w * sheet.between(0.035, 0.1) * (0.6 + 0.5 * t)
            tall = h * sheet.between(0.14, 0.5) * (1 - 0.5 * t)
            top = ground - h * 0.24 * (1 - t) - tall
            houses.append([(x, h + 1), *_roof(sheet, x, top, wide), (x + wide, h + 1)])
            if t > 0.4:
                windows += _windows(sheet, x, top, wide, t)
            x += wide + w * sheet.between(-0.01, 0.012)
        layer(sheet, image, sheet.mask(*houses), h * 0.4, colour, haze)
        if windows:
            lights = sheet.mask(*windows)
            image.paste(sheet.palette.light, mask=fade(softened(lights, h / 90), 0.5))
            image.paste(mix(sheet.palette.light, sheet.palette.accents[2], 0.35), mask=fade(lights, 0.85))
    if has_water:
        mirror(sheet, image, ground)
    return image


def _roof(sheet: Sheet, x: float, top: float, wide: float) -> list[Point]:
    """Returns a roof from left to right: mostly flat, else a mast, a slope, steps or a gable."""
    kind, lift = int(sheet.dice.random() * 9), wide * sheet.between(0.3, 0.9)
    right, middle, thin = x + wide, x + wide / 2, sheet.unit * 0.003
    match kind:
        case 0:
            mast = [(middle - thin, top), (middle, top - lift * 1.8), (middle + thin, top)]
            return [(x, top), *mast, (right, top)]
        case 1:
            return [(x, top), (right, top - lift * 0.7)]
        case 2:
            a, b = x + wide * 0.25, x + wide * 0.75
            return [(x, top), (a, top), (a, top - lift * 0.5), (b, top - lift * 0.5), (b, top), (right, top)]
        case 3:
            return [(x, top), (middle, top - lift), (right, top)]
        case _:
            return [(x, top), (right, top)]


def _windows(sheet: Sheet, x: float, top: float, wide: float, t: float) -> list[list[Point]]:
    size = sheet.unit * (0.005 + 0.004 * t)
    columns = int(wide / (size * 2.6))
    left = x + (wide - columns * size * 2.6 + size * 1.6) / 2
    lit: list[list[Point]] = []
    for row in range(int((sheet.height - top) / (size * 3.4))):
        for column in range(columns):
            if sheet.dice.random() < 0.3:
                a, b = left + column * size * 2.6, top + size * (2 + row * 3.4)
                lit.append([(a, b), (a + size, b), (a + size, b + size * 1.7), (a, b + size * 1.7)])
    return lit
