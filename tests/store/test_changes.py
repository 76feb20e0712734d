"""Pulls: whatever was written since a cursor, one answer makes the old state the new one."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.changes import (
    _PULL,
    START,
    Change,
    Cursor,
    Delta,
    Missed,
    Reset,
    changes_since,
    heads_of,
    missed_since,
    seed_rows,
)
from store.documents import Documents, Row
from store.epoch import Bookmark, rotate
from store.primary import Primary
from store.tables import REPLICATED, ZERO_NONCE
from tests.store.test_capture import assert_consistent, flush, insert_image, insert_job, services
from tests.world import add_images

DOCUMENTS = Documents()
_numbers = itertools.count(1)

State = dict[tuple[str, str], Row]


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection to the fresh primary."""
    made = await asyncpg.connect(database)
    yield made
    await made.close()


async def state_of(connection: Any, user: str) -> State:
    """What is the user's now, as a seed would copy it."""
    rows = await connection.fetch(seed_rows(), user)
    made = [(kind, DOCUMENTS.row(kind, source)) for kind, source in rows]
    return {(kind, row.id): row for kind, row in made}


async def head_of(connection: Any, user: str) -> Cursor:
    epoch, heads = await heads_of(connection, [user])
    return heads.get(user, Cursor(epoch, 0, ZERO_NONCE))


def apply(state: State, changes: list[Change]) -> State:
    """What a replica at `state` becomes by a pull."""
    after = dict(state)
    for kind, row_id, source in changes:
        if source is None:
            after.pop((kind, row_id), None)
        else:
            after[kind, row_id] = DOCUMENTS.row(kind, source)
    return after


async def pull(connection: Any, user: str, cursor: Cursor, **options: Any) -> Delta:
    answer = await changes_since(connection, user, cursor, **options)
    assert isinstance(answer, Delta), answer
    return answer


async def reset(connection: Any, user: str, cursor: Cursor, **options: Any) -> Reset:
    answer = await changes_since(connection, user, cursor, **options)
    assert isinstance(answer, Reset), answer
    assert answer.head == await head_of(connection, user)
    return answer


# --- every pull from every cursor ---------------------------------------------------------------------------------


class Step(NamedTuple):
    """One statement on row number `row` of a kind; `whose` 0 or 1 is the user it is about."""

    verb: str
    row: int
    whose: int


class Transaction(NamedTuple):
    """Statements, some of them behind a savepoint that is undone, and whether all of it is."""

    steps: list[Step]
    undone_steps: list[Step]
    is_undone: bool


#: $1 the user, $2 the other user, $3 the row's id, $4 a new id. Each verb uses some of them.
VERBS = {
    "insert image": "insert into images (id, owner_id, object_key, content_type, size_bytes, model) "
    "values ($3, $1, 'generated/' || $4::text, 'image/png', 1, 'm') on conflict do nothing",
    "upsert image": "insert into images (id, owner_id, object_key, content_type, size_bytes, model) "
    "values ($3, $1, 'generated/' || $4::text, 'image/png', 1, 'm') "
    "on conflict (id) do update set owner_id = excluded.owner_id, steps = coalesce(images.steps, 0) + 1",
    "star image": "update images set starred = not starred where id = $3",
    "touch image": "update images set starred = starred where id = $3",
    "trash image": "update images set trashed_at = clock_timestamp() where id = $3",
    "restore image": "update images set trashed_at = null where id = $3",
    "move image": "update images set owner_id = case owner_id when $1 then $2 else $1 end where id = $3",
    "swap owners": "update images set owner_id = case owner_id when $1 then $2 else $1 end where owner_id in ($1, $2)",
    "rename image": "update images set id = $4 where id = $3",
    "delete image": "delete from images where id = $3",
    "bulk title": "update images set title = coalesce(title, '') || 'x' where owner_id = $1",
    "bulk delete": "delete from images where owner_id = $1 and starred",
    "insert job": "insert into jobs (id, owner_id, prompt, provider, model) values ($3, $1, '', 'p', 'm') "
    "on conflict do nothing",
    "finish job": "update jobs set state = 'failed', cost_usd = 0.0125 where id = $3",
    "use job": "update images set job_id = (select j.id from jobs j where j.id = $3) where owner_id in ($1, $2)",
    "delete job": "delete from jobs where id = $3",
    "insert reference": "insert into reference_images (id, owner_id, object_key, content_type, size_bytes, filename) "
    "values ($3, $1, 'reference/' || $4::text, 'image/png', 1, 'a.png') on conflict do nothing",
    "move reference": "update reference_images set owner_id = $2 where id = $3",
    "delete reference": "delete from reference_images where id = $3",
    "grant": "insert into credit_ledger (owner_id, kind, amount_tenths) select owner_id, 'grant', 5 from accounts "
    "where owner_id = $1",
    "delete user": "delete from users where id = $1",
    "create user": "insert into users (id) values ($1) on conflict do nothing",
}

#: Where every history starts from: two users, with a row of each kind.
BEGINNING = [
    *(Step("create user", 0, whose) for whose in (0, 1)),
    *(Step(f"insert {kind}", 0, 0) for kind in ("image", "job", "reference")),
    Step("insert image", 1, 1),
]

steps = st.builds(Step, st.sampled_from(sorted(VERBS)), st.integers(0, 2), st.integers(0, 1))
transactions = st.builds(
    Transaction,
    st.lists(steps, min_size=1, max_size=4),
    st.lists(steps, max_size=2),
    st.sampled_from([False, False, False, True]),
)


class Undo(Exception):
    """Raised to roll a block back."""


async def run(connection: Any, transaction: Transaction, users: list[str], ids: list[uuid.UUID]) -> None:
    with suppress(Undo):
        async with connection.transaction():
            for step in transaction.steps:
                await take(connection, step, users, ids)
            with suppress(Undo):
                async with connection.transaction():
                    for step in transaction.undone_steps:
                        await take(connection, step, users, ids)
                    raise Undo
            if transaction.is_undone:
                raise Undo


async def take(connection: Any, step: Step, users: list[str], ids: list[uuid.UUID]) -> None:
    """One step; one that a foreign key refuses is undone alone."""
    sql = VERBS[step.verb]
    values = [users[step.whose], users[1 - step.whose], ids[step.row], uuid.uuid4()]
    # Postgres wants to know each parameter's type, the unused ones' too.
    typed = f"with unused as (select $1::text, $2::text, $3::uuid, $4::uuid) {sql}"
    with suppress(asyncpg.ForeignKeyViolationError):
        async with connection.transaction():
            await connection.execute(typed, *values)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(transactions, min_size=4, max_size=14))
async def test_pull_from_any_earlier_cursor_makes_the_state_of_the_head(
    connection: asyncpg.Connection, history: list[Transaction]
) -> None:
    """For every history of two users and every point c of it: the state at c and one pull are the rows of now.

    mission: 118, 134, 135, 138
    """
    number = next(_numbers)
    users = [f"ana{number}", f"bo{number}"]
    ids = [uuid.uuid4() for _ in range(3)]
    past = {user: [(await head_of(connection, user), await state_of(connection, user))] for user in users}
    for step in BEGINNING:
        await take(connection, step, users, ids)

    for transaction in history:
        await run(connection, transaction, users, ids)
        for user in users:
            now, head = await state_of(connection, user), await head_of(connection, user)
            for cursor, state in past[user]:
                delta = await pull(connection, user, cursor)
                assert delta.head == head
                assert apply(state, delta.changes) == now
                assert len({(c.kind, c.row_id) for c in delta.changes}) == len(delta.changes), "one change per row"
                assert len(delta.waited_s) == head.version - cursor.version
            if head != past[user][-1][0]:
                past[user].append((head, now))
            else:
                assert now == past[user][-1][1], "the rows changed and the version did not"
    await assert_consistent(connection)


async def test_pull_twice_changes_nothing_more(connection: asyncpg.Connection) -> None:
    """A batch may be applied again after a crash, and at the head there is nothing to pull."""
    start = await head_of(connection, "ana")
    await add_images(connection, "ana", 3)
    delta = await pull(connection, "ana", start)
    once = apply({}, delta.changes)

    again = await pull(connection, "ana", start)
    rest = await pull(connection, "ana", delta.head)

    assert apply(once, again.changes) == once == await state_of(connection, "ana")
    assert (rest.head, rest.changes, rest.waited_s) == (delta.head, [], [])
    assert delta.head == rest.head
    assert start != delta.head


async def test_row_is_pulled_in_the_order_of_its_newest_version(connection: asyncpg.Connection) -> None:
    """Ascending by version, and an old row that changed again comes last."""
    start = await head_of(connection, "ana")
    ids = [str(row) for row in await add_images(connection, "ana", 3)]
    await connection.execute("update images set starred = true where id = $1::text::uuid", ids[0])

    delta = await pull(connection, "ana", start)

    assert [change.row_id for change in delta.changes] == ["ana", ids[1], ids[2], ids[0]]


async def test_moved_row_is_a_deletion_for_the_one_who_had_it(connection: asyncpg.Connection) -> None:
    """Not a byte of the row reaches the old owner, who has its key in his log.

    mission: 141, 208
    """
    await add_images(connection, "bo", 1)
    [row] = await add_images(connection, "ana", 1)
    cursor = await head_of(connection, "ana")
    await connection.execute("update images set owner_id = 'bo', prompt = 'his secret' where id = $1", row)

    mine, his = await pull(connection, "ana", cursor), await pull(connection, "bo", START._replace(epoch=cursor.epoch))

    assert mine.changes == [Change("images", str(row), None)]
    assert "his secret" in {c.row_id: c.source or "" for c in his.changes}[str(row)]


async def test_lag_is_told_for_each_version(connection: asyncpg.Connection) -> None:
    """Seconds from each commit to the pull, by the primary's clock."""
    start = await head_of(connection, "ana")
    await add_images(connection, "ana", 2)
    await connection.execute("update change_log set at = at - interval '1 hour' where version = 2")

    waited_s = (await pull(connection, "ana", start)).waited_s

    assert len(waited_s) == 3
    assert sum(3599 < s < 3700 for s in waited_s) == 1
    assert all(0 <= s < 3700 for s in waited_s)


# --- users without a history ---------------------------------------------------------------------------------------


async def test_user_nobody_has_heard_of_is_empty_at_version_zero(connection: asyncpg.Connection) -> None:
    """No row in sync_user is (0, zero nonce): a valid cursor, not a reason to seed."""
    epoch = await connection.fetchval("select sync_epoch_now()")

    delta = await pull(connection, "nobody", Cursor(epoch, 0, ZERO_NONCE))

    assert delta == Delta(Cursor(epoch, 0, ZERO_NONCE), [], [])
    assert (await reset(connection, "nobody", Cursor(epoch, 0, str(uuid.uuid4())))).reason == "nonce"
    assert (await reset(connection, "nobody", Cursor(epoch, 1, ZERO_NONCE))).reason == "ahead"


async def test_heads_of_leaves_out_users_at_zero(connection: asyncpg.Connection) -> None:
    """Unknown users are not in the answer; the epoch is there even when nobody is."""
    await add_images(connection, "ana", 2)

    epoch, heads = await heads_of(connection, ["nobody", "ana", "ana", "bo"])

    nonce = await connection.fetchval("select nonce::text from sync_user where user_id = 'ana'")
    assert heads == {"ana": Cursor(epoch, 3, nonce)}
    assert await heads_of(connection, ["nobody"]) == (epoch, {})
    assert await heads_of(connection, []) == (epoch, {})
    assert heads["ana"].version == 3


# --- resets --------------------------------------------------------------------------------------------------------


async def cursors_of(connection: Any, user: str) -> list[Cursor]:
    """Every cursor that the log can prove, ascending, from version 0."""
    epoch = await connection.fetchval("select sync_epoch_now()")
    rows = await connection.fetch(
        "select version, nonce::text from change_log where user_id = $1 order by version", user
    )
    return [Cursor(epoch, 0, ZERO_NONCE), *(Cursor(epoch, *row) for row in rows)]


async def test_rotated_epoch_resets_every_cursor(connection: asyncpg.Connection) -> None:
    """After a restore no cursor of before can be trusted, not even one whose version and nonce are there."""
    await add_images(connection, "ana", 2)
    cursors = await cursors_of(connection, "ana")
    await connection.execute("update sync_epoch set id = id + 1")

    resets = [await reset(connection, "ana", cursor) for cursor in [*cursors, START]]

    assert {r.reason for r in resets} == {"epoch"}
    assert all(r.is_false_history for r in resets)
    assert await pull(connection, "ana", cursors[-1]._replace(epoch=resets[0].head.epoch))


async def test_new_timeline_alone_is_no_reset(connection: asyncpg.Connection) -> None:
    """A clean failover: the nonce still matches, the cursor adopts the epoch of now."""
    await add_images(connection, "ana", 2)
    _, _, cursor, head = await cursors_of(connection, "ana")
    rotation, _, timeline = head.epoch.partition("-")

    delta = await pull(connection, "ana", cursor._replace(epoch=f"{rotation}-{int(timeline) + 1}"))

    assert delta.head == head
    assert len(delta.changes) == 1
    lost = cursor._replace(epoch=f"{rotation}-{int(timeline) + 1}", nonce=str(uuid.uuid4()))
    assert (await reset(connection, "ana", lost)).reason == "nonce"


async def test_cursor_ahead_of_the_head_is_reset(connection: asyncpg.Connection) -> None:
    """Versions that the primary does not have happened in a history that was lost."""
    await add_images(connection, "ana", 1)
    *_, head = await cursors_of(connection, "ana")

    answer = await reset(connection, "ana", head._replace(version=head.version + 1))

    assert (answer.reason, answer.is_false_history) == ("ahead", True)


@pytest.mark.parametrize("behind", [0, 1])
async def test_equal_version_of_another_history_is_reset(connection: asyncpg.Connection, behind: int) -> None:
    """A, B, A: restored to an older state and written again up to the same number. Only the nonce can tell."""
    await add_images(connection, "ana", 2)
    saved = await connection.fetchrow("select version, nonce from sync_user where user_id = 'ana'")
    await add_images(connection, "ana", 2)
    seen = (await cursors_of(connection, "ana"))[-1 - behind]
    async with connection.transaction():
        await connection.execute("set local session_replication_role = replica")
        await connection.execute("alter table images disable trigger user")
        await connection.execute(
            "delete from images where id::text in (select row_id from change_row r join change_log l using (nonce) "
            "where l.version > $1)",
            saved["version"],
        )
        await connection.execute("alter table images enable always trigger sync_insert_delete")
        await connection.execute("alter table images enable always trigger sync_update")
        await connection.execute("alter table images enable always trigger sync_truncate")
        await connection.execute("delete from change_row r using change_log l where l.nonce = r.nonce and version > 3")
        await connection.execute("delete from change_log where version > 3")
        await connection.execute("update sync_user set version = $1, nonce = $2", *saved)
    assert saved["version"] == 3
    await add_images(connection, "ana", 2)
    await assert_consistent(connection)

    answer = await reset(connection, "ana", seen)

    assert seen.version == answer.head.version - behind
    assert (answer.reason, answer.is_false_history) == ("nonce", True)


async def trim(connection: Any, user: str, horizon: int) -> None:
    """Forget the log up to and with `horizon`, as retention does."""
    async with connection.transaction():
        await connection.execute(
            "update sync_user set horizon = $2, horizon_nonce = "
            "(select nonce from change_log where user_id = $1 and version = $2) where user_id = $1",
            user,
            horizon,
        )
        gone = "select nonce from change_log where user_id = $1 and version <= $2"
        await connection.execute(f"delete from change_row where user_id = $1 and nonce in ({gone})", user, horizon)
        await connection.execute("delete from change_log where user_id = $1 and version <= $2", user, horizon)


async def test_cursor_below_the_horizon_is_reset_and_one_on_it_is_not(connection: asyncpg.Connection) -> None:
    """What is trimmed cannot be pulled; the horizon's nonce proves the cursor that stands on it."""
    await add_images(connection, "ana", 4)
    cursors = await cursors_of(connection, "ana")
    await trim(connection, "ana", 3)
    await assert_consistent(connection)

    answers = [await changes_since(connection, "ana", cursor) for cursor in cursors]

    below, kept = answers[:3], answers[3:]
    assert [(a.reason, a.is_false_history) for a in below if isinstance(a, Reset)] == [("horizon", False)] * 3
    assert [len(a.changes) for a in kept if isinstance(a, Delta)] == [2, 1, 0]
    stranger = cursors[3]._replace(nonce=str(uuid.uuid4()))
    assert (await reset(connection, "ana", stranger)).reason == "nonce"


async def test_idle_user_whose_whole_log_is_gone_is_not_seeded_again(connection: asyncpg.Connection) -> None:
    """The horizon reached the head: the cursor at the head is still good, and goes on from there."""
    await add_images(connection, "ana", 2)
    head = await head_of(connection, "ana")
    await trim(connection, "ana", head.version)

    assert await pull(connection, "ana", head) == Delta(head, [], [])
    await add_images(connection, "ana", 1)
    assert len((await pull(connection, "ana", head)).changes) == 1


async def test_too_many_rows_are_a_bulk_reset(connection: asyncpg.Connection) -> None:
    """As many as the limit are pulled; one more is better seeded aside, and the old file is still true."""
    await add_images(connection, "ana", 1)
    cursor = await head_of(connection, "ana")
    async with connection.transaction():
        await add_images(connection, "ana", 5)
    await connection.execute("update images set starred = true where owner_id = 'ana'")  # six rows, each once

    delta = await pull(connection, "ana", cursor, max_changes=6)
    answer = await reset(connection, "ana", cursor, max_changes=5)

    assert len(delta.changes) == 6
    assert (answer.reason, answer.is_false_history) == ("bulk", False)


async def test_false_history_is_said_before_an_old_cursor(connection: asyncpg.Connection) -> None:
    """A cursor that is both wrong and old may have shown what never happened: it must stop serving."""
    await add_images(connection, "ana", 3)
    cursors = await cursors_of(connection, "ana")
    await trim(connection, "ana", 3)

    answer = await reset(connection, "ana", Cursor("1-1", 1, cursors[1].nonce))

    assert (answer.reason, answer.is_false_history) == ("epoch", True)


# --- one snapshot --------------------------------------------------------------------------------------------------


async def test_pull_beside_writers_is_the_state_at_exactly_its_version(database: str) -> None:
    """Two rows that always change together never differ in a replica, and hold the value of the version it names.

    mission: 113
    """
    value_at: dict[int, str] = {}
    pulls, mixed, wrong = 0, [], []
    async with services(database, 6) as [setup, puller, *writers]:
        ids = await add_images(setup, "ana", 2)
        await add_images(setup, "bo", 1)
        async with setup.transaction():
            await setup.execute("update images set title = 'start' where owner_id = 'ana'")
            value_at[(await flush(setup, "ana")).version] = "start"
        cursor, state = await head_of(puller, "ana"), await state_of(puller, "ana")
        names = [("images", str(row)) for row in ids]
        is_done = asyncio.Event()

        async def write(connection: Any, number: int) -> None:
            for n in range(120):
                value = f"{number}/{n}"
                async with connection.transaction():
                    await connection.execute("select pg_advisory_xact_lock(1)")  # else the two updates may deadlock
                    await connection.execute("update images set title = $2 where id = $1", ids[0], value)
                    await insert_job(connection, random.choice(["ana", "bo"]))
                    await connection.execute("update images set title = $2 where id = $1", ids[1], value)
                    value_at[(await flush(connection, "ana")).version] = value

        async def keep_pulling() -> None:
            nonlocal cursor, state, pulls
            while True:
                last = is_done.is_set()
                delta = await pull(puller, "ana", cursor)
                cursor, state = delta.head, apply(state, delta.changes)
                titles = [json.loads(state[name].document)["title"] for name in names]
                pulls += 1
                if titles[0] != titles[1]:
                    mixed.append((cursor.version, titles))
                if titles[0] != value_at.get(cursor.version):
                    wrong.append((cursor.version, titles, value_at.get(cursor.version)))
                if last:
                    return

        pulling = asyncio.create_task(keep_pulling())
        await asyncio.gather(*(write(writer, n) for n, writer in enumerate(writers)))
        is_done.set()
        await pulling

        assert mixed == []
        assert wrong == []
        assert pulls > 50
        assert state == await state_of(setup, "ana")
        await assert_consistent(setup)


async def test_transaction_that_commits_late_is_not_skipped(database: str) -> None:
    """A row written before the pull and committed after it comes with the next pull: versions are in commit order."""
    async with services(database, 3) as [slow, quick, puller]:
        await add_images(quick, "ana", 1)
        slow_transaction = slow.transaction()
        await slow_transaction.start()
        first = await insert_image(slow, "ana")
        second = await insert_image(quick, "ana")
        cursor = await head_of(puller, "ana")
        assert cursor.version == 3

        await slow_transaction.commit()

        delta = await pull(puller, "ana", cursor)
        assert [c.row_id for c in delta.changes] == [str(first)]
        assert str(second) in {row_id for _, row_id in await state_of(puller, "ana")}


async def test_pull_never_waits_for_a_writer(database: str) -> None:
    """Not even for one that holds the counter: a stuck commit delays nobody's reads."""
    async with services(database, 2) as [writer, puller]:
        await add_images(writer, "ana", 1)
        async with writer.transaction():
            await insert_image(writer, "ana")
            await flush(writer, "ana")
            await puller.execute("set lock_timeout = '1s'")

            delta = await pull(puller, "ana", START._replace(epoch=(await head_of(puller, "ana")).epoch))

            assert delta.head.version == 2


# --- what it costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_pull_reads_the_log_by_index_whoever_else_is_in_it(connection: asyncpg.Connection, mode: str) -> None:
    """With 20,000 lines of other users a pull touches only its own, also by a plan made for any user."""
    await add_images(connection, "ana", 3)
    cursor = (await cursors_of(connection, "ana"))[2]
    async with connection.transaction():
        await connection.execute("set local session_replication_role = replica")
        await connection.execute(
            "create temp table line on commit drop as select 'user' || n % 400 as user_id, n / 400 + 1 as version, "
            "gen_random_uuid() as nonce from generate_series(0, 19999) n"
        )
        await connection.execute("insert into change_log (user_id, version, nonce) select * from line")
        await connection.execute("alter table change_row disable trigger sync_stamp")
        await connection.execute(
            "insert into change_row select nonce, user_id, 'images', gen_random_uuid()::text, true from line"
        )
        await connection.execute("alter table change_row enable always trigger sync_stamp")
        await connection.execute(
            "insert into sync_user (user_id, version, nonce) "
            "select distinct on (user_id) user_id, version, nonce from line order by user_id, version desc"
        )
    await connection.execute("analyze change_log, change_row, sync_user, images, jobs")
    await connection.execute(f"set plan_cache_mode = {mode}")

    plan = json.loads(
        await connection.fetchval(f"explain (format json) {_PULL}", "ana", *cursor, 500)
        if mode == "force_custom_plan"
        else await generic_plan(connection, cursor)
    )

    nodes = list(walk(plan[0]["Plan"]))
    scans = {(node["Relation Name"], node["Node Type"]) for node in nodes if "Relation Name" in node}
    for table in ("change_log", "change_row"):
        kinds = {kind for name, kind in scans if name == table}
        assert kinds, f"{table} is not in the plan"
        assert "Seq Scan" not in kinds, scans


async def generic_plan(connection: Any, cursor: Cursor) -> str:
    """The plan of the statement as prepared for any user."""
    await connection.execute(f"prepare pull (text, text, bigint, uuid, bigint) as {_PULL}")
    values = f"'ana', '{cursor.epoch}', {cursor.version}, '{cursor.nonce}', 500"
    plan: str = await connection.fetchval(f"explain (format json) execute pull ({values})")
    return plan


def walk(node: dict[str, Any]) -> Any:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


async def test_pull_carries_every_replicated_kind(connection: asyncpg.Connection) -> None:
    """A row of each kind arrives with its columns."""
    start = await head_of(connection, "ana")
    await add_images(connection, "ana", 1)
    await insert_job(connection, "ana")
    await connection.execute(
        "insert into reference_images (owner_id, object_key, content_type, size_bytes, filename) "
        "values ('ana', 'reference/a', 'image/png', 1, 'a.png')"
    )
    await connection.execute("insert into usage_daily (owner_id, day) values ('ana', '2026-01-01')")

    delta = await pull(connection, "ana", start)

    columns = {change.kind: tuple(json.loads(change.source or "{}")) for change in delta.changes}
    assert columns == REPLICATED


# --- what a listener missed ---------------------------------------------------------------------------------------


async def missed_from(primary: Primary, user: str, version: int, **options: Any) -> Missed:
    """What `user` missed after `version` of the epoch of now."""
    (row,) = await primary.fetch("select sync_epoch_now() as epoch")
    return await missed_since(primary, user, Bookmark(row["epoch"], version), **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(transactions, min_size=2, max_size=8))
async def test_what_was_missed_names_every_version_and_every_kind_that_changed(
    connection: asyncpg.Connection, primary: Primary, history: list[Transaction]
) -> None:
    """For every history of two users and every version of it: what follows, one by one, and no kind is left out."""
    number = next(_numbers)
    users = [f"ana{number}", f"bo{number}"]
    ids = [uuid.uuid4() for _ in range(3)]
    versions: dict[str, dict[int, set[str]]] = {user: {} for user in users}

    for transaction in [*(Transaction([step], [], False) for step in BEGINNING), *history]:
        before = {user: await state_of(connection, user) for user in users}
        await run(connection, transaction, users, ids)
        for user in users:
            now, at = await state_of(connection, user), (await head_of(connection, user)).version
            changed = {key[0] for key in before[user].keys() | now.keys() if before[user].get(key) != now.get(key)}
            if changed or at > max(versions[user], default=0):
                versions[user][at] = changed

    for user in users:
        for known in range(max(versions[user], default=0) + 1):
            missed = await missed_from(primary, user, known)
            assert missed.changes is not None
            assert [version for version, _ in missed.changes] == [v for v in sorted(versions[user]) if v > known]
            for version, kinds in missed.changes:
                assert versions[user][version] <= set(kinds)
                assert kinds == sorted(set(kinds))


async def test_who_missed_nothing_is_told_nothing(connection: asyncpg.Connection, primary: Primary) -> None:
    await add_images(connection, "ana", 1)
    head = await head_of(connection, "ana")

    assert await missed_from(primary, "ana", head.version) == Missed(Bookmark(head.epoch, head.version), [])
    assert await missed_from(primary, "nobody", 0) == Missed(Bookmark(head.epoch, 0), [])


async def test_the_kinds_of_another_user_in_the_same_transaction_are_theirs(
    connection: asyncpg.Connection, primary: Primary
) -> None:
    """A transaction over several users makes a version of each, with what changed for them."""
    await add_images(connection, "ana", 1)
    await connection.execute("insert into users (id) values ('bo')")
    ana, bo = [(await head_of(connection, user)).version for user in ("ana", "bo")]
    async with connection.transaction():
        await connection.execute("update images set starred = true where owner_id = 'ana'")
        await connection.execute(
            "insert into jobs (owner_id, prompt, provider, model) select u, '', 'p', 'm' from unnest(array['bo']) u"
        )

    assert (await missed_from(primary, "ana", ana)).changes == [(ana + 1, ["images"])]
    assert (await missed_from(primary, "bo", bo)).changes == [(bo + 1, ["jobs"])]


@pytest.mark.parametrize("known", ["", "0-0", "1-1", "9999999999999-1"])
async def test_what_happened_in_another_epoch_cannot_be_told(
    connection: asyncpg.Connection, primary: Primary, known: str
) -> None:
    await add_images(connection, "ana", 1)
    head = await head_of(connection, "ana")

    missed = await missed_since(primary, "ana", Bookmark(known, head.version))

    assert missed == Missed(Bookmark(head.epoch, head.version), None)


async def test_a_rotated_epoch_ends_what_can_be_told(connection: asyncpg.Connection, primary: Primary) -> None:
    await add_images(connection, "ana", 1)
    head = await head_of(connection, "ana")

    epoch = await rotate(primary)

    assert await missed_since(primary, "ana", Bookmark(head.epoch, head.version)) == Missed(
        Bookmark(epoch, head.version), None
    )


async def test_what_was_heard_on_another_timeline_cannot_be_told(
    connection: asyncpg.Connection, primary: Primary
) -> None:
    """A failover may have lost the last versions and given their numbers again: a listener has no nonce to tell."""
    await add_images(connection, "ana", 2)
    _, _, known, head = await cursors_of(connection, "ana")
    rotation, _, timeline = head.epoch.partition("-")

    missed = await missed_since(primary, "ana", Bookmark(f"{rotation}-{int(timeline) + 1}", known.version))

    assert missed == Missed(Bookmark(head.epoch, head.version), None)


async def test_a_version_ahead_of_the_head_cannot_be_told(connection: asyncpg.Connection, primary: Primary) -> None:
    await add_images(connection, "ana", 1)
    head = await head_of(connection, "ana")

    for version in (head.version + 1, 10**18 - 1):
        assert (await missed_from(primary, "ana", version)).changes is None


async def test_what_was_trimmed_cannot_be_told_and_what_follows_can(
    connection: asyncpg.Connection, primary: Primary
) -> None:
    """From the horizon on, also when it is the head."""
    await add_images(connection, "ana", 4)
    await trim(connection, "ana", 3)

    answers = [(await missed_from(primary, "ana", version)).changes for version in range(6)]
    assert answers == [None] * 3 + [[(4, ["images"]), (5, ["images"])], [(5, ["images"])], []]

    await trim(connection, "ana", 5)
    assert [(await missed_from(primary, "ana", version)).changes for version in (4, 5)] == [None, []]


async def test_more_than_can_be_told_one_by_one_is_not_told(connection: asyncpg.Connection, primary: Primary) -> None:
    """A hundred versions, or as many as are asked for; the head is told all the same."""
    await add_images(connection, "ana", 101)
    head = (await head_of(connection, "ana")).version

    hundred, more = await missed_from(primary, "ana", head - 100), await missed_from(primary, "ana", head - 101)

    assert hundred.changes is not None
    assert [version for version, _ in hundred.changes] == list(range(head - 99, head + 1))
    assert (more.head.version, more.changes) == (head, None)
    assert (await missed_from(primary, "ana", head - 3, most=2)).changes is None
    assert (await missed_from(primary, "ana", head - 2, most=2)).changes == [
        (head - 1, ["images"]), (head, ["images"])
    ]  # fmt: skip
