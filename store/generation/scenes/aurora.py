"""Aurora: northern lights above hills and a lake."""

from __future__ import annotations

from PIL import Image, ImageChops

from store.generation.scenes.brushes import Sheet, broken, gradient, stars, veil, waves
from store.generation.scenes.land import mirror
from store.generation.scenes.palettes import Colour, mix

__all__ = ["aurora"]


def aurora(sheet: Sheet) -> Image.Image:
    """Curtains of light over hills at night, above their mirror in a lake."""
    w, h, palette = sheet.width, sheet.height, sheet.palette
    dark = mix(mix(palette.sky[0], palette.land[1], 0.55), (5, 8, 24), 0.55)
    shore = h * sheet.between(0.7, 0.8)
    image = gradient(sheet.size, mix(dark, (0, 0, 0), 0.35), dark, mix(dark, palette.accents[3], 0.45))
    stars(sheet, image, 150, shore)
    for index in range(sheet.whole(2, 3)):
        low, high = palette.accents[index], palette.accents[(index + 1) % 4]
        _curtain(sheet, image, shore * sheet.between(0.55, 0.82), mix(low, palette.light, 0.3), high)
    for layer in range(2):
        line = broken(sheet, [sheet.between(0, 1) for _ in range(6)], 0.5)
        step, rise = w / (len(line) - 1), h * (0.11 - 0.06 * layer)
        points = [(i * step, shore - rise * (v + 0.1)) for i, v in enumerate(line)]
        colour = mix(dark, (2, 3, 10), 0.35 + 0.4 * layer)
        image.paste(colour, mask=sheet.mask([(0, h + 1), *points, (w, h + 1)]))
    mirror(sheet, image, shore)
    return image


def _curtain(sheet: Sheet, image: Image.Image, base: float, low: Colour, high: Colour) -> None:
    """Makes a flat curtain of rays, then moves its columns up and down so that its foot follows a curve."""
    w, h = sheet.size
    rays = Image.frombytes("L", (48, 1), bytes(sheet.whole(20, 255) for _ in range(48)))
    folds = Image.frombytes("L", (7, 1), bytes(sheet.whole(40, 255) for _ in range(7)))

    def wide(row: Image.Image) -> Image.Image:
        return row.resize((w, 1), Image.Resampling.BICUBIC)

    bright = Image.blend(wide(rays), wide(folds), 0.6).resize(sheet.size, Image.Resampling.NEAREST)
    tall = max(4, round(base))
    rise = veil((w, tall), 0, 10, 32, 72, 125, 190, 250)
    shape = Image.new("L", sheet.size)
    shape.paste(rise, (0, 0))
    foot = veil((w, max(2, h // 7)), 250, 150, 60, 15, 0)
    shape.paste(foot, (0, tall))
    flat = ImageChops.multiply(bright, shape)
    bend, slices = waves(sheet, 3, 1.4), 32
    shift = [h * 0.07 * bend(i / slices) for i in range(slices + 1)]
    edges = [round(i * w / slices) for i in range(slices + 1)]
    mesh = [
        ((a, 0, b, h), (a, dy, a, h + dy, b, h + ey, b, ey))
        for a, b, dy, ey in zip(edges, edges[1:], shift, shift[1:], strict=False)
        if b > a
    ]
    moved = flat.transform(sheet.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    image.paste(gradient(sheet.size, high, high, mix(high, low, 0.5), low, low), mask=moved)
