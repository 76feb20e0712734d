"""What is kept of a picture, whether it may be, and where it may not."""

from __future__ import annotations

import io
import json
from decimal import Decimal

import pytest
from PIL import Image
from pydantic import SecretStr

from store.errors import ObjectsUnavailable, SettingError
from store.generation.moderation import Verdict, allow, read_moderation
from store.objects.keys import new_key
from store.storage import Limits
from tests.fakes.providers import KEY
from tests.generation.jobs_world import JobsWorld
from tests.world import png


async def test_no_room(jobs: JobsWorld) -> None:
    """A picture that the plan has no room for fails its job, gives everything back and leaves no object."""
    job = await jobs.add("openai")
    jobs.limits = Limits(100, 100, 100)
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("failed", "storage_quota_exceeded", 15)
    assert [info async for info in jobs.objects.scan()] == []


async def test_full_before_the_call(jobs: JobsWorld) -> None:
    """Without room for a single byte the provider is not even asked: nobody pays for what could not be kept."""
    await jobs.primary.fetch("update accounts set storage_used_bytes = 100")
    jobs.limits = Limits(100, 100, 100)
    job = await jobs.add("openai")
    jobs.start()
    await jobs.until(lambda: jobs._count("select count(*) from jobs where state = 'failed'"), 1)
    assert (await jobs.job(job))["error_code"] == "storage_quota_exceeded"
    assert jobs.world.fake.made("openai") == []


async def test_room_for_one_of_two(jobs: JobsWorld) -> None:
    """Where there is room for one of two pictures, one is delivered and charged."""
    job = await jobs.add("builtin", n=1, seed=7)
    jobs.start()
    await jobs.ended(job)
    used = await jobs._count("select storage_used_bytes from accounts where owner_id = 'ana'")
    await jobs.user("bob")
    jobs.limits = Limits(int(used * 1.5), 1, 1)
    two = await jobs.add("builtin", user="bob", n=2, seed=7)
    await jobs.crash(jobs.runners[0][0])
    jobs.start()
    (row,) = await jobs.ended(two)
    assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("completed", "storage_quota_exceeded", 15)
    await jobs.assert_objects()


async def test_a_room_that_ended(jobs: JobsWorld) -> None:
    """A reservation that ended before its job did is taken again, if there is room."""
    job = await jobs.add()

    async def late(data: bytes, content_type: str, prompt: str, user: str) -> Verdict:
        return Verdict(True)

    await jobs.primary.fetch(
        "create function end_room() returns trigger language plpgsql as "
        "'begin new.expires_at := clock_timestamp(); return new; end'"
    )
    await jobs.primary.fetch(
        "create trigger end_room before insert on storage_reservations for each row "
        "when (new.size_bytes > 1) execute function end_room()"
    )
    jobs.start(moderation=late)
    (row,) = await jobs.ended(job)
    assert row["state"] == "completed"


async def test_moderation(jobs: JobsWorld) -> None:
    """A picture that moderation refuses never gets an object, not for a moment, and its job is given back."""
    seen: list[tuple[int, str, str, str]] = []
    puts: list[str] = []
    put_many = jobs.objects.put_many

    async def noted(items: list[tuple[str, bytes]]) -> None:
        puts.extend(key for key, _ in items)
        await put_many(items)

    jobs.objects.put_many = noted  # type: ignore[method-assign, assignment]

    async def judge(data: bytes, content_type: str, prompt: str, user: str) -> Verdict:
        seen.append((len(data), content_type, prompt, user))
        return Verdict("bad" not in prompt, "it says bad")

    good, bad = await jobs.add("openai", "good"), await jobs.add("openai", "bad")
    jobs.start(moderation=judge)
    rows = await jobs.ended(good, bad)
    assert [(row["state"], row["error_code"]) for row in rows] == [("completed", None), ("failed", "content_policy")]
    assert "it says bad" in json.loads(rows[1]["response_data"])["error"]["message"]
    assert {(one[1], one[3]) for one in seen} == {("image/png", "ana")}
    assert len(puts) == 3
    assert (await jobs.attempts(bad))[0]["cost_usd"] > 0


async def test_moderation_that_breaks(jobs: JobsWorld) -> None:
    """Moderation that cannot tell allows nothing."""

    async def judge(data: bytes, content_type: str, prompt: str, user: str) -> Verdict:
        raise RuntimeError("away")

    job = await jobs.add()
    jobs.start(moderation=judge)
    assert (await jobs.ended(job))[0]["error_code"] == "undeliverable"
    assert [info async for info in jobs.objects.scan()] == []


def test_moderation_by_name() -> None:
    """The setting names a function; one that is not there ends the start with the setting's name."""
    assert read_moderation("") is allow
    assert read_moderation("store.generation.moderation:allow") is allow
    for name in ("store.generation.moderation:nothing", "no.such.module:f", "nothing"):
        with pytest.raises(SettingError, match="PERUSE_MODERATION"):
            read_moderation(name)


async def test_a_watermark(jobs: JobsWorld) -> None:
    """A watermark is written by us on pictures of a model that has none, and by the model that has its own."""
    plain = await jobs.add("openai", "red")
    signed = await jobs.add("openai", "red", watermark="peruse")
    own = await jobs.add("nanobanana", "red", watermark="peruse")
    jobs.start()
    await jobs.ended(plain, signed, own)
    pixels = []
    for job in (plain, signed):
        key = (await jobs.primary.fetch("select object_key from images where job_id = $1", job))[0][0]
        pixels.append(Image.open(io.BytesIO(await jobs.objects.get(key))).convert("RGB").tobytes())
    assert pixels[0] != pixels[1]
    assert [call.fields.get("watermark") for call in jobs.world.fake.made("nanobanana")] == ["peruse"]


@pytest.mark.parametrize("provider", ["openai/gpt-image-1", "nanobanana"])
async def test_references(jobs: JobsWorld, provider: str) -> None:
    """References and own images go to the model as bytes, or as an address that ends, in their order."""
    key = new_key("reference", "0" * 32, "image/png", 1)
    await jobs.objects.put(key, png())
    row = await jobs.primary.fetch(
        "insert into reference_images (owner_id, object_key, content_type, size_bytes, filename) "
        "values ('ana', $1, 'image/png', 5, 'a.png') returning id",
        key,
    )
    given = {"model": provider, "references": [row[0][0]], "width": 1024, "height": 1024}
    job = await jobs.add(provider.partition("/")[0], **given, kind="IMAGE_TO_IMAGE")
    jobs.start()
    (ended,) = await jobs.ended(job)
    assert ended["state"] == "completed", ended
    (call,) = jobs.world.fake.made(provider.partition("/")[0])
    if provider == "nanobanana":
        (url,) = call.fields["imageUrls"]
        assert url.startswith(f"http://files.example/files/{key}?expires=")
    else:
        assert call.fields["image"] == {"bytes": len(png())}


async def test_a_reference_that_is_gone(jobs: JobsWorld) -> None:
    """A job whose reference was deleted meanwhile fails without a call, and is given back."""
    missing = "00000000-0000-0000-0000-000000000001"
    job = await jobs.add("openai", model="openai/gpt-image-1", references=[missing], width=1024, height=1024)
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"]) == ("failed", "invalid_request")
    assert jobs.world.fake.made("openai") == []


async def test_an_own_key(jobs: JobsWorld) -> None:
    """A job with the user's own key calls with it and with no other, costs no credits, and its dollars are noted."""
    asked: list[tuple[str, str]] = []

    async def own_key(user: str, provider: str) -> SecretStr | None:
        asked.append((user, provider))
        return SecretStr("own-key-of-ana-1234")

    jobs.world.fake.script("replicate", "task_polls 3")
    mine, ours = await jobs.add("replicate", own_key=True, price_tenths=0), await jobs.add("openai")
    jobs.start(own_key=own_key)
    rows = await jobs.ended(mine, ours)
    assert {row["state"] for row in rows} == {"completed"}
    assert set(asked) == {("ana", "replicate")}
    shas = {call.key_sha for call in jobs.world.fake.calls if call.provider == "replicate"}
    assert len(shas) == 1
    assert shas != {call.key_sha for call in jobs.world.fake.calls if call.provider == "openai"}
    assert KEY not in str(rows)
    assert all(row["cost_usd"] > Decimal(0) for row in rows)


async def test_an_own_key_that_is_gone(jobs: JobsWorld) -> None:
    """A job whose own key was taken back is not drawn with ours: it fails, and says why."""
    job = await jobs.add("openai", own_key=True, price_tenths=0)
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"]) == ("failed", "provider_account")
    assert "your key" in row["error_message"]
    assert jobs.world.fake.made("openai") == []


async def test_objects_that_are_away(jobs: JobsWorld) -> None:
    """An object store that fails for a moment costs no picture: the upload is tried again, the provider is not."""
    put_many, failures = jobs.objects.put_many, iter([True, False])

    async def failing(items: list[tuple[str, bytes]]) -> None:
        if next(failures, False):
            raise ObjectsUnavailable("away")
        await put_many(items)

    jobs.objects.put_many = failing  # type: ignore[method-assign, assignment]
    job = await jobs.add("openai")
    jobs.start()
    assert (await jobs.ended(job))[0]["state"] == "completed"
    assert len(jobs.world.fake.made("openai")) == 1


async def test_a_parent(jobs: JobsWorld) -> None:
    """Variations name the picture that they descend from, as long as it is there."""
    first = await jobs.add()
    jobs.start()
    (row,) = await jobs.ended(first)
    child = await jobs.add(parent_id=row["image_ids"][0])
    orphan = await jobs.add(parent_id="00000000-0000-0000-0000-000000000001")
    await jobs.ended(child, orphan)
    parents = await jobs.primary.fetch(
        "select parent_id from images where job_id = any($1) order by parent_id", [child, orphan]
    )
    assert [parent[0] for parent in parents] == [row["image_ids"][0], None]
