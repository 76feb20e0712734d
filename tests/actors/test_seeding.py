"""The queue of seeds of a host, the turns of all hosts at one primary, and who may seed whom."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import host as host_module
from actors import seeding
from actors.client import ReplicaClient
from actors.errors import Overloaded, Retryable, Seeding
from actors.host import ReplicaHost
from actors.metrics import HostMetrics
from actors.placement import first
from actors.schema import APPLICATION_ID
from actors.seeding import SeedQueue
from store import hosts
from store.changes import START, Reset
from store.primary import Primary
from tests.actors.fleet import ALL, FakeClock, Fleet, History, add_image, held, shown
from tests.world import add_images, ended, until


class Works:
    """Seeds that end when the test says so."""

    def __init__(self, slots: int) -> None:
        self.clock = FakeClock()
        self.metrics = HostMetrics()
        self.queue = SeedQueue(self._work, slots=slots, clock=self.clock, metrics=self.metrics)
        self.begun: list[str] = []
        self.running: dict[str, asyncio.Future[None]] = {}
        self.most = 0

    async def _work(self, user: str) -> None:
        assert user not in self.running, f"{user} is seeded twice at once"
        self.begun.append(user)
        self.running[user] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.running))
        try:
            await self.running[user]
        finally:
            del self.running[user]

    def end(self, user: str, error: Exception | None = None) -> None:
        if error is None:
            self.running[user].set_result(None)
        else:
            self.running[user].set_exception(error)

    async def end_all(self) -> None:
        while len(self.queue):
            for future in list(self.running.values()):
                if not future.done():
                    future.set_result(None)
            await asyncio.sleep(0)


async def turn(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


# --- the queue of one host --------------------------------------------------------------------------------------


async def test_those_whom_a_reader_waits_for_go_first() -> None:
    """Background seeds come when nobody waits, each in the order of their coming."""
    works = Works(slots=1)
    works.queue.start("running", is_wanted=True)
    for user in ("back-1", "back-2"):
        works.queue.start(user, is_wanted=False)
    for user in ("read-1", "read-2"):
        works.queue.start(user, is_wanted=True)

    await works.end_all()

    assert works.begun == ["running", "read-1", "read-2", "back-1", "back-2"]


async def test_a_reader_moves_a_background_seed_forward() -> None:
    """It keeps its one place: it is made once."""
    works = Works(slots=1)
    for user in ("running", "back-1", "back-2", "back-3"):
        works.queue.start(user, is_wanted=False)

    works.queue.start("back-3", is_wanted=True)
    works.queue.start("back-3", is_wanted=True)
    works.queue.start("back-2", is_wanted=False)
    await works.end_all()

    assert works.begun == ["running", "back-3", "back-1", "back-2"]


async def test_a_seed_is_in_the_queue_until_it_has_ended() -> None:
    """And whoever comes meanwhile joins it; the time that it waited is counted."""
    works = Works(slots=1)
    works.queue.start("ana", is_wanted=True)
    works.queue.start("bob", is_wanted=True)
    await turn()
    works.queue.start("ana", is_wanted=True)
    waiting = asyncio.create_task(works.queue.wait("ana"))
    assert ("ana" in works.queue, len(works.queue), works.queue.waiting_count) == (True, 2, 1)
    works.clock.move(3)

    works.end("ana")
    await waiting

    assert "ana" not in works.queue
    await works.queue.wait("ana")
    await until(lambda: works.begun == ["ana", "bob"])
    assert works.metrics.seed_wait_seconds == 3.0
    await works.end_all()


async def test_a_failed_seed_pauses_its_user_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slot is free at once; whoever waits is told why; the next reader starts it again after the pause."""
    monkeypatch.setattr(seeding, "PAUSE_S", 0.2)
    works = Works(slots=1)
    works.queue.start("ana", is_wanted=True)
    works.queue.start("bob", is_wanted=True)
    await turn()
    waiting = asyncio.create_task(works.queue.wait("ana"))
    await turn()

    works.end("ana", Retryable("the disk is gone"))
    await turn()

    assert list(works.running) == ["bob"]
    works.end("bob")
    await turn()
    assert "ana" in works.queue
    works.queue.start("ana", is_wanted=True)
    await turn()
    assert works.begun == ["ana", "bob"]
    with pytest.raises(Retryable, match="the disk is gone"):
        await waiting
    assert works.metrics.seed_failures == 1
    works.queue.start("ana", is_wanted=True)
    await turn()
    assert works.begun == ["ana", "bob", "ana"]
    await works.end_all()


async def test_the_queue_refuses_at_its_bound_and_lets_join_who_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room again as soon as one has ended."""
    monkeypatch.setattr(seeding, "MAX_WAITING", 2)
    works = Works(slots=1)
    works.queue.start("ana", is_wanted=True)
    works.queue.start("bob", is_wanted=False)

    with pytest.raises(Overloaded, match="2 replicas wait to be made"):
        works.queue.start("cyd", is_wanted=True)
    works.queue.start("bob", is_wanted=True)
    await turn()
    works.end("ana")
    await until(lambda: "ana" not in works.queue)
    works.queue.start("cyd", is_wanted=True)

    assert works.metrics.overloads == 1
    await works.end_all()
    assert works.begun == ["ana", "bob", "cyd"]


async def test_a_closed_queue_has_ended_its_seeds_and_takes_no_more() -> None:
    """A pull that was under way may still find that a replica has to be made anew."""
    works = Works(slots=1)
    works.queue.start("ana", is_wanted=True)
    works.queue.start("bob", is_wanted=True)
    await turn()

    await works.queue.close()
    assert (works.running, len(works.queue)) == ({}, 0)

    with pytest.raises(Retryable, match="stopping"):
        works.queue.start("cyd", is_wanted=False)
    await turn()
    assert works.begun == ["ana"]


@given(
    st.lists(st.tuples(st.sampled_from(["read", "background", "end", "turn"]), st.integers(0, 6)), max_size=60),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_seed_is_made_once_and_never_more_than_there_are_slots(steps: list[tuple[str, int]], slots: int) -> None:
    """Whatever comes and ends in which order ever."""

    async def scenario() -> None:
        works = Works(slots)
        asked = 0
        for what, n in steps:
            user = f"user-{n}"
            if what in ("read", "background"):
                asked += user not in works.queue
                works.queue.start(user, is_wanted=what == "read")
            elif what == "end" and user in works.running and not works.running[user].done():
                works.end(user)
            elif what == "turn":
                await turn()
        await works.end_all()
        await turn()
        assert works.most <= slots
        assert len(works.begun) == asked
        works.queue.start("last", is_wanted=False)
        await turn()
        assert works.begun[-1] == "last"
        await works.end_all()

    asyncio.run(scenario())


# --- replicas that are made anew --------------------------------------------------------------------------------


async def test_a_replica_that_waits_to_be_made_anew_counts_as_one_reset(
    database: str, history: History, tmp_path: Path
) -> None:
    """However many sweeps find it behind meanwhile; it goes on answering."""
    fleet = await Fleet(tmp_path / "replicas", database, all_seeds=1).open()
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    await history.write(["ana"], lambda c: add_images(c, "ana", 501))

    async with history.primary.connection() as other, other.transaction():
        await other.execute("select pg_advisory_xact_lock($1, 1)", APPLICATION_ID)  # another host copies
        active = fleet.replicas.life.active["ana"]
        for _ in range(4):
            await fleet.replicas.sweep()
            await until(lambda: not active.is_in_use)
        assert fleet.replicas.seeding_count == 1
        assert len(shown(await fleet.read("ana"))) == 1

    await until(lambda: fleet.replicas.seeding_count == 0)
    assert fleet.metrics.resets == {"bulk": 1}
    assert fleet.metrics.seeds == 2
    await fleet.close()


async def test_a_pull_that_ends_after_the_close_starts_no_seed(fleet: Fleet, history: History) -> None:
    """Nothing of the host is left running."""
    before = asyncio.all_tasks()
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    active = fleet.replicas.life.active["ana"]
    await history.write(["ana"], lambda c: add_images(c, "ana", 501))

    # As when its answer comes while the seeds are being ended.
    await fleet.replicas.life.close_all()
    fleet.replicas.life.reset(active, Reset(START, "bulk"))
    await turn()

    assert fleet.replicas.seeding_count == 0
    await ended(asyncio.all_tasks() - before)


# --- the turns of all hosts -------------------------------------------------------------------------------------


async def turns_taken(primary: Primary) -> int:
    """How many seeds copy from this database now."""
    rows = await primary.fetch(
        "select count(*) from pg_locks where locktype = 'advisory' and classid = $1 and granted "
        "and database = (select oid from pg_database where datname = current_database())",
        APPLICATION_ID,
    )
    return int(rows[0][0])


async def test_all_hosts_together_copy_only_so_many_at_once(database: str, primary: Primary, tmp_path: Path) -> None:
    """The others wait for their turn, and all are made.

    mission: 129
    """
    fleets = [await Fleet(tmp_path / f"host-{n}", database, all_seeds=3).open() for n in range(3)]
    async with held(primary, "images") as hold:
        for n in range(12):
            with pytest.raises(Seeding):
                await fleets[n % 3].replicas.read(f"user-{n}", ALL, None)

        async def three_copy() -> bool:
            return await hold.waiting() == 3

        await until(three_copy)
        assert sum(fleet.replicas.seeding_count for fleet in fleets) == 12
        await asyncio.sleep(0.2)  # three more have free slots at their hosts, and look for a turn every 50 ms
        assert await hold.waiting() == await turns_taken(primary) == 3

    most = 0
    while any(fleet.replicas.seeding_count for fleet in fleets):
        most = max(most, await turns_taken(primary))
    assert most <= 3
    assert [fleet.metrics.seeds for fleet in fleets] == [4, 4, 4]
    assert await turns_taken(primary) == 0
    for fleet in fleets:
        await fleet.close()


_SEEDER = """
import asyncio, sys
from pathlib import Path
from actors.seed import seed
from store.documents import Documents
from store.primary import Primary

async def main():
    primary = await Primary.open(sys.argv[1], name="to be killed", size=1)
    await seed(primary, "bob", Path(sys.argv[2]), Documents(""), synced_at=0.0, at_once=1)

asyncio.run(main())
"""


async def test_a_killed_host_gives_its_turn_back(database: str, primary: Primary, tmp_path: Path) -> None:
    """Postgres notices, and the next one copies."""
    fleet = await Fleet(tmp_path / "replicas", database, all_seeds=1).open()
    async with held(primary, "images") as hold:
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", _SEEDER, database, str(tmp_path / "x.db"))
        await until(hold.waiting, timeout_s=30)
        with pytest.raises(Seeding):
            await fleet.replicas.read("ana", ALL, None)
        await until(fleet.staged)
        assert await turns_taken(primary) == 1
        other.send_signal(signal.SIGKILL)
        await other.wait()

    await until(lambda: fleet.metrics.seeds == 1, timeout_s=20)
    await fleet.close()


# --- who may seed -----------------------------------------------------------------------------------------------

StartHost = Callable[..., Awaitable[ReplicaHost]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty beats and sweeps a second."""
    monkeypatch.setattr(host_module, "BEAT_S", 0.05)
    monkeypatch.setattr(host_module, "SWEEP_S", 0.05)


def users_of(host: str, count: int, among: tuple[str, ...] = ("test:0", "test:1")) -> list[str]:
    """Users whose replicas `host` holds while both are there."""
    users = (f"user-{n}" for n in range(10_000))
    return [user for user in users if first(user, among) == host][:count]


async def beat_was(primary: Primary, host: str, seconds: float) -> None:
    """`host` was last heard of so long before the newest."""
    await primary.fetch(
        "update hosts set heartbeat = clock_timestamp() - make_interval(secs => $2) where id = $1 returning 1",
        host,
        seconds,
    )


async def test_another_host_seeds_only_after_the_first_has_been_gone_for_ten_seconds(
    start_host: StartHost, primary: Primary, quick: None
) -> None:
    """Until then the primary answers: a restart must not make anybody anew. mission: 129"""
    (ana,) = users_of("test:1", 1)
    (bob,) = users_of("test:0", 1)
    host = await start_host(0)
    await hosts.register(primary, "test:1", node="test", build="test", capacity=1)
    life, client = host._replicas.life, ReplicaClient(lambda: hosts.list_hosts(primary))
    await client.start()

    async def outcome(user: str) -> str:
        try:
            await client.read(user, ALL, None, timeout_s=5)
        except Seeding:
            return "seeding"
        except Retryable as error:
            return str(error)
        return "answered"

    for away_s in (0.0, 4.0, 6.0, 9.0):
        await beat_was(primary, "test:1", away_s)
        await looked_again(host)
        assert await outcome(ana) == f"another host has the replica of {ana}, and was here a moment ago", away_s
        assert ana not in life.seeds
    await until(lambda: _is(outcome(bob), "answered"))

    await beat_was(primary, "test:1", 10.5)
    await looked_again(host)
    await until(lambda: _is(outcome(ana), "answered"))
    await client.close()


async def looked_again(host: ReplicaHost) -> None:
    """Returns when the host has read the membership once more."""
    host._members = ()
    await until(lambda: host._members)


async def _is(word: Awaitable[str], expected: str) -> bool:
    return await word == expected


async def test_a_host_that_comes_back_within_its_time_makes_nobody_anew(
    start_host: StartHost, primary: Primary, quick: None
) -> None:
    """It opens the files that it left; the other one has touched none of its users."""
    users = [*users_of("test:0", 3), *users_of("test:1", 3)]
    one, two = await start_host(0), await start_host(1)
    client = ReplicaClient(lambda: hosts.list_hosts(primary))
    await client.start()
    await until(lambda: _count(client, 2))
    await until(lambda: {"test:0", "test:1"} == {*one._members} == {*two._members})
    for user in users:
        await client.sync(user, timeout_s=10)
    assert two._metrics.seeds >= 3

    await two.stop()
    for user in users:
        try:
            await client.read(user, ALL, None, timeout_s=5)
        except Retryable:
            pass  # the primary answers; a seed would not be one
    again = await start_host(1)
    await until(lambda: _count(client, 2))
    for user in users:
        await until(lambda user=user: _synced(client, user))

    own = f"~{again.id}"
    assert one._metrics.seeds == 3 + (f"~{one.id}" in one._replicas.life.active)
    assert again._metrics.seeds == 0, f"{own} and {users[3:]} had files"
    await client.close()


async def _count(client: ReplicaClient, expected: int) -> bool:
    return len(await client.probe()) == expected


async def _synced(client: ReplicaClient, user: str) -> bool:
    try:
        await client.sync(user, timeout_s=5)
    except Retryable:
        return False
    return True
