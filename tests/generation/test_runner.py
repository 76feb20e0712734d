"""Jobs come to their end: pictures in the gallery, credits settled, whatever the provider is like."""

from __future__ import annotations

import json

import pytest

from tests.fakes.providers_world import MODEL_OF
from tests.generation.jobs_world import JobsWorld
from tests.world import until


@pytest.mark.parametrize("provider", list(MODEL_OF))
async def test_a_job_becomes_an_image(jobs: JobsWorld, provider: str) -> None:
    """Whatever the provider's protocol is, a job ends with an image in its owner's gallery, and is charged once."""
    job = await jobs.add(provider)
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["refunded_tenths"], row["error_code"]) == ("completed", 0, None), row
    image = (await jobs.primary.fetch("select * from images where job_id = $1", job))[0]
    assert row["image_ids"] == [image["id"]]
    assert (image["owner_id"], image["prompt"], image["model"]) == ("ana", "a red panda", row["model"])
    assert image["width"] > 0
    assert image["visibility"] == "unlisted"
    (attempt,) = await jobs.attempts(job)
    assert attempt["state"] == "done"
    assert (attempt["task_id"] is not None) == jobs.world.providers[provider].capabilities.has_tasks
    assert row["duration_ms"] >= 0
    await jobs.assert_objects()
    data = await jobs.objects.get(image["object_key"])
    assert b"trainedAlgorithmicMedia" in data
    assert image["size_bytes"] == len(data)


async def test_the_states_of_a_job(jobs: JobsWorld) -> None:
    """A job goes from pending over processing and uploading to completed, and every step is a version of its owner."""
    await jobs.primary.fetch("create table seen (n bigint generated always as identity, state text)")
    await jobs.primary.fetch(
        "create function note_state() returns trigger language plpgsql as "
        "'begin insert into seen (state) values (new.state); return null; end'"
    )
    await jobs.primary.fetch(
        "create trigger note_state after insert or update on jobs for each row execute function note_state()"
    )
    job = await jobs.add()
    jobs.start()
    await jobs.ended(job)
    states = [row["state"] for row in await jobs.primary.fetch("select state from seen order by n")]
    assert states == ["pending", "processing", "uploading", "completed"]
    head = (await jobs.primary.fetch("select version from sync_user where user_id = 'ana'"))[0][0]
    await until(lambda: ("ana", head) in [(user, bookmark.version) for user, bookmark in jobs.changes])


async def test_several_pictures(jobs: JobsWorld) -> None:
    """Four pictures of one job have four seeds, counted up, and each seed draws its picture again."""
    job = await jobs.add(n=4, seed=40)
    jobs.start()
    (row,) = await jobs.ended(job)
    seeds = await jobs.primary.fetch("select id, seed from images where job_id = $1 order by seed", job)
    assert [image["seed"] for image in seeds] == [40, 41, 42, 43]
    assert row["image_ids"] == [image["id"] for image in seeds]


async def test_k_of_n(jobs: JobsWorld) -> None:
    """Where one picture of three is refused, two are delivered and charged, and one line gives the third back."""
    jobs.world.fake.script("workers_ai", "ok", "policy", "ok")
    job = await jobs.add("workers_ai", n=3)
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], len(row["image_ids"]), row["refunded_tenths"]) == ("completed", 2, 15)
    assert row["error_code"] == "content_policy"
    assert "not charged" in row["error_message"]
    reason = (await jobs.primary.fetch("select reason from credit_ledger where kind = 'refund'"))[0][0]
    assert reason.startswith("1 of 3 pictures were not delivered")


async def test_a_refusal_is_explained(jobs: JobsWorld) -> None:
    """A refused prompt ends in failed, with what to do about it for the user and the provider's words kept apart."""
    job = await jobs.add("openai", "[[policy]] something bad")
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"]) == ("failed", "content_policy")
    assert "Try other words" in row["error_message"]
    assert "openai" in json.loads(row["response_data"])["error"]["message"]
    assert len(jobs.world.fake.made("openai")) == 1
