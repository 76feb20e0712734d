"""Usage over HTTP: from the replica, with days that end today."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.routes import context
from store.gallery import encode_query
from store.usage import parse_stats_query
from tests.gateway.asking import bookmark_of, replica_of
from tests.gateway.raw import connected
from tests.jobs import add_jobs, end_job, grant
from tests.world import World

STATS = "/api/stats"


async def ended(world: World, user: str, state: str = "completed") -> None:
    """One more job of `user` that has come to its end."""
    (job,) = await world.write(user, lambda c: add_jobs(c, user, 1, price_tenths=15))
    await world.write(user, lambda c: end_job(c, uuid.UUID(str(job)), state, cost_usd="0.0300"))


async def test_stats_count_what_was_generated(shared: World, user: str) -> None:
    """From the replica and from the primary with the same bytes; a job that ends shows at once.

    mission: 194, 210, 211, 212, 213, 214, 215
    """
    await shared.write(user, lambda connection: grant(connection, user, 100))
    await ended(shared, user)
    first = await shared.get(STATS, user=user)
    own = await replica_of(shared, user, STATS)

    stats = own.json["stats"]
    assert (own.body, own.headers["ETag"]) == (first.body, first.headers["ETag"])
    assert (stats["generations_count"], stats["credits_used"], stats["cost_usd"]) == (1, 1.5, 0.03)
    assert (stats["images_count"], stats["model_usage"], stats["storage_used_bytes"]) == (1, {"builtin": 1}, 0)
    [day] = stats["days"]
    assert (day["day"], day["generations_success"]) == (str(datetime.now(UTC).date()), 1)

    await ended(shared, user, "failed")
    reply = await shared.get(STATS, user=user)

    assert (reply.json["stats"]["generationsCount"], reply.json["stats"]["generationsFailed"]) == (2, 1)
    assert reply.json["stats"]["creditsUsed"] == 1.5
    today = datetime.now(UTC).date()
    page = await shared.gateway.reads._primary.read(user, encode_query(parse_stats_query({}, today)))
    assert page.body == reply.body


async def test_stored_bytes_follow_uploads(shared: World, user: str) -> None:
    """mission: 38, 215"""
    await replica_of(shared, user, STATS)
    uploaded = await shared.upload(user=user)

    reply = await shared.get(STATS, user=user)

    assert bookmark_of(reply) == bookmark_of(uploaded)
    assert reply.json["stats"]["storage_used_bytes"] == uploaded.json["image"]["size_bytes"]
    assert reply.json["stats"]["days"] == []


async def test_old_days_are_in_the_totals_alone(shared: World, user: str) -> None:
    """`days` counts back from today."""
    today = datetime.now(UTC).date()
    await shared.write(user, lambda c: grant(c, user, 1))
    for age in (0, 1, 29, 30, 365, 366):
        await shared.write(
            user,
            lambda c, age=age: c.execute(
                "insert into usage_daily (owner_id, day, generations_count) values ($1, $2, 1)",
                user,
                today - timedelta(days=age),
            ),
        )

    for query, expected in (
        ("", [0, 1, 29]),
        ("?days=1", [0]),
        ("?days=31", [0, 1, 29, 30]),
        ("?days=366", [0, 1, 29, 30, 365]),
    ):
        stats = (await shared.get(f"{STATS}{query}", user=user)).json["stats"]
        assert [day["day"] for day in stats["days"]] == [str(today - timedelta(days=age)) for age in expected]
        assert stats["generations_count"] == 6


async def test_same_request_tomorrow_is_another_question(
    shared: World, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are recognised by their bytes: not those whose meaning moves with the clock."""
    oldest = datetime.now(UTC).date() - timedelta(days=6)
    await shared.write(user, lambda c: grant(c, user, 1))
    await shared.write(
        user, lambda c: c.execute("insert into usage_daily (owner_id, day) values ($1, $2)", user, oldest)
    )
    await replica_of(shared, user, f"{STATS}?days=7")
    lines = (f"GET {STATS}?days=7 HTTP/1.1", "Host: x", f"Authorization: Bearer {shared.token(user)}", "", "")
    request = "\r\n".join(lines).encode()

    async def days() -> list[str]:
        return [day["day"] for day in json.loads((await connection.ask(request)).body)["stats"]["days"]]

    async with connected(shared) as connection:
        assert [await days() for _ in range(5)] == [[str(oldest)]] * 5
        monkeypatch.setattr(context, "datetime", _Tomorrow)
        assert await days() == []


class _Tomorrow(datetime):
    """A clock that is a day ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + timedelta(days=1)


@pytest.mark.parametrize("query", ["days=0", "days=367", "days=x", "limit=5", "days=1&days=2"])
async def test_bad_parameter_is_refused_by_name(shared: World, user: str, query: str) -> None:
    """mission: 157"""
    reply = await shared.get(f"{STATS}?{query}", user=user)

    assert (reply.status, reply.json["field"]) == (400, query.partition("=")[0])


async def test_service_reads_a_users_stats(shared: World, user: str) -> None:
    """The same bytes as the user gets. mission: 194"""
    await shared.write(user, lambda connection: grant(connection, user, 100))
    await ended(shared, user)
    own = await replica_of(shared, user, f"{STATS}?days=7")

    reply = await shared.get(f"/internal/users/{user}/stats?days=7", user="mailer", role="service")

    assert (reply.body, reply.headers["ETag"]) == (own.body, own.headers["ETag"])
