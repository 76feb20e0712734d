"""The life of a host's replicas: cold → seeding → active → passive → gone.

Everything about one user is single-flight. What is open is bounded by bytes: who goes is the budget's choice, and
never one that is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from actors.active import Active
from actors.budget import Budget, Reopenings
from actors.errors import CallError, Overloaded, ReplicaBroken, Retryable, Seeding
from actors.folder import ReplicaFolder
from actors.metrics import HostMetrics
from actors.replica import Replica
from actors.replica_file import delete_files
from actors.schema import user_version
from actors.seed import seed
from actors.seeding import SeedQueue
from actors.slots import Slots
from store.changes import Reset
from store.clock import Clock
from store.documents import Documents
from store.primary import Primary

__all__ = ["Activation", "Limits"]

log = structlog.get_logger()

#: Connections given back and replicas closed to make room for one: each takes the loop for about 70 µs.
_MAX_CLOSED = 50


class Limits(NamedTuple):
    """What the replicas of a host may use.

    max_active     open at once
    max_bytes      memory of the open ones: SQLite's, the pages kept, Python's own
    idle_s         without a read for so long, a replica is closed
    pulls, seeds   at once
    all_seeds      at once on the primary, whichever host makes them; 0: no bound
    """

    max_active: int
    max_bytes: int
    idle_s: float
    pulls: int
    seeds: int
    all_seeds: int = 0


class Activation:
    """Opens, makes and closes the replicas of one host. `active` holds those that are open, `paths` their files.

    `on_seeded` hears of each that was made anew.
    """

    def __init__(
        self,
        folder: ReplicaFolder,
        primary: Primary,
        documents: Documents,
        limits: Limits,
        *,
        clock: Clock,
        metrics: HostMetrics,
        slots: Slots,
        may_seed: Callable[[str], bool],
        on_seeded: Callable[[Active], None],
    ) -> None:
        self.active: dict[str, Active] = {}
        self.paths: set[Path] = set()
        self.budget = Budget(max_bytes=limits.max_bytes, max_open=limits.max_active)
        self.seeds = SeedQueue(self._seed, slots=limits.seeds, clock=clock, metrics=metrics)
        self._folder = folder
        self._primary = primary
        self._documents = documents
        self._limits = limits
        self._version = user_version(documents)
        self._clock = clock
        self._metrics = metrics
        self._slots = slots
        self._may_seed = may_seed
        self._on_seeded = on_seeded
        self._reopenings = Reopenings()
        self._is_closed = False

    def activate(self, user: str) -> Active:
        """The open replica; opens a passive one, starts a seed for a cold one.

        Raises:
            Seeding: there is no file yet.
            Retryable: this host does not make it.
            Overloaded: no more of them, for now.
        """
        active = self.active.get(user)
        if active is not None:
            return active
        if self._is_closed:
            raise Retryable("this host is stopping")
        if user not in self.seeds:
            path = self._folder.find(user)
            if path is not None:
                try:
                    return self._reopen(user, path)
                except ReplicaBroken as error:
                    self._metrics.broken += 1
                    log.warning("replica.broken", user=user, error=str(error))
                    delete_files(path)
            elif not self._may_seed(user):
                raise Retryable(f"another host has the replica of {user}, and was here a moment ago")
        self.seeds.start(user, is_wanted=True)
        raise Seeding(f"replica of {user} is being made")

    def pin(self, user: str) -> Active | None:
        """The open replica, which stays open from now on; None while it is being made."""
        try:
            active = self.activate(user)
        except Seeding:
            return None
        active.is_pinned = True
        return active

    def close(self, active: Active, cause: str) -> None:
        """Close a replica; its file stays."""
        if not active.is_closed:
            active.is_closed = True
            if self.active.get(active.replica.user) is active:
                del self.active[active.replica.user]
            self._slots.release(active)  # first: nobody may be served from what we give up
            self.budget.remove(active)
            active.replica.close()
            self.paths.discard(active.replica.path)
            self._metrics.saw_passivation(cause)

    def close_idle(self, *, at_most: int = 200) -> int:
        """Close replicas that nobody read for a while, and more when there are too many bytes; at most so many, so that
        the loop stays free."""
        before = self._clock.monotonic() - self._limits.idle_s
        idle = [active for active in self.active.values() if active.used_at < before and not active.is_in_use]
        for active in idle[:at_most]:
            self.close(active, "idle")
        closed = len(idle[:at_most])
        for _ in range(at_most - closed):
            if not self.budget.is_over():
                break
            if not self.budget.ease():
                closed += self._close_one()
        return closed

    async def close_all(self) -> None:
        """Stop seeding and close every file; nothing is opened again."""
        self._is_closed = True
        await self.seeds.close()
        for active in list(self.active.values()):
            self.close(active, "stop")

    # --- made anew ------------------------------------------------------------------------------------------------

    def reset(self, active: Active, reset: Reset) -> None:
        """Changes cannot bring `active` to the head: make it anew, and show it meanwhile only if it is true."""
        user = active.replica.user
        if user not in self.seeds or reset.is_false_history:  # else every sweep finds the same until it is made
            self._metrics.saw_reset(reset.reason)
            log.info("replica.reset", user=user, reason=reset.reason, version=active.replica.cursor.version)
        if reset.is_false_history:
            self._drop(active, "reset")
        self._seed_soon(user, is_wanted=active.readers > 0)

    def broken(self, active: Active, error: ReplicaBroken) -> None:
        """The file of `active` cannot be used."""
        self._metrics.broken += 1
        log.warning("replica.broken", user=active.replica.user, error=str(error))
        self._drop(active, "broken")
        self._seed_soon(active.replica.user, is_wanted=active.readers > 0)

    def reseed(self, user: str) -> None:
        """Forget a replica and make it again from the primary."""
        active = self.active.get(user)
        if active is not None:
            self._drop(active, "operator")
        path = self._folder.find(user)
        if path is not None:
            delete_files(path)
        self.seeds.start(user, is_wanted=True)

    def forget(self, user: str) -> bool:
        """Close a replica and delete its files, without making it again; False when there were none. One that is being
        made stays: its file appears later, and is forgotten then."""
        active = self.active.get(user)
        if active is not None:
            self.close(active, "erased")
        paths = self._folder.all_of(user)
        for path in paths:
            delete_files(path)
        return bool(paths)

    def _seed_soon(self, user: str, *, is_wanted: bool) -> None:
        try:
            self.seeds.start(user, is_wanted=is_wanted)
        except CallError:
            pass  # whoever needs it asks again: a reader, or the sweep

    async def _seed(self, user: str) -> None:
        started_at, started_wall = self._clock.monotonic(), self._clock.wall()
        path = self._folder.next_path(user)
        seeded = await seed(
            self._primary, user, path, self._documents, synced_at=started_wall, at_once=self._limits.all_seeds
        )
        # No await from here: the old replica, if one still serves, hands over between two reads.
        old = self.active.get(user)
        if old is not None:
            self.close(old, "reset")
        self._folder.delete_others(user, path)
        active = self._open(user, path)
        active.verified_at = started_at
        self._metrics.seeds += 1
        self._metrics.seed_rows += seeded.rows
        self._metrics.seed_seconds += self._clock.monotonic() - started_at
        self._on_seeded(active)

    def _drop(self, active: Active, cause: str) -> None:
        """Close a replica that may not be shown again, and delete its file."""
        self.close(active, cause)
        delete_files(active.replica.path)

    # --- opened ---------------------------------------------------------------------------------------------------

    def _reopen(self, user: str, path: Path) -> Active:
        """Open a passive replica, and count what it costs when it was closed a moment ago for want of room."""
        started_at = self._clock.monotonic()
        if self.budget.is_full() and self._reopenings.are_too_many(started_at):
            self._metrics.shed += 1
            raise Overloaded("more users are active than this host has room for")
        active = self._open(user, path)
        now = self._clock.monotonic()
        if self._reopenings.opened(user, now, now - started_at):
            self._metrics.reactivations += 1
        return active

    def _open(self, user: str, path: Path) -> Active:
        for _ in range(_MAX_CLOSED):  # the sweep goes on with the rest
            if not (self.budget.is_full() and (self.budget.ease() or self._close_one())):
                break
        replica = Replica.open(path, user, self._version, self.budget)
        now = self._clock.monotonic()
        closed_for_s = max(0.0, self._clock.wall() - replica.synced_at)
        active = Active(replica, verified_at=now - closed_for_s, used_at=now)
        self.active[user] = active
        self.paths.add(path)
        self.budget.add(active)
        self._metrics.activations += 1
        return active

    def _close_one(self) -> bool:
        """Close the replica that the budget would rather not have; False when all are in use."""
        victim = self.budget.victim()
        if victim is None:
            return False
        self.close(victim, "pressure")
        self._reopenings.closed(victim.replica.user, self._clock.monotonic())
        return True
