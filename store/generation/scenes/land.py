"""Land: ridges and dunes, in layers that fade into haze with distance; and the sky above them."""

from __future__ import annotations

import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from store.generation.scenes.brushes import (
    Point,
    Sheet,
    broken,
    circle,
    field,
    glow,
    gradient,
    stars,
    veil,
    waves,
)
from store.generation.scenes.palettes import Colour, mix

__all__ = ["depths", "dunes", "layer", "mirror", "ridges", "sky_with_sun"]


def sky_with_sun(sheet: Sheet, horizon: float, *, low: bool = False) -> tuple[Image.Image, Point]:
    """Returns a sky with a sun or moon, streaks of cloud, stars when it is dark; and where the sun is."""
    w, unit, palette = sheet.width, sheet.unit, sheet.palette
    image = Image.new("RGB", sheet.size, palette.sky[2])
    image.paste(gradient((w, max(2, round(horizon))), *palette.sky))
    if palette.is_dark:
        stars(sheet, image, 110, horizon)
    sun = (
        sheet.between(0.2, 0.8) * w,
        horizon * (sheet.between(0.8, 0.95) if low else sheet.between(0.35, 0.8)),
    )
    radius = unit * sheet.between(0.05, 0.11)
    glow(image, sun, radius * 7, palette.light, 0.55, 2.2)
    glow(image, sun, radius * 2.6, palette.light, 0.5, 1.6)
    image.paste(palette.light, mask=sheet.mask(circle(sun, radius)))
    _clouds(sheet, image, horizon)
    return image, sun


def _clouds(sheet: Sheet, image: Image.Image, horizon: float) -> None:
    """Lays thin cloud over the sky: wide patches, cut off below a level, none at the very top."""
    patches = Image.blend(field(sheet, 4, 12), field(sheet, 9, 34), 0.35)
    level = sheet.whole(118, 150)
    cover = patches.point([min(170, max(0, round((v - level) * 2.6))) for v in range(256)])
    shape = Image.new("L", sheet.size)
    shape.paste(veil((sheet.width, max(2, round(horizon))), 0, 90, 190, 210, 120))
    image.paste(mix(sheet.palette.light, sheet.palette.sky[2], 0.6), mask=ImageChops.multiply(cover, shape))


def layer(
    sheet: Sheet,
    image: Image.Image,
    mask: Image.Image,
    top: float,
    colour: Colour,
    haze: Colour,
) -> None:
    """Fills the mask: full colour at the top, mist at its foot."""
    foot = max(2, sheet.height - round(top))
    fill = Image.new("RGB", sheet.size, colour)
    fill.paste(
        gradient((sheet.width, foot), colour, mix(colour, haze, 0.45), mix(colour, haze, 0.7)),
        (0, round(top)),
    )
    image.paste(fill, mask=mask)


def depths(sheet: Sheet, layers: int, horizon: float) -> list[tuple[float, float, Colour, Colour]]:
    """Returns for each layer, far to near: depth 0..1, the height of its line, its colour, its haze."""
    palette = sheet.palette
    distant = mix(palette.sky[2], palette.land[0], 0.55)
    rows = []
    for index in range(layers):
        t = index / (layers - 1)
        y = horizon + (sheet.height * 0.97 - horizon) * t**1.25
        colour = mix(distant, palette.land[0], t * 3) if t < 1 / 3 else mix(*palette.land, (t - 1 / 3) * 1.5)
        rows.append((t, y, colour, mix(colour, palette.sky[2], 0.9 * (1 - t))))
    return rows


def ridges(sheet: Sheet) -> Image.Image:
    """Mountains behind mountains, some of them above a lake that mirrors them."""
    w, h = sheet.size
    has_lake = sheet.dice.random() < 0.45
    horizon = h * (sheet.between(0.4, 0.48) if has_lake else sheet.between(0.44, 0.58))
    image, sun = sky_with_sun(sheet, horizon * 1.1)
    steep, roughness, layers = sheet.between(0.1, 0.2), sheet.between(0.44, 0.56), sheet.whole(5, 6)
    for t, y, colour, haze in depths(sheet, layers, horizon)[: 3 if has_lake else layers]:
        peaks = [sheet.between(0.2, 1.2) * (-1) ** (i + sheet.whole(0, 1)) for i in range(sheet.whole(4, 7))]
        heights = broken(sheet, peaks, roughness)
        step = 1.1 * w / (len(heights) - 1)
        rise = h * steep * (1 - 0.5 * t)
        points = [(i * step - 0.05 * w, y - rise * (0.3 + v)) for i, v in enumerate(heights)]
        mask = sheet.mask([(-0.05 * w, h * 1.01), *points, (w * 1.05, h * 1.01)])
        layer(sheet, image, mask, min(p[1] for p in points), colour, haze)
        _shade(sheet, image, mask, points, sun, colour, reach=14, depth=h * steep * 1.5, jag=0.012)
    if has_lake:
        mirror(sheet, image, h * sheet.between(0.64, 0.7))
    return image


def _shade(
    sheet: Sheet,
    image: Image.Image,
    mask: Image.Image,
    line: list[Point],
    sun: Point,
    colour: Colour,
    *,
    reach: int,
    depth: float,
    jag: float,
) -> None:
    """Darkens what looks away from the sun: from each peak down the far slope, back along a winding edge."""
    w = sheet.width
    sides = []
    for peak in range(2, len(line) - 2):
        x, y = line[peak]
        if y > min(p[1] for p in line[max(0, peak - reach) : peak + reach + 1]):
            continue
        way = 1 if sun[0] < x else -1
        slope = [line[i] for i in range(peak, max(-1, min(len(line), peak + way * reach * 2)), way)]
        valley = max(range(len(slope)), key=lambda i: slope[i][1])
        slope = slope[: valley + 1]
        lean, bend = sheet.between(-0.02, 0.08) * w, sheet.between(0.02, 0.06) * w
        edge = [
            (
                x - way * (lean * t - bend * math.sin(t * 4.4)) + sheet.between(-jag, jag) * w,
                y + (depth + slope[-1][1] - y) * t,
            )
            for t in (i / 14 for i in range(1, 15))
        ]
        sides.append([*slope, *edge[::-1]])
    if sides:
        top = min(p[1] for p in line)
        foot = Image.new("L", sheet.size)
        foot.paste(veil((w, max(2, round(depth * 1.7))), 235, 120, 0), (0, round(top)))
        cover = ImageChops.multiply(ImageChops.multiply(sheet.mask(*sides), mask), foot)
        image.paste(mix(colour, sheet.palette.land[1], 0.38), mask=cover)


def mirror(sheet: Sheet, image: Image.Image, shore: float) -> None:
    """Turns what is below the shore into water: the picture above it upside down, blurred, with ripples."""
    w, h = sheet.size
    y = round(shore)
    above = image.crop((0, max(0, 2 * y - h), w, y))
    copy = above.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((w, h - y))
    copy = copy.filter(ImageFilter.BoxBlur((w / 400, h / 90)))
    tint = Image.new("RGB", copy.size, mix(sheet.palette.sky[0], sheet.palette.land[1], 0.5))
    image.paste(Image.blend(copy, tint, 0.22), (0, y))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(70):
        t = sheet.dice.random() ** 1.6
        x, length = sheet.between(-0.1, 1) * w, w * sheet.between(0.03, 0.16) * (0.3 + t)
        at, thick = y + 1 + (h - y) * t, h * 0.0012 * (1 + 2 * t)
        fill = (*sheet.palette.light, sheet.whole(14, 46))
        draw.ellipse((x, at - thick, x + length, at + thick), fill=fill)


def dunes(sheet: Sheet) -> Image.Image:
    """Dunes: one side in the sun, the other in shade, parted by a crest."""
    w, h = sheet.size
    horizon = h * sheet.between(0.36, 0.52)
    image, sun = sky_with_sun(sheet, horizon * 1.15)
    layers = sheet.whole(5, 6)
    for t, y, colour, haze in depths(sheet, layers, horizon * 1.05)[: layers - 1]:
        curve = waves(sheet, 2, sheet.between(0.6, 1.4))
        swell = h * (0.03 + 0.07 * t)
        heights = [1 - 2 * abs(curve(i / 80)) ** 0.8 for i in range(81)]
        points = [(w * (i / 80 * 1.2 - 0.1), y - swell * v) for i, v in enumerate(heights)]
        mask = sheet.mask([(-w, h + 1), *points, (2 * w, h + 1)])
        lit = mix(colour, sheet.palette.light, 0.3 * (1 - t) + 0.06)
        layer(sheet, image, mask, min(p[1] for p in points), lit, mix(lit, haze, 0.3))
        _shade(sheet, image, mask, points, sun, colour, reach=8, depth=h * (0.1 + 0.25 * t), jag=0)
    return image
