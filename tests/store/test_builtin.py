"""The builtin provider: repeatable pictures, of every size it promises, within its time."""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from store.errors import InvalidValue
from store.generation.providers.builtin import MAX_SEED, render
from store.generation.scenes import SCENES, Scene
from store.generation.scenes.brushes import Sheet
from store.generation.scenes.palettes import PALETTES, WORDS, mix
from store.objects.pictures import prepare

ROOT = Path(__file__).parents[2]
names = [scene.draw.__name__ for scene in SCENES]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    return image


def detail(image: Image.Image) -> float:
    """Returns how far the brightness of the pixels is spread, in levels of 256."""
    return statistics.pstdev(image.convert("L").resize((64, 64)).tobytes())


def test_same_inputs_give_the_same_bytes_in_another_process() -> None:
    """The hash seed of the interpreter has no part in it."""
    code = (
        "import hashlib; from store.generation.providers.builtin import render;"
        "print(hashlib.sha256(render('a quiet harbor', seed=7, width=96, height=64)).hexdigest())"
    )

    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }

    here = hashlib.sha256(render("a quiet harbor", seed=7, width=96, height=64)).hexdigest()
    assert digests == {here}


def test_every_prompt_and_every_seed_gives_another_picture() -> None:
    by_seed = {render("a quiet harbor", seed=seed, width=64, height=64) for seed in range(40)}
    by_prompt = {render(f"harbor number {n}", seed=1, width=64, height=64) for n in range(40)}

    assert len(by_seed) == 40
    assert len(by_prompt) == 40


@pytest.mark.parametrize(("width", "height"), [(64, 64), (512, 512), (640, 360), (2048, 64), (64, 2048)])
def test_picture_has_the_size_that_was_asked_for(width: int, height: int) -> None:
    """mission: 88, 90"""
    data = render("a lighthouse", seed=3, width=width, height=height)

    picture = prepare(data)

    assert (picture.content_type, picture.width, picture.height) == ("image/png", width, height)
    assert opened(data).mode == "RGB"


def test_size_changes_detail_and_not_the_composition() -> None:
    large = opened(render("a mountain lake at night", seed=5, width=768, height=768))
    small = opened(render("a mountain lake at night", seed=5, width=192, height=192))

    difference = ImageChops.difference(large.resize((48, 48)), small.resize((48, 48))).convert("L")

    assert statistics.mean(difference.tobytes()) < 8


@pytest.mark.parametrize("scene", SCENES, ids=names)
@pytest.mark.parametrize("size", [(64, 64), (300, 200), (64, 512), (512, 64)])
def test_every_scene_suits_every_size(scene: Scene, size: tuple[int, int]) -> None:
    image = scene.draw(Sheet(*size, PALETTES[scene.palettes[0]], Random(2)))

    assert (image.size, image.mode) == (size, "RGB")


@pytest.mark.parametrize("scene", SCENES, ids=names)
@pytest.mark.parametrize("palette", PALETTES)
def test_no_scene_is_ever_an_empty_sheet(scene: Scene, palette: str) -> None:
    for seed in range(4):
        image = scene.draw(Sheet(128, 128, PALETTES[palette], Random(seed)))

        assert detail(image) > 5


def test_words_make_a_scene_likelier_and_leave_others_possible() -> None:
    plain = [render(f"thing {n}", seed=n, width=64, height=64) for n in range(30)]
    night = [render(f"thing {n} at night", seed=n, width=64, height=64) for n in range(30)]

    def brightness(pictures: list[bytes]) -> float:
        return statistics.mean(statistics.mean(opened(p).convert("L").tobytes()) for p in pictures)

    assert brightness(night) < brightness(plain) - 15
    assert WORDS.keys() == PALETTES.keys()


def test_png_is_small_and_carries_nothing_but_pixels() -> None:
    sizes = []
    for n in range(12):
        data = render(f"a picture of {n} things", seed=n, width=512, height=512)
        sizes.append(len(data))
        assert opened(data).info == {}

    assert max(sizes) < 360_000


def test_watermark_stays_in_its_corner() -> None:
    plain = opened(render("a quiet harbor", seed=7, width=400, height=300))
    signed = opened(render("a quiet harbor", seed=7, width=400, height=300, watermark="peruse"))

    box = ImageChops.difference(plain, signed).getbbox()

    assert box is not None
    left, top, right, bottom = box
    assert left > 300
    assert top > 270
    assert right <= 396
    assert bottom <= 296
    assert render("x", seed=1, width=64, height=64, watermark="") == render("x", seed=1, width=64, height=64)


def test_watermark_is_written_without_what_the_font_lacks() -> None:
    """The alternative is a row of empty boxes."""
    plain = render("a", seed=1, width=200, height=200, watermark="© Aurelia Studio")

    assert render("a", seed=1, width=200, height=200, watermark="© Åurélia Stüdio 画") == plain


@pytest.mark.parametrize("width", [64, 128, 512])
def test_longest_watermark_fits_the_narrowest_picture(width: int) -> None:
    plain = opened(render("a", seed=1, width=width, height=width))
    signed = opened(render("a", seed=1, width=width, height=width, watermark="W" * 64))

    box = ImageChops.difference(plain, signed).getbbox()

    assert box is not None
    assert box[0] > 0


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(min_size=1).filter(str.strip), seed=st.integers(0, MAX_SEED))
def test_every_prompt_and_seed_gives_a_png(prompt: str, seed: int) -> None:
    """Whatever the writing system, lone surrogates and control signs included."""
    assert opened(render(prompt, seed=seed, width=64, height=64)).size == (64, 64)


def test_lone_surrogate_in_a_prompt_is_no_obstacle() -> None:
    assert render("\ud800", seed=0, width=64, height=64)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": " \n\t"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**32}),
        ("width", {"width": 63}),
        ("width", {"width": 2049}),
        ("height", {"height": 0}),
        ("height", {"height": 100_000}),
        ("watermark", {"watermark": "x" * 65}),
        ("watermark", {"watermark": "two\nlines"}),
        ("watermark", {"watermark": "画廊"}),
    ],
)
def test_value_out_of_its_range_is_named(field: str, change: dict[str, object]) -> None:
    values: dict[str, object] = {"prompt": "a", "seed": 1, "width": 64, "height": 64, **change}

    with pytest.raises(InvalidValue) as caught:
        render(**values)  # type: ignore[arg-type]

    assert caught.value.field == field


def test_mixing_stays_between_its_ends_and_even_for_the_eye() -> None:
    assert mix((10, 20, 30), (200, 100, 50), 0) == (10, 20, 30)
    assert mix((10, 20, 30), (200, 100, 50), 1) == (200, 100, 50)
    assert mix((10, 20, 30), (200, 100, 50), 7) == (200, 100, 50)
    grey = mix((0, 0, 0), (255, 255, 255), 0.5)
    assert len(set(grey)) == 1
    assert 90 < grey[0] < 110


@pytest.mark.bench
def test_render_and_thumbnail_stay_within_their_cpu_time() -> None:
    """At most 95 ms on one core for a picture of 512 pixels with its thumbnail, on the median."""
    lines = (ROOT / "tests" / "data" / "parti_prompts.tsv").read_text().splitlines()[1::27]
    prepare(render("warm up", seed=0, width=512, height=512))
    took_ms = []
    for seed, line in enumerate(lines):
        start = time.process_time()
        prepare(render(line.split("\t")[0], seed=seed, width=512, height=512))
        took_ms.append((time.process_time() - start) * 1000)

    assert len(took_ms) >= 50
    assert statistics.median(took_ms) < 95
