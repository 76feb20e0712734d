"""Glass: a window of coloured panes in lead."""

from __future__ import annotations

import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from store.generation.scenes.brushes import Point, Sheet, circle, fade, field, glow, waves
from store.generation.scenes.palettes import Colour, mix, ramp

__all__ = ["glass"]

_Pane = tuple[list[Point], Colour]


def glass(sheet: Sheet) -> Image.Image:
    """A window of coloured glass: a sun with rays, above hills."""
    w, h, unit, palette = sheet.width, sheet.height, sheet.unit, sheet.palette
    image, large = Image.new("RGB", (w * 2, h * 2)), Image.new("L", (w * 2, h * 2))
    draw, lead = ImageDraw.Draw(image), ImageDraw.Draw(large)
    sun = w * sheet.between(0.25, 0.75), h * sheet.between(0.25, 0.5)
    for cell, colour in (*_rays(sheet, sun), *_hills(sheet)):
        x, y = sum(p[0] for p in cell) / len(cell), sum(p[1] for p in cell) / len(cell)
        flaw = palette.light if sheet.dice.random() < 0.5 else palette.land[1]
        colour = mix(colour, flaw, sheet.between(0, 0.2))
        for inset, t in ((0.0, 0.0), (0.22, 0.1), (0.5, 0.22)):
            tone = mix(mix(colour, palette.land[1], 0.06), palette.light, t)
            smaller = [(2 * (px + (x - px) * inset), 2 * (py + (y - py) * inset)) for px, py in cell]
            draw.polygon(smaller, fill=tone)
        edge = [(2 * px, 2 * py) for px, py in (*cell, cell[0], cell[1])]
        lead.polygon(edge, fill=0)
        lead.line(edge, fill=255, width=max(2, round(unit * 0.015)), joint="curve")
    image = image.reduce(2).filter(ImageFilter.GaussianBlur(unit / 110))
    image.paste(palette.light, mask=fade(ImageChops.multiply(field(sheet, 14, 14), field(sheet, 5, 5)), 0.22))
    glow(image, sun, unit * 0.6, palette.light, 0.3)
    lines, shift = large.reduce(2), max(1, round(unit / 300))
    image.paste(mix(palette.land[1], (8, 8, 12), 0.75), mask=lines)
    rim = ImageChops.subtract(lines, ImageChops.offset(lines, shift, shift))
    image.paste(palette.light, mask=fade(rim, 0.35))
    return image


def _rays(sheet: Sheet, sun: Point) -> list[_Pane]:
    """Returns panes in rings around the sun, every other one a ray."""
    palette, spokes = sheet.palette, 2 * sheet.whole(6, 10)
    a, b, c, d = palette.accents
    warm, cool = ramp((mix(palette.light, c, 0.5), c, b, a), 7), ramp((palette.sky[2], palette.sky[1], d), 7)
    turns = [(i + sheet.between(-0.22, 0.22)) / spokes * math.tau for i in range(spokes)]
    radius = sheet.unit * sheet.between(0.1, 0.16)
    disc = circle(sun, radius, 20)
    panes: list[_Pane] = []
    for ring in range(7):
        outer = radius * sheet.between(1.5, 1.85)
        for i, start in enumerate(turns):
            end = turns[(i + 1) % spokes] + (math.tau if i + 1 == spokes else 0)
            arc = [start + (end - start) * k / 4 for k in range(5)]
            far = [(sun[0] + outer * math.cos(t), sun[1] + outer * math.sin(t)) for t in arc]
            near = [(sun[0] + radius * math.cos(t), sun[1] + radius * math.sin(t)) for t in arc[::-1]]
            if any(-outer < p[0] < sheet.width + outer and -outer < p[1] < sheet.height + outer for p in far):
                panes.append(([*far, *near], (warm if i % 2 else cool)[ring]))
        radius = outer
        if radius > 1.6 * max(sheet.size):
            break
    return [*panes, (disc, mix(palette.light, c, 0.08))]


def _hills(sheet: Sheet) -> list[_Pane]:
    """Returns panes of three hills, far to near, cut where the glazier had to."""
    w, h = sheet.size
    soil = ramp((mix(sheet.palette.land[0], sheet.palette.accents[3], 0.4), *sheet.palette.land), 5)
    panes: list[_Pane] = []
    for hill in range(3):
        curve, foot = waves(sheet, 2, 0.6), h * 1.02
        level = h * (0.66 + 0.12 * hill)
        x, lean = -0.1 * w, 0.0
        while x < w:
            right, after = x + w * sheet.between(0.12, 0.3), w * sheet.between(-0.06, 0.06)
            steps = [x + (right - x) * k / 6 for k in range(7)]
            top = [(p, level - h * 0.06 * curve(p / w)) for p in steps]
            colour = mix(soil[hill + 1], sheet.accent(), 0.16)
            panes.append(([*top, (right + after, foot), (x + lean, foot)], colour))
            x, lean = right, after
    return panes
