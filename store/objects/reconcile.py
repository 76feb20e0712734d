"""Do rows and objects agree? Both are read once, in the order of their keys, and compared side by side.

The keys of all rows are copied into a temporary table, so that no transaction stays open while a bucket is listed, and
memory holds a page of each side. What differs is asked about again before it counts: an upload or a deletion may have
come in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

import msgspec

from store.deletions import waiting
from store.errors import ObjectMissing, PictureError
from store.objects.interface import ObjectInfo, Objects
from store.objects.keys import is_key, named_key, thumb_key
from store.objects.pictures import Picture
from store.primary import Connection, Primary

__all__ = ["ORPHAN_AGE", "Finding", "Prepare", "Report", "reconcile"]

Prepare = Callable[[bytes], Awaitable[Picture]]

_PAGE: Final = 5000
_BATCH: Final = 500
#: Younger objects may be uploads whose rows are about to come.
ORPHAN_AGE: Final = timedelta(hours=1)

#: All keys of all rows, also the small thumbnail's, which no column names; and of a thumbnail its picture.
_KEYS: Final = """
create temporary table known_keys as
select k collate "C" as key, case when k <> object_key then object_key end as picture
from (select object_key, thumb_key from images union all select object_key, thumb_key from reference_images) r
cross join object_keys(object_key, thumb_key) k
"""
_INDEX: Final = "create index on known_keys (key)"
_NEXT: Final = "select key, picture from known_keys where key > $1 order by key limit $2"
# Those of $1 that a row has now.
_USED: Final = " union all ".join(
    f"""
select k from {table} t cross join object_keys(t.object_key, t.thumb_key) k
where (t.object_key = any($1::text[]) or t.thumb_key = any($2::text[])) and k = any($1::text[])"""
    for table in ("images", "reference_images")
)
# Those of $1 that a job in work has named: its images' rows are about to come, however long that takes.
_NAMED: Final = """
select k from queue q join attempts a on a.job_id = q.job_id cross join unnest(a.object_keys) o
cross join object_keys(o, regexp_replace(o, '[.][^.]*$', '.thumb.webp')) k
where q.fence > 0 and k = any($1::text[])
"""
_LISTED: Final = "select key from deletions where key = any($1::text[])"
_LIST: Final = "insert into deletions (key) select k from unnest($1::text[]) k on conflict do nothing"


class Finding(msgspec.Struct, frozen=True):
    """One key about which rows and objects differ.

    orphan    an object that no row refers to, older than an hour, and not about to be deleted
    missing   a row's object that is not there
    """

    kind: Literal["orphan", "missing"]
    key: str
    size_bytes: int = 0
    repaired: str = ""  # what was done about it; empty: nothing


class Report(msgspec.Struct):
    """Counts of a whole run. `bytes` are those of the orphans."""

    rows: int = 0  # keys in rows
    objects: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    missing: int = 0
    repaired: int = 0
    waiting: int = 0  # objects that are about to be deleted: no finding

    @property
    def is_good(self) -> bool:
        return self.orphans + self.missing == self.repaired


async def reconcile(
    primary: Primary,
    objects: Objects,
    *,
    now: datetime,
    prepare: Prepare | None = None,
    found: Callable[[Finding], None] = lambda finding: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Compare all rows with all objects. `found` hears of each difference, `progress` of keys passed and keys in rows.

    With `prepare`, which reads a picture (see pictures), what can be is repaired: orphans are put on the list of
    deletions, which gateways work off, and missing thumbnails are made again. A missing picture can only come from a
    backup: it is told, and its row stays.

    Raises:
        PrimaryUnavailable, ObjectError: not finished; what was repaired is.
    """
    report = Report()
    async with primary.connection() as connection:
        try:
            await connection.execute(_KEYS)
            await connection.execute(_INDEX)
            report.rows = await connection.fetchval("select count(*) from known_keys")
            run = _Run(connection, objects, report, found, prepare=prepare, orphans_before=now - ORPHAN_AGE)
            await run.compare(progress)
            report.waiting = await waiting(primary)
        finally:
            await connection.execute("drop table if exists known_keys")
    return report


class _Known(NamedTuple):
    """A key that a row has, and of a thumbnail the key of its picture."""

    key: str
    picture: str | None


class _Run:
    """One comparison. Suspects wait for each other, to be asked about many at a time."""

    def __init__(
        self,
        connection: Connection,
        objects: Objects,
        report: Report,
        found: Callable[[Finding], None],
        *,
        prepare: Prepare | None,
        orphans_before: datetime,
    ) -> None:
        self._connection = connection
        self._objects = objects
        self._report = report
        self._found = found
        self._prepare = prepare
        self._orphans_before = orphans_before
        self._passed = 0
        self._orphans: dict[str, ObjectInfo] = {}
        self._missing: dict[str, str | None] = {}

    async def compare(self, progress: Callable[[int, int], None]) -> None:
        rows = self._rows()
        row = await anext(rows, None)
        async for info in self._objects.scan():
            self._report.objects += 1
            while row is not None and row.key < info.key:
                await self._saw_missing(row)
                row = await anext(rows, None)
            if row is not None and row.key == info.key:
                row = await anext(rows, None)
            elif info.modified_at < self._orphans_before:
                self._orphans[info.key] = info
                if len(self._orphans) >= _BATCH:
                    await self._settle_orphans()
            if self._report.objects % _BATCH == 0:
                progress(self._passed, self._report.rows)
        while row is not None:
            await self._saw_missing(row)
            row = await anext(rows, None)
        await self._settle_orphans()
        await self._settle_missing()
        progress(self._passed, self._report.rows)

    async def _rows(self) -> AsyncIterator[_Known]:
        """The keys of all rows, ascending."""
        after = ""
        while page := await self._connection.fetch(_NEXT, after, _PAGE):
            for row in page:
                self._passed += 1
                yield _Known(*row)
            after = page[-1]["key"]

    async def _saw_missing(self, row: _Known) -> None:
        self._missing[row.key] = row.picture
        if len(self._missing) >= _BATCH:
            await self._settle_missing()

    async def _used(self, keys: list[str]) -> set[str]:
        named = [named_key(key) for key in keys]
        return {row[0] for row in await self._connection.fetch(_USED, keys, named)}

    async def _settle_orphans(self) -> None:
        suspects, self._orphans = self._orphans, {}
        keys = list(suspects)
        listed = {row[0] for row in await self._connection.fetch(_LISTED, keys)}
        named = {row[0] for row in await self._connection.fetch(_NAMED, keys)}
        known = listed | named | await self._used(keys)  # rows last: a job that ended meanwhile has them
        orphans = [info for key, info in suspects.items() if key not in known]
        if self._prepare is not None:
            await self._connection.execute(_LIST, [info.key for info in orphans])
        for info in orphans:
            self._report.orphans += 1
            self._report.orphan_bytes += info.size_bytes
            self._tell(
                Finding("orphan", info.key, info.size_bytes, "to be deleted" if self._prepare is not None else "")
            )

    async def _settle_missing(self) -> None:
        suspects, self._missing = self._missing, {}
        used = await self._used(list(suspects))
        for key, picture in suspects.items():
            # The row may be gone since, and an object that came after the scan had passed its key is there now.
            if key not in used or (is_key(key) and await self._objects.exists(key)):
                continue
            is_made = picture is not None and await self._make_thumb(key, picture)
            self._report.missing += 1
            self._tell(Finding("missing", key, repaired="made again" if is_made else ""))

    async def _make_thumb(self, key: str, picture: str) -> bool:
        if self._prepare is None or not (is_key(key) and is_key(picture)):
            return False
        try:
            prepared = await self._prepare(await self._objects.get(picture))
            await self._objects.put(key, prepared.thumb if key == thumb_key(picture) else prepared.small_thumb)
        except (ObjectMissing, PictureError):
            return False
        return True

    def _tell(self, finding: Finding) -> None:
        self._report.repaired += bool(finding.repaired)
        self._found(finding)
