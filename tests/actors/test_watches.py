"""Watches: whoever listens learns of every version, whatever was lost, lowered, closed or made anew between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Event
from actors.watches import Watches
from store.epoch import Bookmark
from tests.actors.fleet import ALL, Fleet, Gate, History, add_image, position
from tests.world import until

EPOCH = "1700000000000-1"
NEXT = "1700000000001-1"


def at(version: int, epoch: str = EPOCH) -> Bookmark:
    return Bookmark(epoch, version)


class Ear:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def tell(self, event: Event) -> None:
        self.heard.append(event)


def told(*kinds: str, version: int, epoch: str = EPOCH, is_whole: bool = False) -> Event:
    return Event("ana", epoch, version, list(kinds), is_whole)


# --- one by one -------------------------------------------------------------------------------------------------


def test_a_move_is_told_once_with_its_kinds() -> None:
    watches, ear = Watches(), Ear()
    watches.add("ana", ear, at(3))

    watches.tell("ana", at(4), at(3), ["images"])
    watches.tell("ana", at(4), at(4), [])
    watches.tell("bo", at(9), at(8), ["images"])

    assert ear.heard == [told("images", version=4)]


def test_what_is_known_already_is_not_told() -> None:
    """A replica behind what the gateway read from the primary catches up in silence."""
    watches, ear = Watches(), Ear()
    watches.add("ana", ear, at(5))

    watches.tell("ana", at(4), at(3), ["images"])
    watches.tell("ana", at(6), at(4), ["images", "jobs"])

    assert ear.heard == [told("images", "jobs", version=6)]


def test_a_move_from_beyond_what_is_known_may_be_anything() -> None:
    """Nobody told what led from the known to where the pull began."""
    watches, ear = Watches(), Ear()
    watches.add("ana", ear, at(3))

    watches.tell("ana", at(6), at(5), ["images"])

    assert ear.heard == [told("images", version=6, is_whole=True)]


def test_a_replica_that_was_made_anew_is_told_unless_it_is_where_it_was() -> None:
    """It may also have gone back."""
    watches, ear = Watches(), Ear()
    watches.add("ana", ear, at(3))

    watches.tell("ana", at(3))
    watches.tell("ana", at(1, NEXT))
    watches.tell("ana", at(2, NEXT), at(1, NEXT), ["images"])

    assert ear.heard == [told(version=1, epoch=NEXT, is_whole=True), told("images", version=2, epoch=NEXT)]


def test_the_next_epoch_is_newer_whatever_its_version() -> None:
    watches, ear = Watches(), Ear()
    watches.add("ana", ear, at(9))

    assert watches.has_moved("ana", at(9, NEXT))
    watches.tell("ana", at(2, NEXT), at(1, NEXT), ["images"])

    assert ear.heard == [told("images", version=2, epoch=NEXT, is_whole=True)]


def test_who_knows_less_does_not_make_the_others_miss_anything() -> None:
    """What the first knows already is told again, as something unknown; it drops what is not new."""
    watches, first, second = Watches(), Ear(), Ear()
    watches.add("ana", first, at(5))
    watches.add("ana", second, at(2))

    watches.tell("ana", at(5), at(5), [])

    assert first.heard == second.heard == [told(version=5, is_whole=True)]


def test_who_has_left_hears_nothing_and_leaves_nothing() -> None:
    watches, first, second = Watches(), Ear(), Ear()
    for ear in (first, second):
        for user in ("ana", "bo"):
            watches.add(user, ear, at(1))

    watches.remove(first, "ana")
    watches.remove(first, "ana")
    watches.remove(Ear(), None)
    assert len(watches) == 2
    watches.tell("ana", at(2), at(1), [])
    watches.remove(second, None)
    assert len(watches) == 1
    watches.tell("ana", at(3), at(2), [])
    watches.remove(first, None)

    assert (first.heard, second.heard) == ([], [told(version=2)])
    assert len(watches) == 0
    assert watches._users == {}


def test_only_those_who_sleep_are_looked_at() -> None:
    watches, ear = Watches(), Ear()
    for user in ("ana", "bo"):
        watches.add(user, ear, at(1))

    assert watches.asleep({"ana": None}) == ["bo"]
    assert (watches.has_moved("bo", at(1)), watches.has_moved("bo", at(2))) == (False, True)
    assert not watches.has_moved("cleo", at(2))


# --- whatever happens -------------------------------------------------------------------------------------------


class Gateway(Ear):
    """What a gateway makes of what it is told: `known` is covered, and everything newer must be told with its kinds."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.known = model.head
        self.is_connected = False
        self.is_deaf = False

    def tell(self, event: Event) -> None:
        if not self.is_deaf:
            self.hear(Bookmark(event.epoch, event.version), None if event.is_whole else event.kinds)

    def hear(self, position: Bookmark, kinds: list[str] | None) -> None:
        if kinds is not None and position.is_after(*self.known):
            assert self.known.epoch == position.epoch
            for version in range(self.known.version + 1, position.version + 1):
                assert self.model.kinds[version] in kinds, f"{self.known} → {position}: {kinds}"
        if kinds is None or position.is_after(*self.known):
            self.known = position


class Model:
    """One user, one replica, two gateways; each verb is something that happens."""

    def __init__(self) -> None:
        self.watches = Watches()
        self.head = self.replica = at(0)
        self.kinds: dict[int, str] = {}
        self.is_open = False
        self.gateways = [Gateway(self) for _ in range(2)]

    def commit(self, kind: str) -> None:
        self.head = at(self.head.version + 1, self.head.epoch)
        self.kinds[self.head.version] = kind

    def pull(self) -> None:
        """Open it if need be, and bring it to head; another epoch makes it anew."""
        self.is_open = True
        before, self.replica = self.replica, self.head
        if before.epoch != self.head.epoch:
            self.watches.tell("ana", self.head)
            return
        kinds = {self.kinds[v] for v in range(before.version + 1, self.head.version + 1)}
        self.watches.tell("ana", self.head, before, sorted(kinds))

    def reseed(self) -> None:
        self.is_open, self.replica = True, self.head
        self.watches.tell("ana", self.head)

    def passivate(self) -> None:
        self.is_open = False

    def rotate(self) -> None:
        """A restore: the epoch is new, and versions may be lower."""
        self.head = at(self.head.version // 2, f"{int(self.head.epoch[:-2]) + 1}-1")

    def connect(self, number: int) -> None:
        """Say what is known, and hear where the replica is."""
        gateway = self.gateways[number]
        gateway.is_connected, gateway.is_deaf = True, False
        self.watches.add("ana", gateway, self.replica if self.is_open else gateway.known)
        if self.is_open and self.replica.is_after(*gateway.known):
            gateway.hear(self.replica, None)

    def lose(self, number: int) -> None:
        """The connection breaks: what is told from now on is lost, until the host sees it."""
        self.gateways[number].is_deaf = True

    def disconnect(self, number: int) -> None:
        self.gateways[number].is_connected = False
        self.watches.remove(self.gateways[number], None)

    def restart(self) -> None:
        """The host's next generation: nobody watches, and the file is as it was."""
        self.watches, self.is_open = Watches(), False
        for gateway in self.gateways:
            gateway.is_connected = False

    def sweep(self) -> None:
        if self.is_open and self.replica == self.head:
            self.watches.tell("ana", self.replica, self.replica)
        elif self.is_open or self.watches.has_moved("ana", self.head):
            self.pull()


numbers = st.integers(0, 1)
verbs = st.one_of(
    st.tuples(st.just("commit"), st.sampled_from(["images", "jobs", "accounts"])),
    st.tuples(st.sampled_from(["pull", "reseed", "passivate", "restart", "sweep"])),
    st.tuples(st.sampled_from(["connect", "lose", "disconnect"]), numbers),
    st.tuples(st.just("rotate")),
)


@given(st.lists(verbs, max_size=40))
def test_a_gateway_that_watches_knows_the_head_after_a_sweep(happened: list[tuple[str, ...]]) -> None:
    """And on the way there, each version was named with its kind or as something unknown."""
    model = Model()

    for verb, *values in happened:
        getattr(model, verb)(*values)
    for number in (0, 1):
        model.disconnect(number)
        model.connect(number)
    model.sweep()

    assert [gateway.known for gateway in model.gateways] == [model.head] * 2


# --- with real replicas -----------------------------------------------------------------------------------------


async def test_a_replica_opened_while_the_primary_is_away_tells_where_it_is(
    fleet: Fleet, gate: Gate, history: History
) -> None:
    """Its last change was told to a connection that broke; opened by a reader without the primary, it is at head
    and is not pulled any more: the sweep tells all the same."""
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana"))
    await fleet.close()
    fleet.database = gate.url
    await fleet.open()
    assert position((await fleet.read("ana")).cursor) == bookmark
    fleet.replicas.passivate("ana")
    ear = Ear()
    fleet.replicas.watch("ana", ear, bookmark._replace(version=bookmark.version - 1))

    await gate.shut()
    await fleet.replicas.read("ana", ALL, None, stale_ok=True)
    await gate.open()

    async def sweep() -> bool:
        await fleet.replicas.sweep()
        return bool(ear.heard)

    await until(sweep)
    assert ear.heard == [told(version=bookmark.version, epoch=bookmark.epoch, is_whole=True)]
