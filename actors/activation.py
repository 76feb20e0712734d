"""The replicas of one host, and their life: cold → seeding → active → passive → gone.

A cold read starts a seed and does not wait for it: the gateway asks the primary meanwhile. Everything about one user
is single-flight.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import NamedTuple

import structlog

from actors.errors import Behind, Overloaded, ReplicaBroken, Retryable, Seeding
from actors.folder import ReplicaFolder
from actors.metrics import HostMetrics
from actors.replica import KeptPage, Replica, delete_files
from actors.schema import user_version
from actors.seed import seed
from actors.sync import Active, Sync
from actors.wire import Outcome, ReplicaInfo
from store.changes import Cursor, Reset
from store.clock import Clock
from store.documents import Documents
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary

__all__ = ["Answer", "Replicas"]

log = structlog.get_logger()

#: Waiting seeds beyond this are refused at once: the queue would outlive its readers.
_MAX_WAITING_SEEDS = 10_000
#: Between a seed that failed and the next one of the same user.
_SEED_PAUSE_S = 0.5


class Answer(NamedTuple):
    """What a replica says: where it stands, how long ago that was known to be the head, the page, and how it came."""

    cursor: Cursor
    age_s: int
    page: KeptPage
    outcome: Outcome


class Replicas:
    """All replicas of a host."""

    def __init__(
        self,
        folder: ReplicaFolder,
        primary: Primary,
        seeds: Primary,
        documents: Documents,
        *,
        clock: Clock,
        metrics: HostMetrics,
        max_active: int,
        idle_s: float,
        concurrent_pulls: int,
        concurrent_seeds: int,
    ) -> None:
        self._folder = folder
        self._seeds = seeds
        self._documents = documents
        self._version = user_version(documents)
        self._clock = clock
        self._metrics = metrics
        self._max_active = max_active
        self._idle_s = idle_s
        self._active: dict[str, Active] = {}
        self._seeding: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False
        self._seed_slots = asyncio.Semaphore(concurrent_seeds)
        self._sync = Sync(
            primary,
            documents,
            clock=clock,
            metrics=metrics,
            on_reset=self._reset,
            on_broken=self._broken,
            concurrency=concurrent_pulls,
        )

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
        active = self._activate(user)
        if active.is_full:
            raise Retryable(f"there is no room for changes of {user}")  # the next sweep tries again
        outcome = Outcome.FRESH
        if validate or active.must_pull or active.is_behind(floor) or self._is_older(active, max_age_s):
            try:
                async with asyncio.timeout(max_wait_s):
                    active = await self._pulled(user, floor, validate=validate)
                outcome = Outcome.STALE if user in self._seeding else Outcome.WAITED
            except (PrimaryUnavailable, TimeoutError) as error:
                active = self._activate(user)
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
        return answer

    async def _pulled(self, user: str, floor: Bookmark | None, *, validate: bool) -> Active:
        """The replica after a pull that ended on it: one that was closed meanwhile is opened and pulled again.

        Raises:
            PrimaryUnavailable: it is as it was.
            Seeding: changes cannot bring it to the floor; it is being made anew.
        """
        while True:
            active = self._activate(user)
            if validate or active.is_behind(floor):
                await self._sync.pull_forced(active, floor, validate=validate)
            else:
                await self._sync.pull(active)
            if self._active.get(user) is active:
                if user in self._seeding and (validate or active.is_behind(floor)):
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
                active = self._activate(user)
            except Seeding:
                await asyncio.shield(self._seeding[user])
                continue
            applied = await self._sync.pull(active)
            if user in self._seeding:
                await asyncio.shield(self._seeding[user])  # it ended in a reset
            elif self._active.get(user) is active:
                return active.replica.cursor, applied
        raise Retryable(f"replica of {user} could not be made")

    def poke(self, user: str, bookmark: Bookmark) -> None:
        """A hint that `user` changed. Only an active replica cares: others pull when they are opened."""
        active = self._active.get(user)
        if active is not None and not active.is_full and active.is_behind(bookmark):
            self._sync.pull_soon(active)

    def _answer(self, active: Active, encoded: bytes, outcome: Outcome) -> Answer | None:
        now = self._clock.monotonic()
        active.used_at = now
        replica = active.replica
        page = replica.kept(encoded)
        if page is None:
            try:
                page = replica.read(encoded)
            except ReplicaBroken as error:
                self._broken(active, error)
                return None
        else:
            self._metrics.kept_reads += 1
        self._metrics.reads += 1
        return Answer(replica.cursor, _age_s(active, now), page, outcome)

    # --- life ---------------------------------------------------------------------------------------------------

    def _activate(self, user: str) -> Active:
        """The open replica; opens a passive one, starts a seed for a cold one.

        Raises:
            Seeding: there is no file yet.
        """
        active = self._active.get(user)
        if active is not None:
            return active
        if self._is_closed:
            raise Retryable("this host is stopping")
        if user not in self._seeding:
            path = self._folder.find(user)
            if path is not None:
                try:
                    return self._open(user, path)
                except ReplicaBroken as error:
                    self._metrics.broken += 1
                    log.warning("replica.broken", user=user, error=str(error))
                    delete_files(path)
            self._start_seed(user)
        raise Seeding(f"replica of {user} is being made")

    def _open(self, user: str, path: Path) -> Active:
        while len(self._active) >= self._max_active:
            oldest = min(self._active.values(), key=lambda a: a.used_at)
            self._close(oldest)
        replica = Replica.open(path, user, self._version)
        now = self._clock.monotonic()
        closed_for_s = max(0.0, self._clock.wall() - replica.synced_at)
        active = Active(replica, verified_at=now - closed_for_s, used_at=now)
        self._active[user] = active
        self._metrics.activations += 1
        return active

    def _close(self, active: Active) -> None:
        if not active.is_closed:
            active.is_closed = True
            if self._active.get(active.replica.user) is active:
                del self._active[active.replica.user]
            active.replica.close()
            self._metrics.passivations += 1

    def _drop(self, active: Active) -> None:
        """Close a replica that may not be shown again, and delete its file."""
        self._close(active)
        delete_files(active.replica.path)

    def _reset(self, active: Active, reset: Reset) -> None:
        user = active.replica.user
        self._metrics.saw_reset(reset.reason)
        log.info("replica.reset", user=user, reason=reset.reason, cursor=str(active.replica.cursor.version))
        if reset.is_false_history:
            self._drop(active)
        self._start_seed(user)

    def _broken(self, active: Active, error: ReplicaBroken) -> None:
        self._metrics.broken += 1
        log.warning("replica.broken", user=active.replica.user, error=str(error))
        self._drop(active)
        self._start_seed(active.replica.user)

    def _start_seed(self, user: str) -> None:
        if user in self._seeding:
            return
        if len(self._seeding) >= _MAX_WAITING_SEEDS:
            self._metrics.overloads += 1
            raise Overloaded(f"{_MAX_WAITING_SEEDS} replicas wait to be made")
        task = asyncio.create_task(self._seed(user))
        self._seeding[user] = task
        task.add_done_callback(lambda done: self._seed_ended(user, done))

    async def _seed(self, user: str) -> None:
        try:
            await self._seed_now(user)
        except Exception:
            # Readers would start the next one at once: a primary or a disk in trouble gets a moment in between.
            await asyncio.sleep(_SEED_PAUSE_S)
            raise

    async def _seed_now(self, user: str) -> None:
        async with self._seed_slots:
            started_at, started_wall = self._clock.monotonic(), self._clock.wall()
            path = self._folder.next_path(user)
            seeded = await seed(self._seeds, user, path, self._documents, synced_at=started_wall)
            # No await from here: the old replica, if one still serves, hands over between two reads.
            old = self._active.get(user)
            if old is not None:
                self._close(old)
            self._folder.delete_others(user, path)
            active = self._open(user, path)
            active.verified_at = started_at
            took_s = self._clock.monotonic() - started_at
            self._metrics.seeds += 1
            self._metrics.seed_rows += seeded.rows
            self._metrics.seed_seconds += took_s

    def _seed_ended(self, user: str, task: asyncio.Task[None]) -> None:
        del self._seeding[user]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._metrics.seed_failures += 1
            log.warning("seed.failed", user=user, error=str(error))

    async def sweep(self) -> float:
        """See `Sync.sweep`."""
        return await self._sync.sweep(self._active)

    def passivate_idle(self, *, at_most: int = 200) -> int:
        """Close replicas that nobody read for a while; at most so many, so that the loop stays free."""
        before = self._clock.monotonic() - self._idle_s
        idle = [active for active in self._active.values() if active.used_at < before][:at_most]
        for active in idle:
            self._close(active)
        return len(idle)

    async def close(self) -> None:
        """Stop seeding and close every file; nothing is opened again."""
        self._is_closed = True
        tasks = list(self._seeding.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for active in list(self._active.values()):
            self._close(active)

    # --- for operators --------------------------------------------------------------------------------------------

    def inspect(self, user: str) -> ReplicaInfo:
        """What is known of one replica; opens nothing."""
        active = self._active.get(user)
        if active is not None:
            return self._info(active)
        path = self._folder.find(user)
        state = "seeding" if user in self._seeding else "cold" if path is None else "passive"
        if path is None:
            return ReplicaInfo(user, state)
        return ReplicaInfo(user, state, file_bytes=_size(path), path=str(path))

    def list_active(self, limit: int) -> list[ReplicaInfo]:
        """The open replicas, the one read last first, at most `limit`."""
        actives = sorted(self._active.values(), key=lambda active: active.used_at, reverse=True)
        return [self._info(active) for active in actives[:limit]]

    def passivate(self, user: str) -> bool:
        """Close a replica; False when it was not open. Its file stays."""
        active = self._active.get(user)
        if active is not None:
            self._close(active)
        return active is not None

    def reseed(self, user: str) -> None:
        """Forget a replica and make it again from the primary."""
        active = self._active.get(user)
        if active is not None:
            self._drop(active)
        path = self._folder.find(user)
        if path is not None:
            delete_files(path)
        self._start_seed(user)

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
            _size(replica.path),
            str(replica.path),
        )

    # --- what it holds ------------------------------------------------------------------------------------------

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def seeding_count(self) -> int:
        return len(self._seeding)

    @property
    def kept_bytes(self) -> int:
        return sum(active.replica.kept_bytes for active in self._active.values())

    @property
    def lag_s(self) -> float:
        """The greatest age among the active replicas, in seconds."""
        now = self._clock.monotonic()
        return max((now - active.verified_at for active in self._active.values()), default=0.0)


def _age_s(active: Active, now: float) -> int:
    """Whole seconds since it was last known to be at head, rounded up."""
    return max(0, math.ceil(now - active.verified_at))


def _size(path: Path) -> int:
    """Bytes of a replica's file and its log."""
    total = 0
    for name in (path.name, f"{path.name}-wal"):
        try:
            total += path.with_name(name).stat().st_size
        except FileNotFoundError:
            continue
    return total
