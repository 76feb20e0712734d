"""Idempotency keys: what is asked twice is done once."""

from __future__ import annotations

import asyncio

import pytest

from store.errors import KeyInFlight, KeyReused
from store.idempotency import KeptReply, forget_old, once
from store.primary import Connection, Primary


class Work:
    """Something to be done once, which counts how often it was; `gate` holds it up."""

    def __init__(self, connection: Connection, gate: asyncio.Event | None = None) -> None:
        self._connection = connection
        self._gate = gate

    async def __call__(self) -> KeptReply:
        if self._gate is not None:
            await self._gate.wait()
        await self._connection.execute("insert into users (id) values ('ana') on conflict do nothing")
        sql = "insert into jobs (owner_id, prompt, provider, model) values ('ana', 'x', 'p', 'm') returning id"
        row_id = await self._connection.fetchval(sql)
        return KeptReply(202, f"made {row_id}".encode(), f"/{row_id}")


async def ask(
    primary: Primary, key: str = "k", hash: bytes = b"1", gate: asyncio.Event | None = None
) -> tuple[KeptReply, bool]:
    async def work(connection: Connection) -> tuple[KeptReply, bool]:
        return await once(connection, "ana", key, hash, Work(connection, gate))

    return (await primary.write("ana", work))[0]


async def jobs(primary: Primary) -> int:
    return int((await primary.fetch("select count(*) from jobs"))[0][0])


async def test_the_second_time_is_the_first_ones_answer(primary: Primary) -> None:
    first, again, other = [await ask(primary, key) for key in ("k", "k", "other")]

    assert (first[1], again[1], other[1]) == (False, True, False)
    assert first[0] == again[0] != other[0]
    assert await jobs(primary) == 2


async def test_key_of_another_request_is_refused(primary: Primary) -> None:
    await ask(primary)
    with pytest.raises(KeyReused):
        await ask(primary, hash=b"2")
    assert await jobs(primary) == 1


async def test_who_comes_meanwhile_does_not_wait(primary: Primary) -> None:
    """And gets the answer when it is there."""
    gate = asyncio.Event()
    first = asyncio.create_task(ask(primary, gate=gate))

    async def is_refused() -> bool:
        with pytest.raises(KeyInFlight):
            await ask(primary, hash=b"2")
        return True

    async with asyncio.timeout(10):
        while not (await primary.fetch("select 1 from pg_locks where locktype = 'advisory'")):
            await asyncio.sleep(0.01)
    assert await is_refused()
    gate.set()
    assert (await ask(primary, "elsewhere"))[1] is False
    made = await first
    assert await ask(primary) == (made[0], True)


async def test_fifty_at_once_do_it_once(primary: Primary) -> None:
    replies = await asyncio.gather(*(ask(primary) for _ in range(50)), return_exceptions=True)

    assert await jobs(primary) == 1
    answers = [reply for reply in replies if not isinstance(reply, BaseException)]
    assert len({reply.body for reply, _ in answers}) == 1
    assert [is_replayed for _, is_replayed in answers].count(False) == 1
    assert {type(reply) for reply in replies if isinstance(reply, BaseException)} <= {KeyInFlight}


async def test_what_fails_leaves_its_key_free(primary: Primary) -> None:
    async def broken(connection: Connection) -> None:
        async def work() -> KeptReply:
            await Work(connection)()
            raise ValueError

        await once(connection, "ana", "k", b"1", work)

    with pytest.raises(ValueError):
        await primary.write("ana", broken)
    assert await jobs(primary) == 0
    assert (await ask(primary, hash=b"2"))[1] is False


async def test_answers_are_kept_for_a_day(primary: Primary) -> None:
    """An older one is not repeated, whether it was deleted yet or not."""
    for key in ("old", "new"):
        await ask(primary, key)
    await primary.fetch(
        "update idempotency_keys set created_at = now() - interval '25 h' where key = 'old' returning 1"
    )

    assert (await ask(primary, "old", b"2"))[1] is False
    await primary.fetch(
        "update idempotency_keys set created_at = now() - interval '25 h' where key = 'old' returning 1"
    )
    assert await forget_old(primary) == 1
    assert [row[0] for row in await primary.fetch("select key from idempotency_keys")] == ["new"]
    assert (await ask(primary, "new"))[1] is True
