"""What is particular to Nanobanana, Replicate and fal; and the fakes as a program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.generation import errors
from store.generation.models import SQUARES
from store.generation.providers import Reference, Task
from tests.fakes.providers_pictures import picture
from tests.fakes.providers_world import ProvidersWorld, opened

ROOT = Path(__file__).parents[2]
PICTURE = Reference(picture("a start", 1, 64, 64), "image/png", "https://files.example.org/a.png")


@pytest.fixture
async def world() -> AsyncIterator[ProvidersWorld]:
    async with opened() as made:
        yield made


async def sent(world: ProvidersWorld, model: str, **fields: object) -> dict[str, object]:
    await world.submit(world.request(model, **fields))
    return world.fake.calls[-1].fields


@pytest.mark.parametrize("px", SQUARES)
async def test_the_four_sizes_are_squares_to_nanobanana(world: ProvidersWorld, px: int) -> None:
    """mission: 3, 15"""
    fields = await sent(world, "nanobanana", width=px, height=px, watermark="© me")

    assert world.fake.calls[-1].path.endswith("/nanobanana/generate")
    assert fields["type"] == "TEXTTOIAMGE"
    assert (fields["image_size"], fields["numImages"], fields["watermark"]) == ("1:1", 1, "© me")
    # The name of no host ever: RFC 2606.
    assert fields["callBackUrl"] == "https://nobody.invalid/"


async def test_other_sizes_are_refused_by_nanobanana(world: ProvidersWorld) -> None:
    """mission: 15, 16, 25"""
    with pytest.raises(errors.InvalidRequest, match="640x640 is none of 512x512, 768x768, 1024x1024, 1536x1536"):
        await world.submit(world.request("nanobanana", width=640, height=640))


async def test_references_of_nanobanana_are_addresses(world: ProvidersWorld) -> None:
    fields = await sent(world, "nanobanana", references=(PICTURE,), callback_url="https://x.example.org/back/1")
    assert fields["type"] == "IMAGETOIAMGE"
    assert fields["imageUrls"] == ["https://files.example.org/a.png"]
    assert fields["callBackUrl"] == "https://x.example.org/back/1"

    with pytest.raises(errors.InvalidRequest, match="public address"):
        await world.submit(world.request("nanobanana", references=(Reference(b"x", "image/png"),)))


async def test_nanobanana_2_is_asked_for_proportions_and_resolution(world: ProvidersWorld) -> None:
    fields = await sent(world, "nanobanana-2", width=2048, height=1152)

    assert world.fake.calls[-1].path.endswith("/generate-2")
    assert (fields["aspectRatio"], fields["resolution"], fields["outputFormat"]) == ("16:9", "2K", "png")


async def test_the_code_in_the_body_counts_whatever_the_status(world: ProvidersWorld) -> None:
    world.fake.script("nanobanana", "error_200")

    with pytest.raises(errors.RateLimited, match="too many"):
        await world.submit(world.request("nanobanana"))


async def test_replicate_is_asked_for_proportions_and_ends_what_would_wait_too_long(world: ProvidersWorld) -> None:
    fields = await sent(world, "replicate", width=1024, height=576, steps=4)

    call = world.fake.calls[-1]
    assert call.path == "/replicate/v1/models/black-forest-labs/flux-schnell/predictions"
    assert call.headers["cancel-after"] == "30s"
    assert "prefer" not in call.headers
    assert fields["input"] == {**fields["input"], "aspect_ratio": "16:9", "num_inference_steps": 4, "seed": 7}  # type: ignore[dict-item]


async def test_when_replicate_says_in_words_how_long_to_wait_it_is_heard(world: ProvidersWorld) -> None:
    world.fake.script("replicate", "status 429")

    with pytest.raises(errors.RateLimited) as caught:
        await world.submit(world.request("replicate"))

    assert caught.value.retry_after_s == 30


async def test_the_seed_of_a_task_comes_back_with_its_picture(world: ProvidersWorld) -> None:
    """mission: 11"""
    for provider in ("replicate", "fal"):
        done = await world.draw(world.request(provider, seed=4294967295))
        assert done.outputs[0].seed == 4294967295


async def test_the_addresses_of_a_task_at_fal_leave_out_the_sub_path(world: ProvidersWorld) -> None:
    task = await world.submit(world.request("fal", steps=4))
    assert isinstance(task, Task)
    await world.finish(task)

    submit, status, *_, result = world.fake.calls
    assert submit.path == "/fal/fal-ai/flux/schnell"
    assert submit.fields["image_size"] == {"width": 512, "height": 512}
    assert submit.fields["num_inference_steps"] == 4
    assert status.path == f"/fal/fal-ai/flux/requests/{task.id}/status"
    assert result.path == f"/fal/fal-ai/flux/requests/{task.id}"


async def test_a_reference_goes_to_fals_other_path(world: ProvidersWorld) -> None:
    fields = await sent(world, "fal-ai/flux/dev", references=(PICTURE,), options={"strength": 0.5})

    assert world.fake.calls[-1].path == "/fal/fal-ai/flux/dev/image-to-image"
    assert str(fields["image_url"]).startswith("data:image/png;base64,")
    assert fields["strength"] == 0.5
    assert "image_size" not in fields


async def test_a_picture_that_fal_blackened_is_a_refusal(world: ProvidersWorld) -> None:
    """mission: 50"""
    world.fake.script("fal", "task_black")

    with pytest.raises(errors.ContentPolicy, match="blackened"):
        await world.draw(world.request("fal"))


async def test_a_refusal_by_fal_at_once_is_a_refusal(world: ProvidersWorld) -> None:
    world.fake.script("fal", "policy")

    with pytest.raises(errors.ContentPolicy, match="flagged"):
        await world.submit(world.request("fal"))


async def test_a_result_that_is_no_picture_is_found_when_it_is_fetched(world: ProvidersWorld) -> None:
    """mission: 20, 26"""
    for provider in ("nanobanana", "replicate", "fal"):
        world.fake.script(provider, "not_an_image")
        done = await world.draw(world.request(provider))
        with pytest.raises(errors.BadAnswer, match="gave no picture"):
            await world.bytes_of(done.outputs[0])


def test_the_fakes_run_by_themselves_and_print_the_settings() -> None:
    """A person can point the product at them."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.providers", "--port", "0"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            lines = []
            while not (lines and lines[-1].startswith("#")):
                lines.append(process.stdout.readline())
                assert lines[-1], "it ended"
            url = re.search(r"PERUSE_FAL_URL=(http://127\.0\.0\.1:\d+)/fal", "".join(lines))
            assert url is not None
            with urllib.request.urlopen(f"{url[1]}/calls", timeout=10) as answer:
                assert b'"drawn": []' in answer.read()
        finally:
            process.terminate()
        assert process.wait(20) in (0, -15, 143)
