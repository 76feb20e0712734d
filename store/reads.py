"""Reads from the primary: the same pages as a replica's, for when no replica can answer.

One host serves several times what the primary can: a dead host must not swamp it. So these reads have a pool of
their own, a bounded queue, and equal ones share one statement.

The pool's few connections keep the primary from harm; the queue is bound by time. Who has waited for the pool's time
leaves it, so a long queue is never answered to readers who have gone, and a thousand cold users at once get their turn.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Final, NamedTuple

from store.documents import Documents
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.gallery import decode_query
from store.lists import ListQuery, OneQuery, for_postgres, one_body, one_from_postgres, page_body
from store.primary import Primary
from store.usage import SummaryQuery, summary_from_postgres

__all__ = ["Page", "PrimaryReads"]


#: What four connections can answer within the two seconds that a reader queues, at 2 ms each. More would only wait to
#: be refused, and each costs some kilobytes meanwhile.
MAX_WAITING: Final = 4096


class Page(NamedTuple):
    """An answer and the position it is true for; body None: there is no such row."""

    at: Bookmark
    body: bytes | None


class PrimaryReads:
    """Answers queries from the primary, at most `max_waiting` at a time. `primary` should wait less long for a
    connection than readers wait for an answer."""

    def __init__(self, primary: Primary, documents: Documents, *, max_waiting: int = MAX_WAITING) -> None:
        self._primary = primary
        self._documents = documents
        self._max_waiting = max_waiting
        self._shared: dict[tuple[str, bytes], asyncio.Task[Page]] = {}

    async def read(self, user: str, encoded: bytes, *, floor: Bookmark | None = None, timeout_s: float = 2.5) -> Page:
        """The page of `user` for a query, from one snapshot, never older than `floor` unless the primary is.

        Raises:
            PrimaryUnavailable: away, too slow, or too many are waiting.
        """
        key = (user, encoded)
        try:
            async with asyncio.timeout(timeout_s):
                shared = self._shared.get(key)
                if shared is not None:
                    page = await asyncio.shield(shared)
                    # It was sent before we came: what we have to see may have been written since.
                    if floor is None or not floor.is_after(*page.at):
                        return page
                    # Others who waited with us are in the same position: one of us sends, and the rest join.
                    again = self._shared.get(key)
                    if again is not None and again is not shared:
                        return await asyncio.shield(again)
                return await asyncio.shield(self._start(key))
        except TimeoutError:
            raise PrimaryUnavailable(f"the primary did not answer within {timeout_s} s") from None

    def _start(self, key: tuple[str, bytes]) -> asyncio.Task[Page]:
        if len(self._shared) >= self._max_waiting:
            raise PrimaryUnavailable(f"{self._max_waiting} reads wait for the primary already")
        task = asyncio.create_task(self._read(*key))
        self._shared[key] = task
        task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def _forget(self, key: tuple[str, bytes], task: asyncio.Task[Page]) -> None:
        if self._shared.get(key) is task:
            del self._shared[key]
        if not task.cancelled():
            task.exception()  # everybody who waited may have given up: then nobody else looks at it

    async def _read(self, user: str, encoded: bytes) -> Page:
        query = decode_query(encoded)
        if isinstance(query, ListQuery):
            return await self._list(user, query)
        if isinstance(query, OneQuery):
            return await self._one(user, query)
        return await self._summary(user, query)

    async def _list(self, user: str, query: ListQuery) -> Page:
        sql, values = for_postgres(query, user)
        rows = await self._primary.fetch(sql, *values)
        made = [
            (self._document(query.kind, source), created_at, row_id)
            for _, _, source, created_at, row_id in rows
            if source is not None
        ]
        return Page(Bookmark(rows[0][0], rows[0][1]), page_body(query, made))

    async def _one(self, user: str, query: OneQuery) -> Page:
        (row,) = await self._primary.fetch(one_from_postgres(query.kind), user, uuid.UUID(query.id))
        body = None if row[2] is None else one_body(query.kind, self._document(query.kind, row[2]))
        return Page(Bookmark(row[0], row[1]), body)

    async def _summary(self, user: str, query: SummaryQuery) -> Page:
        (row,) = await self._primary.fetch(summary_from_postgres(query.kinds), user)
        documents = {
            kind: [self._document(kind, source) for source in sources]
            for kind, sources in zip(query.kinds, row[2:], strict=True)
        }
        return Page(Bookmark(row[0], row[1]), query.body(documents))

    def _document(self, kind: str, source: str) -> bytes:
        return self._documents.row(kind, source).document
