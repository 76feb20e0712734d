"""Usage and account: totals, and the same bytes from the primary and from a replica."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.replica import Applied, Replica
from actors.schema import user_version
from actors.seed import seed
from store.changes import Cursor
from store.documents import Documents
from store.errors import InvalidQuery
from store.gallery import Query, decode_query, encode_query
from store.primary import Primary
from store.reads import PrimaryReads
from store.usage import AccountQuery, StatsQuery, parse_stats_query
from tests.jobs import add_jobs, end_job, grant

DOCUMENTS = Documents()
LIMITS = (10, 20, 30)
TODAY = date(2026, 3, 4)


def parse(body: bytes | None) -> Any:
    """JSON with its numbers exact."""
    assert body is not None
    return json.loads(body, parse_float=Decimal)


def test_days_end_with_today() -> None:
    assert parse_stats_query({}, TODAY) == StatsQuery("2026-02-03")
    assert parse_stats_query({"days": "1"}, TODAY) == StatsQuery("2026-03-04")
    assert parse_stats_query({"days": "366"}, TODAY) == StatsQuery("2025-03-04")


@pytest.mark.parametrize("value", ["", "0", "367", "-1", "1.5", "x", "٣", "9" * 5000])
def test_bad_days_are_refused_by_name(value: str) -> None:
    """mission: 157"""
    with pytest.raises(InvalidQuery, match="days must be a whole number from 1 to 366") as caught:
        parse_stats_query({"days": value}, TODAY)

    assert caught.value.field == "days"
    with pytest.raises(InvalidQuery, match="unknown query parameter 'from'"):
        parse_stats_query({"from": value}, TODAY)


@given(
    query=st.builds(StatsQuery, st.dates().map(str)) | st.builds(AccountQuery, st.tuples(*[st.integers(0, 2**60)] * 3))
)
def test_query_comes_back_from_its_bytes(query: Query) -> None:
    assert decode_query(encode_query(query)) == query


# --- two databases, one body -----------------------------------------------------------------------------------


class Both:
    """One user in the primary and in a replica at the same version."""

    def __init__(self, reads: PrimaryReads, replica: Replica) -> None:
        self.reads, self.replica = reads, replica

    async def body(self, query: Query) -> bytes | None:
        """The body, which both give byte for byte."""
        page = await self.reads.read("ana", encode_query(query))
        assert self.replica.read(encode_query(query)).body == page.body
        assert (page.at.epoch, page.at.version) == self.replica.cursor[:2]
        return page.body


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(database)
    yield made
    await made.close()


async def both_of(primary: Primary, folder: Path) -> Both:
    path = folder / f"{uuid.uuid4().hex}.db"
    await seed(primary, "ana", path, DOCUMENTS, synced_at=1.0)
    return Both(PrimaryReads(primary, DOCUMENTS), Replica.open(path, "ana", user_version(DOCUMENTS)))


async def some_days(connection: asyncpg.Connection, user: str, days: int) -> None:
    """Usage of as many days, in no order."""
    chance = random.Random(days)
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
    for n in chance.sample(range(days), days):
        counts = [chance.randrange(5) for _ in range(3)]
        models = {name: chance.randrange(1, 9) for name in chance.sample(["a", "bb", "it's", "é"], chance.randrange(4))}
        await connection.execute(
            "insert into usage_daily (owner_id, day, generations_count, generations_success, generations_failed, "
            "generations_canceled, images_count, credits_used_tenths, cost_usd, duration_ms, model_usage, "
            "storage_used_bytes) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            user, TODAY - timedelta(days=n), sum(counts), *counts, chance.randrange(9), chance.randrange(99),
            Decimal(chance.randrange(99999)) / 10000, chance.randrange(10**6), json.dumps(models),
            chance.randrange(10**9),
        )  # fmt: skip


@pytest.mark.parametrize("days", [0, 1, 2, 40, 400])
async def test_totals_are_those_of_all_days_from_both(
    primary: Primary, connection: asyncpg.Connection, tmp_path: Path, days: int
) -> None:
    """Exact, whatever the order of the rows; the days that are shown are the last ones, newest first.

    mission: 112, 210, 211, 212, 213, 214, 215
    """
    await some_days(connection, "bo", 3)
    await some_days(connection, "ana", days)
    await connection.execute("update accounts set storage_used_bytes = 77 where owner_id = 'ana'")
    both = await both_of(primary, tmp_path)

    for shown in (1, 30, 366):
        stats = parse(await both.body(parse_stats_query({"days": str(shown)}, TODAY)))["stats"]

        expected = await connection.fetchrow(
            "select coalesce(sum(generations_count), 0) as generations_count, coalesce(sum(cost_usd), 0) as cost_usd, "
            "coalesce(sum(generations_success), 0) as generations_success, "
            "coalesce(sum(images_count), 0) as images_count, "
            "coalesce(sum(generations_failed), 0) as generations_failed, coalesce(sum(duration_ms), 0) as duration_ms, "
            "coalesce(sum(generations_canceled), 0) as generations_canceled, "
            "coalesce(sum(credits_used_tenths), 0) / 10.0 as credits_used from usage_daily where owner_id = 'ana'"
        )
        assert {name: stats[name] for name in expected.keys()} == dict(expected)  # noqa: SIM118 - a record's keys
        assert str(stats["cost_usd"]) == f"{expected['cost_usd']:.4f}", "exact, with all its decimals"
        models = await connection.fetch(
            "select key, sum(value::int) as n from usage_daily, jsonb_each_text(model_usage) where owner_id = 'ana' "
            'group by key order by n desc, key collate "C"'
        )
        assert list(stats["model_usage"].items()) == [tuple(row) for row in models]
        assert stats["storage_used_bytes"] == 77
        assert [day["day"] for day in stats["days"]] == [str(TODAY - timedelta(n)) for n in range(min(days, shown))]
        assert stats["generationsCount"] == stats["generations_count"]
        assert stats["generationsSuccess"] == stats["generations_success"]
        assert stats["generationsFailed"] == stats["generations_failed"]
        assert stats["creditsUsed"] == stats["credits_used"]
        assert stats["modelUsage"] == stats["model_usage"]
        assert stats["storageUsedBytes"] == stats["storage_used_bytes"]
    both.replica.close()


async def test_usage_follows_from_the_ends_of_jobs(
    primary: Primary, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """What was delivered is used, what was not is given back, and the account says what is left.

    mission: 38, 194, 210, 211, 212, 213, 214
    """
    await grant(connection, "ana", 1000)
    ends = (("completed", 2), ("completed", 1), ("failed", 0), ("canceled", 0))
    for (state, pictures), job in zip(ends, await add_jobs(connection, "ana", 5, n=2, price_tenths=30), strict=False):
        await end_job(connection, job, state, pictures=pictures, cost_usd="0.0125")
    both = await both_of(primary, tmp_path)

    stats = parse(await both.body(StatsQuery("1970-01-01")))["stats"]
    account = parse(await both.body(AccountQuery(LIMITS)))["account"]

    assert stats["generations_count"] == 4
    assert (stats["generations_success"], stats["generations_failed"], stats["generations_canceled"]) == (2, 1, 1)
    assert (stats["images_count"], stats["credits_used"], stats["cost_usd"]) == (3, Decimal("4.5"), Decimal("0.0500"))
    assert stats["model_usage"] == {"builtin": 4}
    assert stats["duration_ms"] == 6000
    assert (account["balance_credits"], account["held_credits"]) == (Decimal("92.5"), 3)
    both.replica.close()


_counts = st.integers(0, 10**6)
_days = st.builds(
    lambda day, counts, tenths, usd, models: msgspec.json.encode(
        {
            "day": str(day), **dict(zip(_COUNTS, counts, strict=True)), "model_usage": models,
            "credits_used": msgspec.Raw(str(Decimal(tenths) / 10).encode()),
            "cost_usd": msgspec.Raw(str(Decimal(usd).scaleb(-4)).encode()),
        }
    ),
    st.dates(date(1970, 1, 1)),
    st.tuples(*[_counts] * 6),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=3),
)  # fmt: skip
_COUNTS = (
    "generations_count", "generations_success", "generations_failed", "generations_canceled", "images_count",
    "duration_ms",
)  # fmt: skip


@given(days=st.lists(_days, max_size=12, unique_by=lambda day: json.loads(day)["day"]), data=st.data())
def test_stats_do_not_tell_in_which_order_days_were_read(days: list[bytes], data: st.DataObject) -> None:
    """A replica and the primary keep them in different orders. Sums are exact, whatever their size."""
    query = StatsQuery(str(data.draw(st.dates(date(1970, 1, 1)))))
    body = query.body({"usage_daily": days, "accounts": []})

    assert query.body({"usage_daily": data.draw(st.permutations(days)), "accounts": []}) == body
    stats, known = parse(body)["stats"], [parse(day) for day in days]
    assert [day["day"] for day in stats["days"]] == sorted(
        (d["day"] for d in known if d["day"] >= query.since), reverse=True
    )
    for name in ("credits_used", "cost_usd", *_COUNTS):
        assert stats[name] == sum(day[name] for day in known)


@pytest.mark.parametrize(("plan", "limit"), [("free", 10), ("pro", 20), ("enterprise", 30)])
async def test_account_has_the_room_of_its_plan(
    primary: Primary, connection: asyncpg.Connection, tmp_path: Path, plan: str, limit: int
) -> None:
    """As the asking gateway is set: another setting is another query, with another ETag."""
    await connection.execute("insert into users (id) values ('ana')")
    await connection.execute("update accounts set plan = $1, day_budget_tenths = 15 where owner_id = 'ana'", plan)
    both = await both_of(primary, tmp_path)

    account = parse(await both.body(AccountQuery(LIMITS)))["account"]
    other = parse(await both.body(AccountQuery((1, 2, 3))))["account"]

    assert (account["plan"], account["storage_limit_bytes"]) == (plan, limit)
    assert other == account | {"storage_limit_bytes": limit // 10}
    assert (account["day_budget_credits"], account["month_budget_credits"]) == (Decimal("1.5"), None)
    hashes = {both.replica.read(encode_query(AccountQuery(limits))).query_hash for limits in (LIMITS, (1, 2, 3))}
    assert len(hashes) == 2
    both.replica.close()


async def test_stranger_has_the_account_of_a_new_user(primary: Primary, connection: asyncpg.Connection) -> None:
    """The same members as their account will have, at version 0; and no usage."""
    reads = PrimaryReads(primary, DOCUMENTS)
    stranger = await reads.read("nobody", encode_query(AccountQuery(LIMITS)))
    await connection.execute("insert into users (id) values ('nobody')")
    known = parse((await reads.read("nobody", encode_query(AccountQuery(LIMITS)))).body)["account"]
    stats = parse((await reads.read("nobody", encode_query(StatsQuery("1970-01-01")))).body)["stats"]

    assert stranger.at.version == 0
    assert parse(stranger.body)["account"] == {**known, "updated_at": None}
    assert list(parse(stranger.body)["account"]) == list(known)
    assert not any(stats.values())


async def test_summary_is_kept_until_a_kind_of_its_own_changes(
    primary: Primary, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """Stats are made of two kinds: a change of either makes them anew, one of jobs does not."""
    await some_days(connection, "ana", 2)
    both = await both_of(primary, tmp_path)
    replica, stats, account = both.replica, encode_query(StatsQuery("1970-01-01")), encode_query(AccountQuery(LIMITS))
    epoch, version, nonce = replica.cursor

    def stamps_after(kind: str) -> tuple[bool, bool]:
        """Whether stats and account are kept over a change of `kind`."""
        before = replica.read(stats).stamp, replica.read(account).stamp
        replica.apply(Cursor(epoch, version, nonce), [Applied(kind, str(uuid.uuid4()), None)])
        return replica.read(stats).stamp == before[0], replica.read(account).stamp == before[1]

    assert stamps_after("jobs") == (True, True)
    assert stamps_after("usage_daily") == (False, True)
    assert stamps_after("accounts") == (False, False)
    replica.close()
