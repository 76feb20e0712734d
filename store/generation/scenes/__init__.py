"""Scenes: what the builtin provider can draw. Each is a function from a sheet to an image.

palettes.py  colours that go together, and the words that ask for them
brushes.py   gradients, light, smooth masks, curves, grain
land.py      ridges, dunes
outlines.py  forest, city
sky.py       sea, orbits
aurora.py    northern lights
glass.py     a window of coloured glass
blossom.py   dahlias
patterns.py  ribbons, woven, paper
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final, NamedTuple, TypeVar

from PIL import Image

from store.generation.scenes import aurora, blossom, glass, land, outlines, patterns, sky
from store.generation.scenes.brushes import Sheet, finished
from store.generation.scenes.palettes import PALETTES, WORDS

__all__ = ["SCENES", "Scene", "compose"]

_Choice = TypeVar("_Choice")

_DARK: Final = ("night", "sea", "fire", "spring", "neon", "jade", "violet", "citrus", "dusk")


class Scene(NamedTuple):
    """How to draw, the words of a prompt that ask for it, and the palettes it looks good in."""

    draw: Callable[[Sheet], Image.Image]
    words: frozenset[str]
    palettes: tuple[str, ...] = tuple(PALETTES)


def _scene(
    draw: Callable[[Sheet], Image.Image],
    words: str,
    palettes: tuple[str, ...] = tuple(PALETTES),
) -> Scene:
    return Scene(draw, frozenset(words.split()), palettes)


SCENES: Final = (
    _scene(land.ridges, "mountain hill cliff canyon valley lake waterfall volcano eagle goat road train"),
    _scene(land.dunes, "desert sand dune camel pyramid sphinx egypt cactus lizard snake beach"),
    _scene(outlines.forest, "forest tree jungle wood park deer bear owl fox wolf squirrel camp panda leaf"),
    _scene(outlines.city, "city skyscraper tower town skyline office bus traffic taxi apartment"),
    _scene(sky.sea, "sea ocean water river beach boat ship fish whale shark wave harbor sail dolphin island"),
    _scene(sky.orbits, "space planet galaxy universe moon star robot rocket astronaut atom ball", _DARK),
    _scene(aurora.aurora, "aurora light night winter arctic ghost penguin magic", _DARK),
    _scene(patterns.ribbons, "dress silk dance music wind abstract hair scarf flag love energy motion"),
    _scene(glass.glass, "glass window church cathedral angel king queen stained sun saint wine"),
    _scene(patterns.woven, "ring basket rope knot chain net bicycle bike woven necklace wheel"),
    _scene(blossom.blossom, "flower garden rose blossom butterfly bee daisy tulip woman portrait vase"),
    _scene(patterns.paper, "map paper book letter sign painting art poster drawing cake sushi food"),
)


def compose(words: frozenset[str], dice: Random, width: int, height: int) -> Image.Image:
    """Draws the scene that the dice choose; words only make some scenes and palettes likelier."""
    asked = [scene for scene in SCENES if scene.words & words]
    scene = _pick(asked, SCENES, dice, 0.75)
    named = [name for name in scene.palettes if words.intersection(WORDS[name])]
    palette = PALETTES[_pick(named, scene.palettes, dice, 0.75)]
    return finished(scene.draw(Sheet(width, height, palette, dice)))


def _pick(asked: Sequence[_Choice], every: Sequence[_Choice], dice: Random, likely: float) -> _Choice:
    chance, place = dice.random(), dice.random()
    choices = asked if asked and chance < likely else every
    return choices[int(place * len(choices))]
