"""Kept pages: what is served without asking, for whom, how old it says it is, and how much is kept."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from actors import host as host_module
from actors import membership
from actors.active import Active
from actors.client import ReplicaClient
from actors.errors import CallError
from actors.host import ReplicaHost
from actors.messages import Outcome, PageHead, PageState, Terms
from actors.pages import Page, Pages
from actors.slots import FIRST, Slots
from store.epoch import Bookmark
from store.hosts import list_hosts
from store.primary import Primary
from tests.actors.fleet import ALL, add_image
from tests.world import until

StartHost = Callable[..., Awaitable[ReplicaHost]]
EPOCH = "1700000000000-1"
QUERY = b"query"
ANY_AGE = -1


class Host:
    """The slots of one host, and replicas that are always at head."""

    def __init__(self) -> None:
        shared = bytearray(8 * (FIRST + 8))
        self.slots = Slots(shared)
        self.words = memoryview(shared).cast("Q")

    def swept(self, seconds_ago: float = 0.0) -> None:
        self.slots.swept(time.monotonic() - seconds_ago)

    def opened(self) -> Active:
        active = Active(cast(Any, None), verified_at=time.monotonic(), used_at=0.0)
        active.must_pull = False
        return active

    def head(self, active: Active, version: int = 1, *, stamp: int = 1, query_hash: str = "hash") -> PageHead:
        """What it answers."""
        active.verified_at = time.monotonic()
        slot, slot_stamp = self.slots.of(active)
        return PageHead(
            EPOCH, version, 0, query_hash, stamp, PageState.BYTES, Outcome.FRESH, slot, slot_stamp
        )  # fmt: skip


def kept(
    pages: Pages, host: Host, active: Active, *, user: str = "ana", body: bytes = b"body", version: int = 1
) -> Page:
    """A page of `user` that came from `host`."""
    head = host.head(active, version)
    page = pages.keep(user, QUERY, None, body, head)
    pages.trust(page, host.words, head)
    return page


@pytest.fixture
def host() -> Host:
    made = Host()
    made.swept()
    return made


# --- what is served ---------------------------------------------------------------------------------------------------


def test_a_page_is_served_until_its_stamp_is_another(host: Host) -> None:
    """The very object that was kept, and the host hears who was served."""
    pages, active = Pages(10_000), host.opened()
    page = kept(pages, host, active)

    found = pages.glance("ana", QUERY, None, ANY_AGE)

    assert found is not None
    assert found[0] is page
    assert pages.touched == {"ana"}
    host.slots.stamp(active)
    pages.touched.clear()
    assert pages.glance("ana", QUERY, None, ANY_AGE) is None
    assert pages.touched == set()


def test_a_page_is_served_to_its_user_and_query_alone(host: Host) -> None:
    pages = Pages(10_000)
    kept(pages, host, host.opened())

    assert pages.glance("ben", QUERY, None, ANY_AGE) is None
    assert pages.glance("ana", b"another", None, ANY_AGE) is None
    assert pages.touched == set()


@pytest.mark.parametrize("cleared", ["clear", "release"])
def test_a_page_whose_replica_is_behind_or_closed_is_asked_for(host: Host, cleared: str) -> None:
    pages, active = Pages(10_000), host.opened()
    kept(pages, host, active)

    getattr(host.slots, cleared)(active)

    assert pages.glance("ana", QUERY, None, ANY_AGE) is None


@pytest.mark.parametrize(
    ("floor", "is_served"),
    [
        (None, True),
        (Bookmark(EPOCH, 6), True),
        (Bookmark(EPOCH, 7), True),
        (Bookmark(EPOCH, 8), False),
        (Bookmark("1600000000000-1", 9), True),
        (Bookmark("1800000000000-1", 1), False),
    ],
)
def test_a_page_is_never_older_than_the_floor(host: Host, floor: Bookmark | None, is_served: bool) -> None:
    """Below, at and above the position of the page, and of other epochs."""
    pages = Pages(10_000)
    kept(pages, host, host.opened(), version=7)

    assert (pages.glance("ana", QUERY, floor, ANY_AGE) is not None) == is_served


@pytest.mark.parametrize(
    ("swept_s_ago", "max_age_s", "age_s"),
    [(0.3, -1, 1), (0.3, 1, 1), (0.3, 0, None), (1.2, -1, 2), (1.2, 2, 2), (1.2, 1, None), (2.1, -1, None)],
)
def test_the_age_is_rounded_up_and_has_a_bound(swept_s_ago: float, max_age_s: int, age_s: int | None) -> None:
    """Older than the reader wants, or than a host that is well can be: it is asked."""
    host, pages = Host(), Pages(10_000)
    host.swept(swept_s_ago)
    kept(pages, host, host.opened())

    found = pages.glance("ana", QUERY, None, max_age_s)

    assert (None if found is None else found[1]) == age_s


def test_a_host_that_never_swept_is_asked() -> None:
    host, pages = Host(), Pages(10_000)
    kept(pages, host, host.opened())

    assert pages.glance("ana", QUERY, None, ANY_AGE) is None


def test_an_answer_without_a_slot_and_one_of_another_node_are_asked_for_again(host: Host) -> None:
    """Also when the page had a slot before: what is known of it is what the last answer said."""
    pages, active = Pages(10_000), host.opened()
    page = kept(pages, host, active)
    head = host.head(active)

    pages.trust(pages.keep("ana", QUERY, page, b"", head), None, head)
    assert pages.glance("ana", QUERY, None, ANY_AGE) is None
    pages.trust(pages.keep("ana", QUERY, page, b"", head), host.words, head)
    assert pages.glance("ana", QUERY, None, ANY_AGE) is not None
    bare = PageHead(EPOCH, 1, 0, "hash", 1, PageState.UNCHANGED, Outcome.STALE)
    pages.trust(pages.keep("ana", QUERY, page, b"", bare), host.words, bare)
    assert pages.glance("ana", QUERY, None, ANY_AGE) is None


def test_nothing_is_served_after_users_may_have_moved(host: Host) -> None:
    """Until it was asked for again; the bytes stay, so that they need not be sent."""
    pages, active = Pages(10_000), host.opened()
    page = kept(pages, host, active)

    pages.distrust()

    assert pages.glance("ana", QUERY, None, ANY_AGE) is None
    assert pages.get("ana", QUERY) is page
    head = host.head(active)
    pages.trust(pages.keep("ana", QUERY, page, b"", head), host.words, head)
    assert pages.glance("ana", QUERY, None, ANY_AGE) is not None


def test_what_was_made_of_a_page_goes_when_its_position_or_query_does(host: Host) -> None:
    """Same bytes at a later version: the gateway's heads name the version."""
    pages, active = Pages(10_000), host.opened()
    page = kept(pages, host, active)

    for head, stays in (
        (host.head(active), True),
        (host.head(active, 2), False),
        (host.head(active, 2, query_hash="other"), False),
    ):
        page.heads = ("200", "304")
        assert pages.keep("ana", QUERY, page, b"", head) is page
        assert (page.heads is not None) == stays
        assert (page.at, page.query_hash) == (Bookmark(EPOCH, head.version), head.query_hash)


# --- how much is kept -------------------------------------------------------------------------------------------------


def test_the_first_kept_go_first_and_a_page_takes_the_place_of_its_older_self(host: Host) -> None:
    pages = Pages(10_000)
    for user in ("ana", "ben", "cleo"):
        kept(pages, host, host.opened(), user=user, body=b"x" * 1_500)
    full = pages.bytes

    kept(pages, host, host.opened(), user="ana", body=b"y" * 1_500)

    assert (len(pages), pages.bytes) == (3, full)
    kept(pages, host, host.opened(), user="dora", body=b"x" * 1_500)
    assert [pages.get(user, QUERY) is not None for user in ("ana", "ben", "cleo", "dora")] == [True, False, True, True]
    assert pages.bytes == full


def test_who_comes_once_does_not_push_out_who_comes_often(host: Host) -> None:
    """Served from here or asked for over the wire: a page that was wanted again stays another round."""
    pages = Pages(20 * 4_000)
    host.swept()
    active = host.opened()
    regulars = [f"regular-{n}" for n in range(8)]
    for user in regulars:
        kept(pages, host, active, user=user, body=b"x" * 2_400)

    for n in range(200):
        kept(pages, host, active, user=f"crowd-{n}", body=b"x" * 2_400)
        for user in regulars[:4]:
            assert pages.glance(user, QUERY, None, ANY_AGE) is not None, f"{user} went after {n}"
        for user in regulars[4:]:
            page = pages.get(user, QUERY)
            assert page is not None, f"{user} went after {n}"
            pages.keep(user, QUERY, page, b"", host.head(active))

    assert pages.bytes <= 20 * 4_000
    assert pages.get("crowd-0", QUERY) is None


@pytest.mark.parametrize("max_bytes", [0, 1_000])
def test_a_page_larger_than_all_room_is_not_kept(host: Host, max_bytes: int) -> None:
    pages = Pages(max_bytes)

    kept(pages, host, host.opened(), body=b"x" * 2_000)

    assert (len(pages), pages.bytes) == (0, 0)


def test_many_small_pages_take_no_more_memory_than_few_large_ones(host: Host) -> None:
    """A user who asks for ever new queries with hardly an answer gets no more than the room that there is."""
    pages = Pages(2**20)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    for n in range(5_000):
        page = pages.keep(
            f"user-{n % 7}", b"another query %d" % n, None, b"{} %d" % n,
            PageHead(EPOCH, 1_000 + n, 0, f"hash {n}", 1_000 + n, PageState.BYTES, Outcome.FRESH),
        )  # fmt: skip
        page.heads = (f"{n} {'h' * 330}", f"{n} {'h' * 280}")

    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(pages) > 100
    assert pages.bytes <= 2**20
    assert taken < 1.2 * 2**20


# --- with a real host -------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty beats, sweeps and looks at the membership a second."""
    monkeypatch.setattr(host_module, "BEAT_S", 0.05)
    monkeypatch.setattr(host_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(membership, "REFRESH_S", 0.05)


@asynccontextmanager
async def a_client(primary: Primary, **options: Any) -> AsyncIterator[ReplicaClient]:
    made = ReplicaClient(
        lambda: list_hosts(primary), **{"max_page_bytes": 1_000_000, "zero_hop": True, **options}
    )  # fmt: skip
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def asked(client: ReplicaClient, user: str = "ana") -> Page:
    """The page over the wire, however long its replica takes to be made."""

    async def answer() -> Page | None:
        try:
            return (await client.read(user, ALL, None, timeout_s=5))[1]
        except CallError:
            return None

    page: Page = await until(answer)
    return page


async def given_an_image(primary: Primary, user: str = "ana") -> None:
    await primary.write(user, lambda c: add_image(c, user, "one"))


async def is_at_hand(client: ReplicaClient, user: str = "ana") -> bool:
    """Asks, then looks whether that was the last time it had to."""
    await asked(client, user)
    return client.pages.glance(user, ALL, None, ANY_AGE) is not None


@pytest.mark.usefixtures("quick")
async def test_a_page_of_a_replica_that_its_host_closed_is_asked_for(start_host: StartHost, primary: Primary) -> None:
    """From that moment on; and when it is open again, it is at hand again."""
    await given_an_image(primary)
    await start_host(0)
    async with a_client(primary) as client:
        await until(lambda: is_at_hand(client))

        assert await client.passivate("ana")

        assert client.pages.glance("ana", ALL, None, ANY_AGE) is None
        await until(lambda: is_at_hand(client))
        await client.reseed("ana")
        assert client.pages.glance("ana", ALL, None, ANY_AGE) is None
        await until(lambda: is_at_hand(client))


@pytest.mark.usefixtures("quick")
async def test_a_change_is_asked_for_as_soon_as_its_host_has_it(start_host: StartHost, primary: Primary) -> None:
    """What any reader was shown by the host, no other is shown less of."""
    await given_an_image(primary)
    await start_host(0)
    async with a_client(primary) as client, a_client(primary) as other:
        for _ in range(10):
            await until(lambda: is_at_hand(client))
            _, bookmark = await primary.write("ana", lambda c: add_image(c, "ana", "more"))

            await other.read("ana", ALL, bookmark, Terms(max_wait_ms=5000), timeout_s=5)

            assert client.pages.glance("ana", ALL, None, ANY_AGE) is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("way", ["over TCP", "no segment", "switched off", "no room for pages"])
async def test_without_a_segment_every_read_is_asked_for(start_host: StartHost, primary: Primary, way: str) -> None:
    """A host on another node or without room for it, and a gateway that does not want it, or keeps no pages."""
    await given_an_image(primary)
    settings = {"wire_listen": "127.0.0.1:0", "wire_secret": "between us"} if way == "over TCP" else {}
    host = await start_host(0, **settings)
    segments = list(host._socket.parent.glob("*.slots"))
    assert len(segments) == (0 if way == "over TCP" else 1)
    if way == "no segment":
        segments[0].unlink()
    options: dict[str, Any] = {"switched off": {"zero_hop": False}, "no room for pages": {"max_page_bytes": 0}}
    async with a_client(primary, secret=b"between us", **options.get(way, {})) as client:
        await asked(client)
        sweeps = host.stats().metrics.sweeps
        await until(lambda: host.stats().metrics.sweeps > sweeps + 2)
        reads = host.stats().metrics.reads

        for _ in range(5):
            assert not await is_at_hand(client)

        assert host.stats().metrics.reads == reads + 5


@pytest.mark.usefixtures("quick")
async def test_who_is_served_without_asking_stays_open_and_who_is_not_is_closed(
    start_host: StartHost, primary: Primary
) -> None:
    """The host hears of it once a second: longer than it lets anybody be idle here is not needed."""
    for user in ("ana", "ben"):
        await given_an_image(primary, user)
    host = await start_host(0, host_idle_s=2.5)
    async with a_client(primary) as client:
        for user in ("ana", "ben"):
            await until(lambda user=user: is_at_hand(client, user))
        reads, until_s = host.stats().metrics.reads, time.monotonic() + 5

        async def ben_is_closed() -> bool:
            assert client.pages.glance("ana", ALL, None, ANY_AGE) is not None
            return "ben" not in host._replicas._active and time.monotonic() > until_s

        await until(ben_is_closed)
        assert client.pages.glance("ben", ALL, None, ANY_AGE) is None
        assert host.stats().metrics.reads == reads


@pytest.mark.usefixtures("quick")
async def test_a_host_that_goes_leaves_nothing_to_be_served(start_host: StartHost, primary: Primary) -> None:
    """And the segment of the next one is found by itself."""
    await given_an_image(primary)
    host = await start_host(0)
    async with a_client(primary) as client:
        await until(lambda: is_at_hand(client))

        await host.stop()

        assert list(host._socket.parent.glob("*.slots")) == []
        assert client.pages.glance("ana", ALL, None, ANY_AGE) is None
        await start_host(0)
        await until(lambda: is_at_hand(client))
