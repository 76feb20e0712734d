"""Storage: bytes are reserved, settled, released and freed, and never more than the plan allows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from store import storage
from store.errors import NotFound, ReservationEnded, StorageQuotaExceeded
from store.primary import Connection, Primary
from store.storage import Limits, Reservation
from store.users import ensure_user

LIMITS = Limits(1000, 5000, 9000)


@pytest.fixture
async def ana(primary: Primary) -> Primary:
    """The primary, with the user ana."""
    await primary.write("ana", lambda connection: ensure_user(connection, "ana"))
    return primary


@pytest.fixture(autouse=True, params=["alone", "in a transaction"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to reserve keep all of the below."""
    _ways.append(request.param)
    yield
    _ways.clear()


_ways: list[str] = []


async def reserve(primary: Primary, size_bytes: int, *, lifetime_s: float = 60.0) -> Reservation:
    if _ways == ["alone"]:
        return await storage.reserve_alone(primary, "ana", size_bytes, LIMITS, lifetime_s=lifetime_s)
    made, _ = await primary.write("ana", lambda c: storage.reserve(c, "ana", size_bytes, LIMITS, lifetime_s=lifetime_s))
    return made


async def account(primary: Primary) -> tuple[int, int]:
    """Bytes used and reserved. What is reserved is what the reservations say, at every moment."""
    (row,) = await primary.fetch(
        "select storage_used_bytes as used, storage_reserved_bytes as reserved, (select coalesce(sum(size_bytes), 0) "
        "from storage_reservations r where r.owner_id = a.owner_id) as held from accounts a where owner_id = 'ana'"
    )
    assert row["reserved"] == row["held"]
    return row["used"], row["reserved"]


async def test_bytes_are_reserved_then_used_then_free(ana: Primary) -> None:
    """mission: 38, 77, 215"""
    reservation = await reserve(ana, 600)
    assert await account(ana) == (0, 600)

    await ana.write("ana", lambda c: storage.settle(c, reservation))
    assert await account(ana) == (600, 0)

    await ana.write("ana", lambda c: storage.free(c, "ana", 600))
    assert await account(ana) == (0, 0)


async def test_reservation_is_no_version_and_use_is_one(ana: Primary) -> None:
    """Readers hear of what is kept, not of what is under way."""
    sql = "select version from sync_user where user_id = 'ana'"
    (before,) = await ana.fetch(sql)

    kept, given_back = await reserve(ana, 1), await reserve(ana, 2)
    await ana.write("ana", lambda c: storage.release(c, given_back))
    assert await ana.fetch(sql) == [before]

    await ana.write("ana", lambda c: storage.settle(c, kept))
    assert (await ana.fetch(sql))[0]["version"] == before["version"] + 1


@pytest.mark.parametrize(("plan", "limit"), [("free", 1000), ("pro", 5000), ("enterprise", 9000)])
async def test_plan_decides_how_much(ana: Primary, plan: str, limit: int) -> None:
    """To the byte, with the numbers in the error. mission: 74, 75, 76, 77"""
    await ana.write("ana", lambda c: c.execute("update accounts set plan = $1", plan))
    used = await reserve(ana, limit - 300)
    await ana.write("ana", lambda c: storage.settle(c, used))
    await reserve(ana, 200)

    with pytest.raises(StorageQuotaExceeded) as refused:
        await reserve(ana, 101)

    error = refused.value
    assert (error.used_bytes, error.reserved_bytes, error.limit_bytes) == (limit - 300, 200, limit)
    assert str(error) == f"101 bytes more do not fit: {limit - 300} are used and 200 reserved of {limit}"
    assert await account(ana) == (limit - 300, 200)
    await reserve(ana, 100)


async def test_fifty_at_once_never_go_over(ana: Primary) -> None:
    """Of 50 with room for 10, 10 get it, whatever else ends at the same time. mission: 77"""
    await asyncio.gather(*(reserve(ana, 100, lifetime_s=0.0) for _ in range(10)))

    results = await asyncio.gather(*(reserve(ana, 100) for _ in range(50)), return_exceptions=True)

    held = [result for result in results if isinstance(result, Reservation)]
    assert len(held) == 10
    assert {type(result) for result in results} == {Reservation, StorageQuotaExceeded}
    assert await account(ana) == (0, 1000)

    async def end(number: int, reservation: Reservation) -> None:
        ending = storage.settle if number % 2 else storage.release
        await ana.write("ana", lambda c: ending(c, reservation))

    again = asyncio.gather(*(reserve(ana, 100) for _ in range(50)), return_exceptions=True)
    await asyncio.gather(*(end(number, reservation) for number, reservation in enumerate(held)))
    more = [result for result in await again if isinstance(result, Reservation)]
    assert len(more) <= 5
    used, reserved = await account(ana)
    assert (used, reserved) == (500, 100 * len(more))


async def test_what_a_crash_left_reserved_is_taken_back_when_it_is_needed(ana: Primary) -> None:
    """Nothing has to run for that but the next upload. mission: 77"""
    left = await reserve(ana, 900, lifetime_s=0.0)
    kept = await reserve(ana, 50)

    taken = await reserve(ana, 950)

    assert await account(ana) == (0, 1000)
    for reservation in (kept, taken):
        await ana.write("ana", lambda c, r=reservation: storage.settle(c, r))
    with pytest.raises(ReservationEnded, match=r"^the room for 900 bytes was not used in time$"):
        await ana.write("ana", lambda c: storage.settle(c, left))
    assert await account(ana) == (1000, 0)


async def test_reservation_ends_once(ana: Primary) -> None:
    """A release after a commit of which nobody knows whether it happened is safe."""
    reservation = await reserve(ana, 100)
    await ana.write("ana", lambda c: storage.settle(c, reservation))

    await ana.write("ana", lambda c: storage.release(c, reservation))
    with pytest.raises(ReservationEnded):
        await ana.write("ana", lambda c: storage.settle(c, reservation))

    assert await account(ana) == (100, 0)


async def test_rollback_leaves_the_reservation(ana: Primary) -> None:
    """So that it can be settled again, or released."""
    reservation = await reserve(ana, 100)

    async def fails(connection: Connection) -> None:
        await storage.settle(connection, reservation)
        raise KeyError

    with pytest.raises(KeyError):
        await ana.write("ana", fails)

    assert await account(ana) == (0, 100)
    await ana.write("ana", lambda c: storage.release(c, reservation))
    assert await account(ana) == (0, 0)


async def test_what_was_not_counted_frees_nothing(ana: Primary) -> None:
    """Rows of plain SQL are not counted; deleting them makes no room that is not there."""
    await ana.write("ana", lambda c: storage.add(c, "ana", 30))

    await ana.write("ana", lambda c: storage.free(c, "ana", 100))

    assert await account(ana) == (0, 0)


async def test_somebody_elses_reservation_is_not_theirs(ana: Primary) -> None:
    """An id alone ends nothing."""
    reservation = await reserve(ana, 100)
    await ana.write("bob", lambda connection: ensure_user(connection, "bob"))
    stolen = reservation._replace(owner_id="bob")

    await ana.write("bob", lambda c: storage.release(c, stolen))
    with pytest.raises(ReservationEnded):
        await ana.write("bob", lambda c: storage.settle(c, stolen))

    assert await account(ana) == (0, 100)


async def test_first_reservation_makes_the_user(primary: Primary) -> None:
    """As every first write does."""
    await reserve(primary, 100)

    assert await account(primary) == (0, 100)


async def test_alone_does_not_wait_for_the_disk_and_the_next_write_does(ana: Primary) -> None:
    """A crash may give a reservation back; whoever commits on the same connection afterwards is durable."""
    wanted, ask = ("ana", *LIMITS, 1, 60.0), "show synchronous_commit"
    async with ana.connection() as connection:
        async with connection.transaction():
            await connection.fetch(storage._RESERVE_ALONE, *wanted)
            assert await connection.fetchval(ask) == "off"
        assert await connection.fetchval(ask) == "on"
        async with connection.transaction():
            await connection.fetch(storage._RESERVE, *wanted)
            assert await connection.fetchval(ask) == "on"


async def test_erased_user_gets_no_room(ana: Primary) -> None:
    """Not by the short way either."""
    await ana.write("ana", lambda c: c.execute("insert into erased_users (user_id) values ('ana')"))

    with pytest.raises(NotFound, match="was erased"):
        await reserve(ana, 1)

    assert await account(ana) == (0, 0)
