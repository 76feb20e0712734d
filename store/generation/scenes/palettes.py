"""Palettes: colours that go together, and the words of a prompt that ask for one of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["PALETTES", "WORDS", "Colour", "Palette", "mix", "ramp"]

Colour = tuple[int, int, int]


class Palette(NamedTuple):
    """The sky from the zenith down, land from far to near, the light, and four colours for patterns."""

    sky: tuple[Colour, Colour, Colour]
    land: tuple[Colour, Colour]
    light: Colour
    accents: tuple[Colour, Colour, Colour, Colour]

    @property
    def is_dark(self) -> bool:
        return sum(self.sky[0]) < 200


def _palette(text: str) -> Palette:
    c = [(int(h[:2], 16), int(h[2:4], 16), int(h[4:], 16)) for h in text.split()]
    return Palette((c[0], c[1], c[2]), (c[3], c[4]), c[5], (c[6], c[7], c[8], c[9]))


PALETTES: Final[dict[str, Palette]] = {
    name: _palette(colours)
    for name, colours in {
        #          zenith middle horizon  far    near   light  accents
        "dusk":   "2b2d5b 8a4f7d f4a77c b5718a 1d1b3a ffe6b8 e76f51 f4a261 e9c46a 6d597a",
        "dawn":   "7fb2d9 f6c6b3 ffe8cf c9a9b8 3b4a6b fff6e0 f28482 f6bd60 84a59d 5b7db1",
        "night":  "070b1f 13204a 3c4f86 3a4a7c 060916 eef3ff 3f6ad8 7b5cd6 2fb0c7 f2d16b",
        "sea":    "1b6ca8 6db5dd e3f4f5 5fa8d3 0b2b40 fffbe8 0b7a75 19b5a5 f2e2ba ee7b56",
        "forest": "8fb8a0 cfe0c3 f4f0d4 8fae8b 14301f fffbe0 386641 6a994e a7c957 bc4749",
        "fire":   "2a0a12 8c1c13 ff8c42 b23a2c 1d0509 fff0a8 d00000 e85d04 faa307 6a040f",
        "snow":   "8fb7da cfe1f0 faf4ef b4cbe0 35557a ffffff 577590 90b4ce e0ecf4 e56b6f",
        "desert": "5fa3b8 f0d2a8 f9e4bd e0a46c 7c3a21 fff5d6 c8553d f28f3b ffd5c2 588b8b",
        "spring": "b8c0ff ffd6e8 fff1e6 dfa6cf 5b4a8a fffaf0 ff8fb8 ffd97d 8fd3f4 b392f0",
        "storm":  "26323d 566b76 b3c0c2 71858d 10181e f3f5ef 52796f 84a98c cad2c5 e0a458",
        "autumn": "86a3a8 ead7b0 f9ecd2 c98f5c 3a1f14 fff3cf 9c2c13 d4721e e9b44c 50623a",
        "neon":   "12002b 4a0d67 ff4d9d 7a1e8c 0d0221 fff27a ff3864 2de2e6 f6019d 7a04eb",
        "jade":   "04302e 0f766e a7e3c4 3d9a86 022220 f6ffe0 0d9488 5eead4 fbbf24 f97362",
        "ink":    "cfc9ba e6e0d2 f5f0e4 a9a397 1d1c1a d1432f 2f2e2c 7a746a bdb4a3 c8402f",
        "violet": "4b3f72 9d8ec7 f3d9e5 9488c0 241c44 fff4d8 7161ef f2a6c0 b79ced 3d2c8d",
        "citrus": "26a6b5 8fd6c4 fef3b0 f0b44a 1f5f6b fffbe0 ff6f59 f7b32b 2ec4b6 254441",
    }.items()
}  # fmt: skip

WORDS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(words.split())
    for name, words in {
        "night": "night midnight moon star stars galaxy space planet universe dark black owl bat",
        "sea": "sea ocean water river lake beach boat ship fish whale shark wave waves blue harbor",
        "forest": "forest tree trees jungle wood woods leaf green grass park frog bear deer panda",
        "fire": "fire flame flames lava volcano dragon burning explosion red rocket",
        "snow": "snow snowy ice winter arctic penguin frozen white polar ski",
        "desert": "desert sand dune camel pyramid sphinx cactus canyon giraffe lion egypt",
        "spring": "flower flowers spring blossom pink butterfly garden rose candy baby bunny",
        "storm": "storm rain cloud clouds lightning fog grey gray elephant tornado",
        "autumn": "autumn fall pumpkin brown fox harvest coffee bread squirrel orange",
        "neon": "neon city street robot cyberpunk disco future car motorcycle skyscraper",
        "jade": "jade emerald tea bamboo turtle dinosaur crocodile temple",
        "ink": "ink sketch drawing calligraphy japanese chinese pencil charcoal portrait",
        "violet": "violet purple lavender magic wizard dream crystal wine",
        "citrus": "lemon fruit banana summer sunny yellow parrot tropical",
        "dusk": "sunset dusk evening sky mountain mountains horizon eagle",
        "dawn": "sunrise dawn morning bird balloon hill field",
    }.items()
}


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Returns the colour between two, evenly for the eye: 0 is the first, 1 the second.

    Source: Björn Ottosson, "A perceptual color space for image processing" (Oklab).
    """
    return _mixed(a, b, round(max(0.0, min(1.0, t)) * 255))


def ramp(colours: tuple[Colour, ...], steps: int) -> list[Colour]:
    """Returns `steps` colours from the first to the last, passing all of them."""
    spans = len(colours) - 1
    places = (step * spans / max(1, steps - 1) for step in range(steps))
    return [mix(colours[i], colours[i + 1], p - i) for p in places for i in (min(int(p), spans - 1),)]


@lru_cache(maxsize=16384)
def _mixed(a: Colour, b: Colour, t255: int) -> Colour:
    t = t255 / 255
    long, middle, short = ((x + (y - x) * t) ** 3 for x, y in zip(_cones(a), _cones(b), strict=True))
    return (
        _encoded(4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short),
        _encoded(-1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short),
        _encoded(-0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short),
    )


@lru_cache(maxsize=4096)
def _cones(colour: Colour) -> tuple[float, float, float]:
    r, g, b = ((channel / 255) ** 2.2 for channel in colour)
    return (
        (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3),
        (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3),
        (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3),
    )


def _encoded(linear: float) -> int:
    shown: float = max(0.0, min(1.0, linear)) ** (1 / 2.2)
    return round(255 * shown)
