"""The replicas of one host, as its callers see them: reads, pokes, sweeps, and what operators ask.

A cold read starts a seed and does not wait for it: the gateway asks the primary meanwhile.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple

from actors.activation import Activation, Limits
from actors.active import Active
from actors.audit import Auditor
from actors.errors import Behind, CallError, ReplicaBroken, Retryable, Seeding
from actors.folder import ReplicaFolder
from actors.messages import AuditReport, Outcome, ReplicaInfo
from actors.metrics import HostMetrics
from actors.replica import KeptPage
from actors.replica_file import file_bytes
from actors.slots import Slots
from actors.sync import Sync
from actors.watches import Listener, Watches
from store.changes import Cursor
from store.clock import Clock
from store.documents import Documents
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary

__all__ = ["Answer", "Replicas"]


class Answer(NamedTuple):
    """What a replica says: where it stands, how long ago that was known to be the head, the page, how it came, and the
    slot and stamp (0, 0: none) that tell for how long it is true."""

    cursor: Cursor
    age_s: int
    page: KeptPage
    outcome: Outcome
    slot: int
    slot_stamp: int


class Replicas:
    """All replicas of a host."""

    def __init__(
        self,
        folder: ReplicaFolder,
        primary: Primary,
        seeds: Primary,
        documents: Documents,
        limits: Limits,
        *,
        clock: Clock,
        metrics: HostMetrics,
        slots: Slots | None = None,
        may_seed: Callable[[str], bool] = lambda user: True,
    ) -> None:
        self._slots = slots = slots or Slots.create(None, limits.max_active)
        self._folder = folder
        self._clock = clock
        self._metrics = metrics
        self.watches = Watches()
        self.life = Activation(
            folder,
            seeds,
            documents,
            limits,
            clock=clock,
            metrics=metrics,
            slots=slots,
            may_seed=may_seed,
            on_seeded=lambda active: self.watches.tell(active.replica.user, active.position),
        )
        self._active = self.life.active
        self._sync = Sync(
            primary,
            documents,
            clock=clock,
            metrics=metrics,
            slots=slots,
            on_reset=self.life.reset,
            on_broken=self.life.broken,
            on_applied=lambda active, before, kinds: self.watches.tell(
                active.replica.user, active.position, before, kinds
            ),
            concurrency=limits.pulls,
        )
        self._auditor = Auditor(seeds, documents, self._sync, self.life, clock=clock, metrics=metrics, slots=slots)

    # --- reading ------------------------------------------------------------------------------------------------

    def peek(self, user: str, encoded: bytes, floor: Bookmark | None, *, max_age_s: int = -1) -> Answer | None:
        """The answer when nothing has to be waited for; None otherwise. This is the hot path."""
        active = self._active.get(user)
        if active is None or active.must_pull or active.is_full or (floor is not None and active.is_behind(floor)):
            return None
        if self._is_older(active, max_age_s):
            return None
        return self._answer(active, encoded, Outcome.FRESH)

    async def read(
        self,
        user: str,
        encoded: bytes,
        floor: Bookmark | None,
        *,
        max_wait_s: float = 0.25,
        max_age_s: int = -1,
        validate: bool = False,
        stale_ok: bool = False,
    ) -> Answer:
        """The answer after opening or pulling as needed; see `ReadRequest` for what may be asked.

        A floor that is beyond the primary's head too is dropped: somebody made it up, or its history is lost.

        Raises:
            Seeding: the replica is being made.
            Behind: the primary did not let it get where it was asked to be, in time.
            Retryable: it cannot be used now.
            QueryTooCostly: the query was stopped.
        """
        was_open = user in self._active
        active = self.life.activate(user)
        if active.is_full:
            raise Retryable(f"there is no room for changes of {user}")  # the next sweep tries again
        outcome = Outcome.FRESH
        if validate or active.must_pull or active.is_behind(floor) or self._is_older(active, max_age_s):
            try:
                async with asyncio.timeout(max_wait_s):
                    active = await self._pulled(user, floor, validate=validate)
                outcome = Outcome.STALE if user in self.life.seeds else Outcome.WAITED
            except (PrimaryUnavailable, TimeoutError) as error:
                active = self.life.activate(user)
                behind = validate or active.is_behind(floor)
                if self._is_older(active, max_age_s) or (behind and not stale_ok):
                    raise Behind(f"replica of {user} could not be brought up to date in time: {error}") from error
                active.must_pull = False  # the next sweep that gets through will tell
                outcome = Outcome.STALE
        if active.is_full:
            raise Retryable(f"there is no room for changes of {user}")
        answer = self._answer(active, encoded, outcome)
        if answer is None:
            raise Seeding(f"replica of {user} was broken and is being made again")
        if not was_open:
            active.passed_at = active.used_at  # who comes once is the first to go
        return answer

    async def _pulled(self, user: str, floor: Bookmark | None, *, validate: bool) -> Active:
        """The replica after a pull that ended on it: one that was closed meanwhile is opened and pulled again.

        Raises:
            PrimaryUnavailable: it is as it was.
            Seeding: changes cannot bring it to the floor; it is being made anew.
        """
        while True:
            active = self.life.activate(user)
            active.readers += 1
            try:
                if validate or active.is_behind(floor):
                    await self._sync.pull_forced(active, floor, validate=validate)
                else:
                    await self._sync.verify(active)
            finally:
                active.readers -= 1
            if self._active.get(user) is active:
                if user in self.life.seeds and (validate or active.is_behind(floor)):
                    raise Seeding(f"replica of {user} is old and is being made again")
                return active

    def _is_older(self, active: Active, max_age_s: int) -> bool:
        return max_age_s >= 0 and _age_s(active, self._clock.monotonic()) > max_age_s

    async def sync(self, user: str) -> tuple[Cursor, int]:
        """Bring `user`'s replica to head now, making it first if need be; answers (cursor, rows changed).

        Raises:
            PrimaryUnavailable: it could not be asked.
            Retryable: the seed did not come to an end.
        """
        for _ in range(3):
            try:
                active = self.life.activate(user)
            except Seeding:
                await self.life.seeds.wait(user)
                continue
            applied = await self._sync.pull(active)
            if user in self.life.seeds:
                await self.life.seeds.wait(user)  # it ended in a reset
            elif self._active.get(user) is active:
                return active.replica.cursor, applied
        raise Retryable(f"replica of {user} could not be made")

    def poke(self, user: str, bookmark: Bookmark) -> None:
        """A hint that `user` changed. Only an active replica cares, or one that is watched: others pull when they are
        opened."""
        active = self._active.get(user)
        if active is not None:
            if not active.is_full and active.is_behind(bookmark):
                self._sync.pull_soon(active)
        elif self.watches.has_moved(user, bookmark):
            self._wake(user)

    async def sweep(self) -> None:
        """See `Sync.sweep`; wake those who sleep, have moved, and are watched; and tell of those who are open and ahead
        of what was told: what moved them may have been told to a connection that broke.

        Raises:
            PrimaryUnavailable: nothing is known; ages go on growing.
        """
        heads = await self._sync.sweep(self._active, self.watches.asleep(self._active))
        for user, head in heads.items():
            if user not in self._active and self.watches.has_moved(user, head):
                self._wake(user)
        for user in self.watches.awake(self._active):
            at = self._active[user].position
            self.watches.tell(user, at, at)

    def _wake(self, user: str) -> None:
        """Bring a watched replica that sleeps to head: those who watch it hear what changed."""
        try:
            self._sync.pull_soon(self.life.activate(user))
        except CallError:
            pass  # the next sweep sees the same

    def watch(self, user: str, listener: Listener, known: Bookmark) -> Bookmark | None:
        """Tell `listener` when the replica moves beyond `known`; answers where it is, if it is open."""
        active = self._active.get(user)
        at = None if active is None else active.position
        self.watches.add(user, listener, at or known)
        return at

    def touch(self, users: list[str]) -> None:
        """Gateways have served these users without asking."""
        now = self._clock.monotonic()
        for user in users:
            active = self._active.get(user)
            if active is not None:
                active.used_at = now

    def _answer(self, active: Active, encoded: bytes, outcome: Outcome) -> Answer | None:
        now = self._clock.monotonic()
        active.used_at = now
        replica = active.replica
        page = replica.kept(encoded)
        if page is None:
            try:
                page = replica.read(encoded)
            except ReplicaBroken as error:
                self.life.broken(active, error)
                return None
        else:
            self._metrics.kept_reads += 1
        self._metrics.reads += 1
        slot, slot_stamp = (0, 0) if outcome is Outcome.STALE else self._slots.of(active)
        return Answer(replica.cursor, _age_s(active, now), page, outcome, slot, slot_stamp)

    # --- for operators --------------------------------------------------------------------------------------------

    def inspect(self, user: str) -> ReplicaInfo:
        """What is known of one replica; opens nothing."""
        active = self._active.get(user)
        if active is not None:
            return self._info(active)
        path = self._folder.find(user)
        state = "seeding" if user in self.life.seeds else "cold" if path is None else "passive"
        if path is None:
            return ReplicaInfo(user, state)
        return ReplicaInfo(user, state, file_bytes=file_bytes(path), path=str(path))

    def list_active(self, limit: int) -> list[ReplicaInfo]:
        """The open replicas, the one read last first, at most `limit`."""
        users = (active for user, active in self._active.items() if not user.startswith("~"))
        actives = sorted(users, key=lambda active: active.used_at, reverse=True)
        return [self._info(active) for active in actives[:limit]]

    def passivate(self, user: str) -> bool:
        """Close a replica; False when it was not open. Its file stays."""
        active = self._active.get(user)
        if active is not None:
            self.life.close(active, "operator")
        return active is not None

    def reseed(self, user: str) -> None:
        """Forget a replica and make it again from the primary."""
        self.life.reseed(user)

    async def audit(self, user: str, *, repair: bool) -> AuditReport:
        """Compare a replica with the primary at one version, without making one that is not there.

        Raises:
            PrimaryUnavailable: it could not be asked.
            Retryable: the replica cannot be used now.
        """
        active = self._active.get(user)
        if active is None:
            state = self.inspect(user).state
            if state != "passive":
                return AuditReport(user, state)
            active = self.life.activate(user)
        return await self._auditor.audit(active, repair=repair)

    async def audit_idle(self) -> None:
        """Audit one replica that nobody reads just now; see `Auditor.audit_idle`."""
        await self._auditor.audit_idle()

    def _info(self, active: Active) -> ReplicaInfo:
        now = self._clock.monotonic()
        replica = active.replica
        return ReplicaInfo(
            replica.user,
            "active",
            replica.cursor.epoch,
            replica.cursor.version,
            round(now - active.verified_at, 3),
            round(now - active.used_at, 3),
            replica.kept_bytes,
            file_bytes(replica.path),
            str(replica.path),
        )

    # --- what it holds ------------------------------------------------------------------------------------------

    @property
    def active_count(self) -> int:
        """Open replicas, without the host's own."""
        return sum(not user.startswith("~") for user in self._active)

    @property
    def seeding_count(self) -> int:
        return len(self.life.seeds)

    @property
    def lag_s(self) -> float:
        """The greatest age among the active replicas, in seconds."""
        now = self._clock.monotonic()
        return max((now - active.verified_at for active in self._active.values()), default=0.0)


def _age_s(active: Active, now: float) -> int:
    """Whole seconds since it was last known to be at head, rounded up."""
    return max(0, math.ceil(now - active.verified_at))
