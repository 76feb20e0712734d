"""Sky and water: an open sea, and planets."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFilter

from store.generation.scenes.brushes import (
    Point,
    Sheet,
    broken,
    circle,
    fade,
    glow,
    gradient,
    stars,
    waves,
)
from store.generation.scenes.land import sky_with_sun
from store.generation.scenes.palettes import Colour, mix

__all__ = ["orbits", "sea"]


def sea(sheet: Sheet) -> Image.Image:
    """A sun over water, its light broken by the waves; sometimes islands or a sail."""
    w, h, palette = sheet.width, sheet.height, sheet.palette
    horizon = h * sheet.between(0.42, 0.6)
    image, sun = sky_with_sun(sheet, horizon, low=True)
    if sheet.dice.random() < 0.65:
        _islands(sheet, image, horizon)
    top = round(horizon)
    water = gradient((w, h - top), mix(palette.sky[2], palette.land[0], 0.6), *palette.land)
    glow(water, (sun[0], 0), h * 0.45, palette.light, 0.45)
    image.paste(water, (0, top))
    draw = ImageDraw.Draw(image, "RGBA")
    for index in range(520):
        t = (index / 520) ** 1.6
        y, thick = top + 1 + (h - top) * t, h * (0.0007 + 0.0042 * t)
        long = w * (0.008 + 0.05 * t) * sheet.between(0.3, 1.3)
        if index % 3:
            spread = w * (0.03 + 0.2 * t) * (sheet.dice.random() + sheet.dice.random() - 1)
            x, colour, alpha = sun[0] + spread, palette.light, 150 * sheet.between(0.3, 1) * (1 - 0.4 * t)
        else:
            x, colour, alpha = sheet.between(0, w), palette.land[index // 3 % 2], 60 * sheet.between(0.3, 1)
        draw.ellipse((x - long, y - thick, x + long, y + thick), fill=(*colour, round(alpha)))
    if sheet.dice.random() < 0.6:
        _sail(sheet, image, horizon)
    return image


def _islands(sheet: Sheet, image: Image.Image, horizon: float) -> None:
    w, h = sheet.size
    for layer in range(2):
        line = broken(sheet, [sheet.between(0, 1) for _ in range(5)], 0.5)
        left, wide, last = sheet.between(-0.3, 0.75) * w, sheet.between(0.3, 0.7) * w, len(line) - 1
        points = [
            (left + i / last * wide, horizon - h * 0.1 * max(0.0, v) * math.sin(i / last * math.pi) ** 0.7)
            for i, v in enumerate(line)
        ]
        colour = mix(sheet.palette.sky[2], sheet.palette.land[layer], 0.55 + 0.15 * layer)
        image.paste(colour, mask=sheet.mask([*points, (left + wide, horizon + 2), (left, horizon + 2)]))


def _sail(sheet: Sheet, image: Image.Image, horizon: float) -> None:
    x, y = sheet.between(0.15, 0.85) * sheet.width, horizon + sheet.height * sheet.between(0.05, 0.14)
    size = sheet.unit * sheet.between(0.05, 0.085)

    def at(*corners: Point) -> list[Point]:
        return [(x + size * dx, y + size * dy) for dx, dy in corners]

    hull = at((-0.55, -0.1), (0.6, -0.1), (0.4, 0.1), (-0.4, 0.1))
    image.paste(sheet.palette.land[1], mask=sheet.mask(hull))
    sails = at((0, -1.5), (0, -0.2), (0.55, -0.2)), at((-0.06, -1.3), (-0.06, -0.2), (-0.45, -0.2))
    image.paste(mix(sheet.palette.light, sheet.palette.accents[0], 0.15), mask=sheet.mask(*sails))


def orbits(sheet: Sheet) -> Image.Image:
    """A planet with bands, perhaps a ring, its moons, and the paths they follow."""
    w, h, unit, palette = sheet.width, sheet.height, sheet.unit, sheet.palette
    dark = mix(mix(palette.sky[0], palette.land[1], 0.6), (4, 5, 14), 0.45)
    image = gradient(sheet.size, mix(dark, (0, 0, 0), 0.4), dark, mix(dark, palette.accents[3], 0.3))
    cloud = sheet.accent()
    for index in range(6):
        centre = sheet.between(0, w), sheet.between(0, h)
        colour = mix(cloud, palette.accents[3], index / 5)
        glow(image, centre, unit * sheet.between(0.3, 0.8), colour, sheet.between(0.06, 0.24), 1.6)
    stars(sheet, image, 170, h * 1.6)
    centre = w * sheet.between(0.34, 0.66), h * sheet.between(0.38, 0.62)
    radius, light = unit * sheet.between(0.17, 0.27), sheet.between(0, math.tau)
    tilt, flat, is_ringed = sheet.between(-0.6, 0.6), sheet.between(0.16, 0.4), sheet.dice.random() < 0.6
    moons = []
    for index in range(sheet.whole(2, 4)):
        reach = radius * (2.1 + 0.6 * index + sheet.between(0, 0.3))
        path = _between(sheet, centre, reach, reach - unit * 0.003, flat, tilt, 0, 96)
        image.paste(palette.light, mask=fade(path, 0.35))
        moons.append(_loop(centre, reach, flat, tilt)[sheet.whole(0, 95)])
    for moon in moons:
        colour = mix(sheet.accent(), palette.light, 0.3)
        _ball(sheet, image, moon, unit * sheet.between(0.014, 0.042), light, [colour, sheet.accent()], 0)
    glow(image, centre, radius * 1.8, mix(palette.sky[2], palette.light, 0.4), 0.5, 1.7)
    if is_ringed:
        _ring(sheet, image, centre, radius, flat, tilt, 0, 48)
    a, b = sheet.accent(), palette.accents[sheet.whole(0, 3)]
    bands = [mix(a if i % 2 else b, palette.light, sheet.between(0, 0.55)) for i in range(sheet.whole(6, 12))]
    _ball(sheet, image, centre, radius, light, bands, tilt)
    if is_ringed:
        _ring(sheet, image, centre, radius, flat, tilt, 48, 96)
    return image


def _loop(centre: Point, reach: float, flat: float, tilt: float) -> list[Point]:
    """Returns 97 points around an ellipse, the last as the first; from point 48 on they are in front."""
    cos, sin = math.cos(tilt), math.sin(tilt)
    turns = [i / 48 * math.pi for i in range(97)]
    level = [(reach * math.cos(a), -reach * flat * math.sin(a)) for a in turns]
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in level]


def _between(
    sheet: Sheet, centre: Point, outer: float, inner: float, flat: float, tilt: float, start: int, end: int
) -> Image.Image:
    """Returns what lies between two ellipses, from one point of `_loop` to another."""
    a, b = _loop(centre, outer, flat, tilt), _loop(centre, inner, flat, tilt)
    return sheet.mask([*a[start : end + 1], *b[start : end + 1][::-1]])


def _ring(
    sheet: Sheet,
    image: Image.Image,
    centre: Point,
    radius: float,
    flat: float,
    tilt: float,
    start: int,
    end: int,
) -> None:
    for index in range(4):
        inner = radius * (1.28 + 0.17 * index)
        mask = _between(sheet, centre, inner + radius * 0.14, inner, flat, tilt, start, end)
        colour = mix(sheet.palette.light, sheet.palette.accents[index], 0.45)
        image.paste(colour, mask=fade(mask, 0.85 - 0.15 * index))


def _ball(
    sheet: Sheet,
    image: Image.Image,
    centre: Point,
    radius: float,
    light: float,
    bands: list[Colour],
    tilt: float,
) -> None:
    """Draws a sphere: bands with wavy borders, then the shade that grows away from the light."""
    side = max(6, round(radius * 2))
    face = Image.new("RGB", (side * 2, side * 2), bands[0])
    draw = ImageDraw.Draw(face)
    for index, colour in enumerate(bands[1:], start=1):
        border, level = waves(sheet, 3, 1.5), index / len(bands)
        line = [(i / 24 * side * 2, side * 2 * (level + 0.018 * border(i / 24))) for i in range(25)]
        draw.polygon([*line, (side * 2, side * 2), (0, side * 2)], fill=colour)
    face = face.reduce(2).filter(ImageFilter.GaussianBlur(side / 150))
    face = face.rotate(-math.degrees(tilt), Image.Resampling.BILINEAR, fillcolor=bands[-1])
    reach = round(side * 1.5)
    shade = Image.radial_gradient("L").resize((2 * reach, 2 * reach), Image.Resampling.BILINEAR)
    left = round(reach - side * (0.5 + 0.36 * math.cos(light)))
    top = round(reach - side * (0.5 + 0.36 * math.sin(light)))
    shade = shade.crop((left, top, left + side, top + side))
    shade = shade.point([min(242, round((v / 96) ** 1.7 * 238)) for v in range(256)])
    face.paste(mix(sheet.palette.land[1], (0, 0, 0), 0.65), mask=shade)
    spot = side * (0.5 + 0.26 * math.cos(light)), side * (0.5 + 0.26 * math.sin(light))
    glow(face, spot, side * 0.5, sheet.palette.light, 0.4)
    disc = Sheet(side, side, sheet.palette, sheet.dice).mask(circle((side / 2, side / 2), side / 2, 96))
    image.paste(face, (round(centre[0] - side / 2), round(centre[1] - side / 2)), disc)
