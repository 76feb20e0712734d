"""Audits: a replica against the primary, row by row, at one version.

Sync is right by construction and proven by tests; disks and memory are not. So every few seconds a host compares a
replica that nobody reads with the primary, and what differs is counted, named in the log, and made right.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
import structlog

from actors.activation import Activation
from actors.active import Active
from actors.errors import DiskFull, ReplicaBroken, Retryable
from actors.messages import AuditReport, KindAudit
from actors.metrics import HostMetrics
from actors.replica import Applied
from actors.slots import Slots
from actors.sync import Sync
from store.changes import START, Cursor, heads_of, ordered_rows
from store.clock import Clock
from store.documents import FILTERS, Documents, Row
from store.primary import Connection, Primary
from store.users import touch

__all__ = ["Auditor"]

log = structlog.get_logger()

#: Rows compared in one turn of the loop.
_BATCH: Final = 200
#: Tries until a replica and the primary are met at the same version.
_ATTEMPTS: Final = 5
#: More rows than this are not mended one by one: the replica is made anew.
MAX_MENDED: Final = 500
MAX_NAMED: Final = 20
#: A host audits so many rows a second at most, and no replica that was read within the last second.
_ROWS_PER_S: Final = 2_000
_IDLE_S: Final = 1.0


class Auditor:
    """Audits of one host."""

    def __init__(
        self,
        primary: Primary,
        documents: Documents,
        sync: Sync,
        life: Activation,
        *,
        clock: Clock,
        metrics: HostMetrics,
        slots: Slots,
    ) -> None:
        self._primary = primary
        self._documents = documents
        self._sync = sync
        self._life = life
        self._clock = clock
        self._metrics = metrics
        self._slots = slots
        self._next_at = 0.0

    async def audit(self, active: Active, *, repair: bool) -> AuditReport:
        """Compare an open replica with the primary; `repair` what differs.

        Raises:
            PrimaryUnavailable: it could not be asked.
            Retryable: there is no room to mend what was found.
        """
        user = active.replica.user
        active.readers += 1  # not closed under our hands
        try:
            report = await self._audit(active, repair=repair)
            if report.outcome == "repaired" and (await self._audit(active, repair=False)).outcome == "differs":
                # An index that does not name the rows that the table has: what is written does not replace them.
                self._life.reseed(user)
                report.outcome = "reseeding"
        except ReplicaBroken as error:
            self._life.broken(active, error)
            return AuditReport(user, "reseeding")
        finally:
            active.readers -= 1
        return report

    async def _audit(self, active: Active, *, repair: bool) -> AuditReport:
        user = active.replica.user
        for _ in range(_ATTEMPTS):
            await self._sync.pull(active)
            if user in self._life.seeds:
                return AuditReport(user, "seeding")
            report = await self._compare(active, repair=repair)
            if report is not None:
                return report
        return AuditReport(user, "moving")

    async def audit_idle(self) -> None:
        """Audit, and mend, the replica that was not for longest, of those that nobody reads just now.

        Raises:
            PrimaryUnavailable: it could not be asked.
        """
        now = self._clock.monotonic()
        if now < self._next_at:
            return
        idle = [a for a in self._life.active.values() if now - a.used_at >= _IDLE_S and not a.is_in_use]
        if not idle:
            return
        active = min(idle, key=lambda a: a.audited_at)
        active.audited_at = now
        report = await self.audit(active, repair=True)
        rows = sum(kind.primary_rows for kind in report.kinds)
        self._next_at = self._clock.monotonic() + rows / _ROWS_PER_S

    async def _compare(self, active: Active, *, repair: bool) -> AuditReport | None:
        """The report; None when the two were not at the same version for as long as it took."""
        replica = active.replica
        user, cursor = replica.user, replica.cursor
        found: list[_Difference] = []
        async with (
            self._primary.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            epoch, heads = await heads_of(connection, [user])
            if heads.get(user, START._replace(epoch=epoch)) != cursor:
                return None
            for kind in FILTERS:
                difference = await self._compare_kind(connection, active, cursor, kind)
                if difference is None:
                    return None
                found.append(difference)
        outcome = "differs" if any(difference.differs for difference in found) else "equal"
        if outcome == "differs" and repair:
            # A new version first: clients that kept the wrong content must not be told that nothing changed, whatever
            # happens to us after the repair.
            await self._primary.write(user, lambda connection: touch(connection, user))
            if active.is_closed or replica.cursor != cursor:
                return None
            outcome = self._mend(active, cursor, [change for difference in found for change in difference.changes])
        self._metrics.audits += 1
        if outcome != "equal":
            self._metrics.divergences += 1
            for difference in found:
                difference.log(user, cursor.version, outcome)
        kinds = [difference.report() for difference in found]
        return AuditReport(user, outcome, cursor.epoch, cursor.version, kinds)

    async def _compare_kind(
        self, connection: Connection, active: Active, cursor: Cursor, kind: str
    ) -> _Difference | None:
        difference = _Difference(kind)
        source = await connection.cursor(ordered_rows(kind), active.replica.user)
        after, last = "", ""
        while True:
            rows = [self._documents.row(kind, row["source"]) for row in await source.fetch(_BATCH)]
            if active.is_closed or active.replica.cursor != cursor:
                return None
            after, last = last, rows[-1].id if rows else last
            is_end = len(rows) < _BATCH
            difference.compare(active.replica.rows(kind, after, None if is_end else last), rows)
            if is_end:
                return difference

    def _mend(self, active: Active, cursor: Cursor, changes: list[Applied]) -> str:
        if not changes or len(changes) > MAX_MENDED:  # the same rows in another order, or twice: no row to mend
            self._life.reseed(active.replica.user)
            return "reseeding"
        try:
            active.replica.apply(cursor, changes)
        except DiskFull as error:
            raise Retryable(str(error)) from error
        self._slots.stamp(active)  # other content at the same version: who kept the wrong one has to ask
        return "repaired"


class _Difference:
    """Where the rows of one kind differ."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.changes: list[Applied] = []
        self._ids: dict[str, list[str]] = {"missing": [], "extra": [], "different": []}
        self._counts = [0, 0]
        self._hashes = (hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16))

    def compare(self, replica: list[Row], primary: list[Row]) -> None:
        """One range of ids, all rows of both sides."""
        for side, rows in enumerate((replica, primary)):
            self._counts[side] += len(rows)
            for row in rows:
                self._hashes[side].update(_encoded(row))
        mine = {row.id: row for row in replica}
        for row in primary:
            own = mine.pop(row.id, None)
            if own is None:
                self._note("missing", row.id, row)
            elif _encoded(own) != _encoded(row):
                self._note("different", row.id, row)
        for row_id in mine:
            self._note("extra", row_id, None)

    @property
    def differs(self) -> bool:
        replica, primary = self._hashes
        return replica.digest() != primary.digest()

    def _note(self, how: str, row_id: str, row: Row | None) -> None:
        # A damaged id may be of any type.
        self._ids[how].append(row_id if isinstance(row_id, str) else repr(row_id))
        self.changes.append(Applied(self.kind, row_id, row))

    def report(self) -> KindAudit:
        replica_rows, primary_rows = self._counts
        replica_hash, primary_hash = (digest.hexdigest() for digest in self._hashes)
        missing, extra, different = (ids[:MAX_NAMED] for ids in self._ids.values())
        return KindAudit(
            self.kind, replica_rows, primary_rows, replica_hash, primary_hash, missing, extra, different,
            len(self.changes),
        )  # fmt: skip

    def log(self, user: str, version: int, outcome: str) -> None:
        if self.differs:
            ids = {how: found[:MAX_NAMED] for how, found in self._ids.items() if found}
            log.error(
                "replica.diverged", user=user, version=version, kind=self.kind, rows=len(self.changes),
                outcome=outcome, **ids,
            )  # fmt: skip


def _encoded(row: Row) -> bytes:
    # SQLite has no booleans: what was written as True comes back as 1.
    values: list[Any] = [int(value) if isinstance(value, bool) else value for value in row.filters]
    return msgspec.msgpack.encode((row.id, values, row.document))
