"""Slots: what a gateway finds in shared memory, whatever its host did meanwhile."""

from __future__ import annotations

import asyncio
import resource
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import sync as sync_module
from actors.active import Active
from actors.metrics import HostMetrics
from actors.slots import FIRST, VERIFIED_AT, Slots, open_slots
from actors.sync import Sync
from store.changes import Cursor, Delta, Reset
from store.documents import Documents
from store.gallery import GalleryQuery, encode_query
from store.primary import Primary
from tests.actors.fleet import FakeClock, Fleet, add_image, shown

EPOCH = "1700000000000-1"


class Copy:
    """As much of a replica as a slot is concerned with: where it is."""

    def __init__(self, user: str, cursor: Cursor) -> None:
        self.user = user
        self.cursor = cursor
        self.synced_at = 0.0

    def apply(self, head: Cursor, changes: object) -> None:
        self.cursor = head


def at(version: int) -> Cursor:
    return Cursor(EPOCH, version, f"nonce {version}")


def an_active(*, verified_at: float = 0.0, version: int = 1, user: str = "ana", must_pull: bool = False) -> Active:
    made = Active(cast(Any, Copy(user, at(version))), verified_at=verified_at, used_at=0.0)
    made.must_pull = must_pull
    return made


# --- the segment ------------------------------------------------------------------------------------------------------


def test_a_segment_is_for_its_owner_alone_and_readers_cannot_write(tmp_path: Path) -> None:
    """A gateway sees what its host writes, and nothing else can be done with it."""
    slots = Slots.create(tmp_path / "a.slots", 3)
    words = open_slots(tmp_path / "a.slots")
    assert words is not None

    slot, stamp = slots.of(an_active())
    slots.swept(12.5)

    assert stat.S_IMODE((tmp_path / "a.slots").stat().st_mode) == 0o600
    assert slot >= FIRST
    assert words[slot] == stamp > 0
    assert words[VERIFIED_AT] == 12_500_000_000
    with pytest.raises(TypeError):
        words[slot] = 1
    slots.close()


def test_a_new_segment_takes_the_place_of_one_that_was_left(tmp_path: Path) -> None:
    """Whoever has the old one keeps it; the file is a new one."""
    path = tmp_path / "a.slots"
    path.write_bytes(b"left by somebody")
    path.chmod(0o644)

    slots = Slots.create(path, 1)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_slots(path) is not None
    slots.close()


@contextmanager
def most_bytes_of_a_file(most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_for_the_segment_a_host_has_slots_that_nobody_sees(tmp_path: Path) -> None:
    """It serves as ever; no half of a file stays for a gateway to find."""
    with most_bytes_of_a_file(4096):
        slots = Slots.create(tmp_path / "a.slots", 10_000)

    assert slots.of(an_active())[1] > 0
    assert list(tmp_path.iterdir()) == []
    assert open_slots(tmp_path / "a.slots") is None
    slots.close()


def test_without_a_place_for_the_segment_a_host_has_slots_that_nobody_sees(tmp_path: Path) -> None:
    """A disk that is full may have no room for a file's name either."""
    slots = Slots.create(tmp_path / "nowhere" / "a.slots", 2)

    assert slots.of(an_active())[1] > 0


@pytest.mark.parametrize(
    "content", [None, b"", b"short", b"\0" * 8 * FIRST, b"\0" * 8 * (FIRST + 1), b"\xff" * 8 * (FIRST + 1), b"\0" * 99]
)
def test_what_is_no_segment_is_not_read(tmp_path: Path, content: bytes | None) -> None:
    """Not there, empty, cut short, of another make, or no whole words."""
    if content is not None:
        (tmp_path / "a.slots").write_bytes(content)

    assert open_slots(tmp_path / "a.slots") is None


def test_a_closed_segment_says_nothing_new(tmp_path: Path) -> None:
    """Its readers keep what there was, until it is too old for them; the host may go on without harm."""
    active = an_active(verified_at=1.0)
    slots = Slots.create(tmp_path / "a.slots", 2)
    slot, stamp = slots.of(active)
    words = open_slots(tmp_path / "a.slots")
    assert words is not None

    slots.close()
    slots.stamp(active)
    slots.swept(99.0)
    slots.release(active)

    assert (words[slot], words[VERIFIED_AT]) == (stamp, 0)


# --- slots and stamps -------------------------------------------------------------------------------------------------


def test_a_slot_that_is_used_again_never_has_an_old_stamp() -> None:
    """Whoever was given the slot before finds another stamp, or none."""
    slots = Slots.create(None, 1)
    seen = set()

    for n in range(50):
        active = an_active()
        slot, stamp = slots.of(active)
        assert slot == FIRST
        slots.stamp(active)
        seen |= {stamp, slots.of(active)[1]}
        slots.release(active)
        assert active.slot == 0
        assert len(seen) == 2 * (n + 1)


def test_a_slot_of_a_replica_that_closed_is_empty(tmp_path: Path) -> None:
    """Nobody is served from what a host gave up, and twice given up is once."""
    slots = Slots.create(tmp_path / "a.slots", 2)
    words = open_slots(tmp_path / "a.slots")
    assert words is not None
    active = an_active()
    slot, _ = slots.of(active)

    slots.release(active)
    slots.release(active)

    assert words[slot] == 0
    assert {slots.of(an_active())[0] for _ in range(3)} == {0, FIRST, FIRST + 1}
    slots.close()


def test_without_a_free_slot_a_replica_has_none_until_another_closes() -> None:
    """It is read over the wire meanwhile, and nothing that is done to it harms anybody."""
    slots = Slots.create(None, 1)
    first, second = an_active(), an_active()
    assert slots.of(first)[1]

    assert slots.of(second) == (0, 0)
    for change in (slots.stamp, slots.verify, slots.clear, slots.release):
        change(second)
    assert slots.of(first)[1]
    slots.release(first)
    assert slots.of(second)[1]


def test_a_replica_of_which_nothing_is_known_has_no_stamp() -> None:
    """It was opened a moment ago, or was last at head before the time that the segment promises."""
    slots = Slots.create(None, 3)
    slots.swept(10.0)

    assert slots.of(an_active(verified_at=11.0, must_pull=True)) == (0, 0)
    assert slots.of(an_active(verified_at=9.9)) == (0, 0)
    assert slots.of(an_active(verified_at=10.0))[1] > 0


def test_an_answer_from_before_the_sweep_gives_no_stamp() -> None:
    """A pull was sent, then a sweep, whose answer came first: the pull does not know what the sweep's time promises."""
    slots = Slots.create(None, 1)
    active = an_active(verified_at=9.5)
    assert slots.of(active)[1]
    slots.clear(active)
    slots.swept(10.0)

    slots.stamp(active)
    assert slots.of(active) == (0, 0)
    slots.verify(active)
    assert slots.of(active) == (0, 0)
    active.verified_at = 10.0
    slots.verify(active)

    assert slots.of(active)[1]


def test_the_time_of_the_sweep_never_goes_back(tmp_path: Path) -> None:
    slots = Slots.create(tmp_path / "a.slots", 1)
    words = open_slots(tmp_path / "a.slots")
    assert words is not None

    slots.swept(10.0)
    slots.swept(9.0)

    assert words[VERIFIED_AT] == 10_000_000_000
    slots.close()


# --- with the sync that writes them -----------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What a gateway was given: the copy's content, and the slot and stamp that say for how long it is true."""

    copy: Active
    version: int
    slot: int
    stamp: int


USERS = ("ana", "ben")


class Model:
    """A primary whose answers are on their way until they are let go, a real `Sync` before it, and a gateway that
    keeps everything. One second passes with each step."""

    def __init__(self, slots: Slots) -> None:
        self.clock = FakeClock()
        self.slots = slots
        self.actives: dict[str, Active] = {}
        self.heads = dict.fromkeys(USERS, 1)
        #: (user, version) → when the next version was committed.
        self.ended: dict[tuple[str, int], float] = {}
        self.resets: set[str] = set()
        self.on_the_way: list[asyncio.Future[None]] = []
        self.kept: list[Kept] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.sync = Sync(
            cast(Any, self),
            Documents(""),
            clock=self.clock,
            metrics=HostMetrics(),
            slots=slots,
            on_reset=lambda active, reset: self.close(active) if reset.is_false_history else None,
            on_broken=lambda active, error: None,
            on_applied=lambda active, before, kinds: None,
            concurrency=4,
        )

    # the primary

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        yield None

    async def _carried(self) -> None:
        self.on_the_way.append(asyncio.get_running_loop().create_future())
        await self.on_the_way[-1]

    async def changes_since(self, _: None, user: str, cursor: Cursor) -> Delta | Reset:
        head, is_reset = at(self.heads[user]), user in self.resets
        self.resets.discard(user)
        await self._carried()
        return Reset(head, "epoch") if is_reset else Delta(head, [], [])

    async def heads_of(self, _: None, users: list[str]) -> tuple[str, dict[str, Cursor]]:
        heads = {user: at(self.heads[user]) for user in users}
        await self._carried()
        return EPOCH, heads

    # what may happen

    async def step(self, name: str, n: int) -> None:
        self.clock.move(1.0)
        user = USERS[n % len(USERS)]
        active = self.actives.get(user)
        if name == "write":
            self.ended[user, self.heads[user]] = self.clock.now
            self.heads[user] += 1
        elif name == "reset":
            self.resets.add(user)
        elif name == "sweep":
            self.tasks.append(asyncio.ensure_future(self.sync.sweep(self.actives, [])))
        elif name == "arrive" and self.on_the_way:
            self.on_the_way.pop(n % len(self.on_the_way)).set_result(None)
        elif name == "open" and active is None:
            self.open(user, is_behind=n >= len(USERS))
        elif name == "give up" and active is not None:
            active.must_pull = False  # as a reader does whom the primary did not answer in time
        elif name == "pull" and active is not None:
            self.tasks.append(self.sync.pull_soon(active))
        elif name == "look" and active is not None:
            self.tasks.append(asyncio.ensure_future(self.sync.verify(active)))
        elif name == "close" and active is not None:
            self.close(active)
        elif name == "read" and active is not None and not active.must_pull:
            slot, stamp = self.slots.of(active)
            if slot:
                self.kept.append(Kept(active, active.replica.cursor.version, slot, stamp))
        for _ in range(12):
            await asyncio.sleep(0)

    def open(self, user: str, *, is_behind: bool) -> None:
        """A file that slept knows when it was last at head."""
        version, verified_at = self.heads[user], self.clock.now
        if is_behind and version > 1:
            version -= 1
            verified_at = self.ended[user, version] - 0.5
        self.actives[user] = an_active(verified_at=verified_at, version=version, user=user, must_pull=True)

    def close(self, active: Active) -> None:
        active.is_closed = True
        if self.actives.get(active.replica.user) is active:
            del self.actives[active.replica.user]
        self.slots.release(active)

    # what is promised

    def check(self, words: memoryview) -> None:
        """Whatever a gateway may serve is what its host holds, and was the head at `verified_at`."""
        verified_at = words[VERIFIED_AT] / 1e9
        for kept in self.kept:
            if words[kept.slot] != kept.stamp:
                continue
            user = kept.copy.replica.user
            assert self.actives.get(user) is kept.copy, f"{kept} is served, and its replica is closed"
            assert kept.copy.replica.cursor.version == kept.version, f"{kept} is served, and was replaced"
            ended = self.ended.get((user, kept.version), float("inf"))
            assert ended > verified_at, f"{kept} ended at {ended}, and is said to have been the head at {verified_at}"


# Simple ones often, so that the rare ones meet something.
STEPS = ("read",) * 4 + ("arrive",) * 4 + ("write", "open", "pull", "look", "sweep") * 2 + ("close", "reset", "give up")


@settings(max_examples=400, deadline=None)
@given(
    st.integers(1, len(USERS)),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2 * len(USERS) - 1)), min_size=20, max_size=80),
)
def test_what_a_stamp_allows_is_the_newest_applied_and_was_the_head(count: int, steps: list[tuple[str, int]]) -> None:
    """Opening, pulls, looks and sweeps whose answers come in any order, writes, resets, closing, too few slots."""
    slots = Slots(shared := bytearray(8 * (FIRST + count)))
    words = memoryview(shared).cast("Q")
    model = Model(slots)

    async def story() -> None:
        for name, n in steps:
            await model.step(name, n)
            model.check(words)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.gather(*model.tasks, return_exceptions=True)

    loop = asyncio.new_event_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync_module, "changes_since", model.changes_since)
        patch.setattr(sync_module, "heads_of", model.heads_of)
        loop.run_until_complete(story())
    loop.close()
    given_out = {(kept.stamp, id(kept.copy), kept.version) for kept in model.kept}
    assert len({stamp for stamp, _, _ in given_out}) == len(given_out), "a stamp stands for two contents"


#: Reads go on between any two of these.
STORIES: dict[str, tuple[list[tuple[str, int]], list[int]]] = {
    # what happens, and which of the reads in it may still be served at its end
    "nothing changes": ([("sweep", 0), ("arrive", 0)], [0]),
    "a pull finds it as it was": ([("pull", 0), ("arrive", 0)], [0]),
    "a pull brings a change": ([("write", 0), ("pull", 0), ("arrive", 0)], []),
    "a look finds it as it was": ([("look", 0), ("arrive", 0)], [0]),
    "a look finds it behind": ([("write", 0), ("look", 0), ("arrive", 0), ("arrive", 0)], []),
    "a sweep finds it behind": ([("write", 0), ("sweep", 0), ("arrive", 0)], []),
    "another is opened, behind, while a sweep is under way": (
        [("write", 1), ("sweep", 0), ("open", 3), ("give up", 1), ("read", 1), ("arrive", 0)],
        [0],
    ),
    "a sweep's answer is older than a pull's": (
        [("sweep", 0), ("write", 0), ("pull", 0), ("arrive", 1), ("read", 0), ("arrive", 0)],
        [1],
    ),
    "it closes": ([("close", 0)], []),
    "its history is not the primary's": ([("reset", 0), ("pull", 0), ("arrive", 0)], []),
}


@pytest.mark.parametrize("name", STORIES)
async def test_a_kept_page_is_served_for_exactly_as_long_as_it_is_true(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the things that may end it, alone; and what does not."""
    story, survivors = STORIES[name]
    slots = Slots(shared := bytearray(8 * (FIRST + 2)))
    words = memoryview(shared).cast("Q")
    model = Model(slots)
    monkeypatch.setattr(sync_module, "changes_since", model.changes_since)
    monkeypatch.setattr(sync_module, "heads_of", model.heads_of)
    for step in (("open", 0), ("pull", 0), ("arrive", 0), ("read", 0)):
        await model.step(*step)
    assert len(model.kept) == 1

    for step in story:
        await model.step(*step)
        model.check(words)

    assert [n for n, kept in enumerate(model.kept) if words[kept.slot] == kept.stamp] == survivors
    for carried in model.on_the_way:
        carried.set_result(None)
    await asyncio.gather(*model.tasks)


# --- repairs ----------------------------------------------------------------------------------------------------------


async def test_a_repair_ends_what_was_kept_of_the_replica(fleet: Fleet, primary: Primary) -> None:
    """Other content at the same version: nobody may be served the wrong one without asking."""
    await primary.write("ana", lambda c: add_image(c, "ana", "right"))
    await fleet.read("ana")
    active = fleet.replicas.life.active["ana"]
    active.replica._connection.execute(
        "update images set doc = cast(replace(cast(doc as text), 'right', 'wrong') as blob)"
    )
    kept = await fleet.read("ana", query=encode_query(GalleryQuery(limit=3)))
    assert [image["prompt"] for image in shown(kept)] == ["wrong"]
    assert kept.slot_stamp > 0

    report = await fleet.replicas.audit("ana", repair=True)

    assert report.outcome == "repaired"
    assert fleet.replicas._slots.of(active)[1] != kept.slot_stamp
