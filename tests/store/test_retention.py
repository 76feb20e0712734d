"""Retention: old versions go, the horizon says so, and no cursor is believed that cannot be proved."""

from __future__ import annotations

import asyncio

from store.changes import Cursor, Delta, Reset, changes_since
from store.primary import Primary
from store.retention import trim
from tests.world import add_images


async def cursor_of(primary: Primary, user: str) -> Cursor:
    """The user's head."""
    (row,) = await primary.fetch(
        "select sync_epoch_now() e, version v, nonce::text n from sync_user where user_id = $1", user
    )
    return Cursor(row["e"], row["v"], row["n"])


async def grow(primary: Primary, user: str, versions: int) -> list[Cursor]:
    """One image per version; the cursor after each."""
    cursors = []
    for _ in range(versions):
        async with primary.connection() as connection:
            await add_images(connection, user, 1)
        cursors.append(await cursor_of(primary, user))
    return cursors


async def age(primary: Primary, user: str, up_to: int) -> None:
    """Make the user's versions up to `up_to` look three days old."""
    await primary.fetch(
        "update change_log set at = at - interval '3 days' where user_id = $1 and version <= $2", user, up_to
    )


async def test_the_log_holds_exactly_what_is_above_the_horizon(primary: Primary) -> None:
    """A cursor below the horizon is a reset, on it or above it is not."""
    cursors = await grow(primary, "ana", 6)
    await grow(primary, "bob", 2)
    await age(primary, "ana", cursors[3].version)

    trimmed = await trim(primary, keep_s=48 * 3600)

    assert trimmed.versions == cursors[3].version
    (row,) = await primary.fetch("select horizon, version from sync_user where user_id = 'ana'")
    assert tuple(row) == (cursors[3].version, cursors[5].version)
    log = await primary.fetch("select user_id, version from change_log order by 1, 2")
    assert [r["version"] for r in log if r["user_id"] == "ana"] == [c.version for c in cursors[4:]]
    assert len([r for r in log if r["user_id"] == "bob"]) > 0
    orphans = await primary.fetch(
        "select 1 from change_row r where not exists "
        "(select from change_log l where l.nonce = r.nonce and l.user_id = r.user_id)"
    )
    assert orphans == []
    async with primary.connection() as connection:
        below = await changes_since(connection, "ana", cursors[2])
        assert isinstance(below, Reset)
        assert below.reason == "horizon"
        for n in (3, 4, 5):
            answer = await changes_since(connection, "ana", cursors[n])
            assert isinstance(answer, Delta)
            assert len(answer.changes) == 5 - n
        made_up = await changes_since(connection, "ana", cursors[3]._replace(nonce=cursors[5].nonce))
        assert isinstance(made_up, Reset)
        assert made_up.reason == "nonce"


async def test_an_idle_user_is_never_reset_for_being_idle(primary: Primary) -> None:
    """All of their versions may go: the horizon is then the head itself, and proves it."""
    (*_, head) = await grow(primary, "ana", 3)
    await age(primary, "ana", head.version)

    await trim(primary, keep_s=3600)

    async with primary.connection() as connection:
        assert await changes_since(connection, "ana", head) == Delta(head, [], [])


async def test_trimming_twice_and_at_once_is_as_once(primary: Primary) -> None:
    """Batches skip what another one holds."""
    for n in range(20):
        cursors = await grow(primary, f"user-{n:02}", 3)
        await age(primary, f"user-{n:02}", cursors[1].version)

    done = await asyncio.gather(*(trim(primary, keep_s=3600) for _ in range(4)))
    rest = await trim(primary, keep_s=3600)

    (left,) = await primary.fetch("select count(*) from change_log where at < now() - interval '1 hour'")
    assert left[0] == 0
    assert sum(t.versions for t in (*done, rest)) == 20 * cursors[1].version


async def test_a_writer_is_not_waited_for(primary: Primary) -> None:
    """A user in the middle of a commit is left for the next time."""
    cursors = await grow(primary, "ana", 3)
    await age(primary, "ana", cursors[1].version)
    async with primary.connection() as writer, writer.transaction():
        await writer.fetchval("select version from sync_user where user_id = 'ana' for update")
        assert (await asyncio.wait_for(trim(primary, keep_s=3600), 1.0)).versions == 0

    assert (await trim(primary, keep_s=3600)).versions == cursors[1].version
