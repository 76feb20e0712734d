"""What a webhook is told: written by the transaction in which it happens, or not at all."""

from __future__ import annotations

import asyncio
import json
import uuid
from importlib import resources
from typing import Any

import asyncpg
import pytest

from store.erasure import erase
from store.primary import Primary
from store.sealing import Sealer
from store.webhooks import EVENTS, create
from tests.world import add_images, until

SEALER = Sealer(bytes(32))
_JOB = (
    "insert into jobs (owner_id, prompt, provider, model, n, price_tenths) "
    "values ($1, 'a secret plan', 'builtin', $2, $3, $4) returning id"
)  # fmt: skip


async def hook(primary: Primary, user: str, *events: str) -> uuid.UUID:
    """A new webhook of `user`."""

    async def work(connection: Any) -> uuid.UUID:
        made = await create(
            connection, SEALER, user, url="https://example.org/hook", events=events, allow=(), now_ms=1_700_000_000_000
        )
        return made.webhook.id

    return (await primary.write(user, work))[0]


async def grant(connection: Any, user: str, tenths: int) -> None:
    await connection.execute(
        "insert into credit_ledger (owner_id, kind, amount_tenths) values ($1, 'grant', $2)", user, tenths
    )


async def job(connection: Any, user: str, *, n: int = 1, price: int = 0, model: str = "m") -> uuid.UUID:
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
    return await connection.fetchval(_JOB, user, model, n, price)


async def told(primary: Primary, user: str) -> list[tuple[str, Any]]:
    """Event and data of each delivery, in order."""
    rows = await primary.fetch(
        "select event, event_id, payload from webhook_deliveries where owner_id = $1 order by created_at, id", user
    )
    found = []
    for row in rows:
        payload = json.loads(row["payload"])
        assert list(payload) == ["type", "timestamp", "data"]
        assert payload["type"] == row["event"]
        assert payload["timestamp"].endswith("Z")
        found.append((row["event"], payload["data"]))
    return found


async def test_end_of_a_job_is_told_with_what_it_cost(primary: Primary) -> None:
    """Two of three pictures: completed, paid for two. mission: 231"""
    await hook(primary, "ana")
    async with primary.connection() as c:
        await grant(c, "ana", 1000)
        row_id = await job(c, "ana", n=3, price=150)
        await c.execute("update jobs set state = 'processing' where id = $1", row_id)
        ids = await add_images(c, "ana", 2, job_id=row_id)
        await c.execute(
            "update jobs set state = 'completed', image_ids = $2, error_code = 'timeout', error_message = 'too late' "
            "where id = $1", row_id, ids,
        )  # fmt: skip

    ((event, data),) = await told(primary, "ana")

    assert event == "generation.completed"
    created = data.pop("created_at")
    assert len(created) == 27
    assert data == {
        "id": str(row_id), "kind": "TEXT_TO_IMAGE", "state": "completed", "provider": "builtin", "model": "m", "n": 3,
        "image_ids": [str(i) for i in ids], "cost_credits": 10, "refunded_credits": 5,
        "error": {"code": "timeout", "message": "too late"}, "batch_id": None,
    }  # fmt: skip


@pytest.mark.parametrize("state", ["failed", "canceled"])
async def test_job_without_pictures_is_told_with_its_refund(primary: Primary, state: str) -> None:
    """mission: 231"""
    await hook(primary, "ana")
    async with primary.connection() as c:
        await grant(c, "ana", 1000)
        row_id = await job(c, "ana", price=45)
        await c.execute("update jobs set state = $2 where id = $1", row_id, state)

    ((event, data),) = await told(primary, "ana")

    assert event == f"generation.{state}"
    assert (data["cost_credits"], data["refunded_credits"], data["error"]) == (0, 4.5, None)


async def test_prompt_is_not_told(primary: Primary) -> None:
    """A payload has ids and states: what a user typed stays with them."""
    await hook(primary, "ana")
    async with primary.connection() as c:
        row_id = await job(c, "ana")
        await c.execute("update jobs set state = 'failed' where id = $1", row_id)

    assert "secret plan" not in json.dumps(await told(primary, "ana"))


async def test_end_that_is_rolled_back_is_not_told(primary: Primary) -> None:
    """The telling is part of the transaction."""
    await hook(primary, "ana")
    async with primary.connection() as c:
        row_id = await job(c, "ana")
        transaction = c.transaction()
        await transaction.start()
        await c.execute("update jobs set state = 'failed' where id = $1", row_id)
        assert await c.fetchval("select count(*) from webhook_deliveries") == 1
        await transaction.rollback()

    assert await told(primary, "ana") == []


async def test_image_is_told_once_when_it_leaves_the_gallery(primary: Primary) -> None:
    """Into the trash, or for good from outside of it; never a second time when the trash is emptied."""
    await hook(primary, "ana")
    async with primary.connection() as c:
        one, two, three = await add_images(c, "ana", 3)
        await c.execute("update images set starred = true where owner_id = 'ana'")
        await c.execute("update images set trashed_at = now() where id = $1", one)
        await c.execute("update images set title = 'x' where id = $1", one)
        await c.execute("delete from images where id = any($1)", [one, two])
        await c.execute("update images set trashed_at = now() where id = $1", three)
        await c.execute("update images set trashed_at = null where id = $1", three)

    assert [(event, data["id"], data["state"]) for event, data in await told(primary, "ana")] == [
        ("image.deleted", str(one), "trashed"),
        ("image.deleted", str(two), "removed"),
        ("image.deleted", str(three), "trashed"),
    ]


async def test_many_images_in_one_statement_are_each_told(primary: Primary) -> None:
    """Of two users, of whom one has a webhook."""
    await hook(primary, "ana")
    async with primary.connection() as c:
        ids = [*await add_images(c, "ana", 20), *await add_images(c, "bob", 20)]
        await c.execute("delete from images where id = any($1)", ids)

    assert {data["id"] for _, data in await told(primary, "ana")} == {str(i) for i in ids[:20]}
    assert await told(primary, "bob") == []


async def test_low_credits_are_told_when_they_become_low(primary: Primary) -> None:
    """Below 10, once; again only after they had been 10."""
    await hook(primary, "ana", "credits.low")
    async with primary.connection() as c:
        await grant(c, "ana", 50)
        assert await told(primary, "ana") == []
        await grant(c, "ana", 100)
        ended = await job(c, "ana", price=50)
        assert await told(primary, "ana") == []
        await job(c, "ana", price=5)
        await job(c, "ana", price=5)
        assert await told(primary, "ana") == [("credits.low", {"balance_credits": 9.5, "below_credits": 10})]
        await c.execute("update jobs set state = 'failed' where id = $1", ended)
        await job(c, "ana", price=120)

    assert [data["balance_credits"] for _, data in await told(primary, "ana")] == [9.5, 2]


async def test_only_active_webhooks_that_want_the_event_are_told(primary: Primary) -> None:
    """All of them under the event's one id."""
    everything = await hook(primary, "ana")
    wanted = await hook(primary, "ana", "generation.failed", "image.deleted")
    other = await hook(primary, "ana", "credits.low")
    disabled = await hook(primary, "ana")
    somebody = await hook(primary, "bob")
    async with primary.connection() as c:
        await c.execute("update webhooks set state = 'disabled' where id = $1", disabled)
        row_id = await job(c, "ana")
        await c.execute("update jobs set state = 'failed' where id = $1", row_id)

    rows = await primary.fetch("select webhook_id, event_id, state, attempts from webhook_deliveries")

    assert {row["webhook_id"] for row in rows} == {everything, wanted}
    assert len({row["event_id"] for row in rows}) == 1
    assert {other, somebody, disabled}.isdisjoint({row["webhook_id"] for row in rows})
    assert {(row["state"], row["attempts"]) for row in rows} == {("pending", 0)}


@pytest.mark.parametrize("sign", ["x", "\x01", "𝄞", '"', "\\"])
async def test_texts_of_others_never_make_a_payload_that_does_not_fit(primary: Primary, sign: str) -> None:
    """A job ends, however long its error and its model are."""
    await hook(primary, "ana")
    async with primary.connection() as c:
        row_id = await job(c, "ana", model=sign * 10_000, n=64)
        ids = await add_images(c, "ana", 64)
        await c.execute(
            "update jobs set state = 'completed', image_ids = $2, error_code = $3, error_message = $3 where id = $1",
            row_id, ids, sign * 100_000,
        )  # fmt: skip

    (row,) = await primary.fetch("select octet_length(payload) as size, payload::json as j from webhook_deliveries")
    assert row["size"] < 20_000


async def test_erasing_a_user_tells_nobody(primary: Primary) -> None:
    """Their images go, and so do the webhook and its log."""
    await hook(primary, "ana")
    async with primary.connection() as c:
        await add_images(c, "ana", 3)
        await c.execute("insert into erased_users (user_id) values ('ana')")
        await c.execute("delete from images where owner_id = 'ana'")
        assert await told(primary, "ana") == []
        await c.execute("delete from erased_users")
        await add_images(c, "ana", 3)

    await erase(primary, "ana")

    assert await primary.fetch("select from webhooks") == []
    assert await primary.fetch("select from webhook_deliveries") == []


async def test_user_who_is_deleted_by_plain_sql_takes_their_webhook_along(primary: Primary) -> None:
    """The images' end, inside of the user's, has nobody left to tell."""
    await hook(primary, "ana")
    async with primary.connection() as c:
        await add_images(c, "ana", 3)
        row_id = await job(c, "ana")
        await c.execute("update jobs set state = 'failed' where id = $1", row_id)

        await c.execute("delete from users where id = 'ana'")

    assert await primary.fetch("select from webhook_deliveries") == []


async def test_job_that_ends_while_its_webhook_is_deleted_ends(primary: Primary, database: str) -> None:
    """The foreign key of a telling must not undo the end of a job."""
    row_id = await hook(primary, "ana")
    async with primary.connection() as deleter, primary.connection() as c:
        one = await job(c, "ana")
        transaction = deleter.transaction()
        await transaction.start()
        await deleter.execute("delete from webhooks where id = $1", row_id)
        other = await asyncpg.connect(database)
        try:
            ending = asyncio.create_task(other.execute("update jobs set state = 'failed' where id = $1", one))
            await until(lambda: c.fetchval("select true from pg_locks where not granted"))
            await transaction.commit()
            await ending
        finally:
            await other.close()

    assert await told(primary, "ana") == []
    assert [tuple(row) for row in await primary.fetch("select state from jobs")] == [("failed",)]


async def test_user_without_a_webhook_costs_one_look_at_an_index(primary: Primary) -> None:
    """Of 5,000 webhooks of others not one is read."""
    async with primary.connection() as c:
        await c.execute("insert into users (id) select 'u' || n from generate_series(1, 5000) n")
        await c.execute(
            "insert into webhooks (owner_id, url, secret) "
            "select 'u' || n, 'https://a.b', '' from generate_series(1, 5000) n"
        )
        await c.execute("analyze webhooks")
        ids = await add_images(c, "ana", 50)
        await c.execute("set stats_fetch_consistency = none")
        stats = "select seq_scan, seq_tup_read from pg_stat_xact_user_tables where relname = 'webhooks'"
        async with c.transaction():
            before = tuple(await c.fetchrow(stats))
            for row_id in ids:
                await c.execute("update images set trashed_at = now() where id = $1", row_id)
                await c.execute("update images set trashed_at = null where id = $1", row_id)
            await c.execute("delete from images where owner_id = 'ana'")
            assert tuple(await c.fetchrow(stats)) == before
            assert await c.fetchval("select count(*) from webhook_deliveries") == 0


def test_events_are_those_of_the_triggers() -> None:
    """What may be chosen is what may be told."""
    source = resources.files("store").joinpath("webhooks.sql").read_text()
    assert all(event in source or event.split(".")[0] + ".' || new.state" in source for event in EVENTS)
