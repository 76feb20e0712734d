"""The prompt history in the primary: what its user may change of it, which is only whether it is shown.

Each function works inside a transaction of `Primary.write` and names the owner in its WHERE, so that another user's
row is simply not there.
"""

from __future__ import annotations

import uuid
from typing import Final

from store.documents import Documents, projection
from store.errors import NotFound
from store.primary import Connection

__all__ = ["document", "hide"]

_HIDE: Final = """
update jobs set hidden_at = case when $3 then coalesce(hidden_at, clock_timestamp()) end
where id = $1 and owner_id = $2 returning true
"""
_DOCUMENT: Final = (
    f"select row_to_json(d) from (select {projection('jobs')} from jobs t where t.id = $1 and t.owner_id = $2) d"
)


async def hide(connection: Connection, owner: str, job_id: uuid.UUID, *, hidden: bool) -> None:
    """Hide a job from the history, or show it again; one that is hidden already keeps its time.

    Raises:
        NotFound: the owner has no such job.
    """
    if await connection.fetchval(_HIDE, job_id, owner, hidden) is None:
        raise NotFound("Prompt not found")


async def document(connection: Connection, owner: str, job_id: uuid.UUID, documents: Documents) -> bytes:
    """The job's document as this transaction sees it.

    Raises:
        NotFound: the owner has no such job.
    """
    source = await connection.fetchval(_DOCUMENT, job_id, owner)
    if source is None:
        raise NotFound("Prompt not found")
    return documents.row("jobs", source).document
