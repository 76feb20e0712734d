"""Canceling: what nobody works on ends at once; what somebody works on is asked to end."""

from __future__ import annotations

import uuid
from typing import Final, Literal

from store.errors import AlreadyEnded, NotFound
from store.generation.errors import Canceled
from store.primary import Connection

__all__ = ["cancel"]

# The queue's row first, as whoever works on the job takes it: the two never wait for each other.
_QUEUED: Final = "select worker from queue where job_id = $1 and owner_id = $2 for update"
# A call that is out, or that has given pictures, is for the runner to end, also while no worker has the job.
_IS_TOUCHED: Final = """
select exists (select from attempts where job_id = $1 and state in ('started', 'submitted', 'done'))
"""
_CANCEL: Final = """
update jobs set state = 'canceled', error_code = $2, error_message = 'The generation was canceled.',
  updated_at = clock_timestamp()
where id = $1
"""
_REQUEST: Final = "update queue set cancel_requested = true where job_id = $1"


async def cancel(connection: Connection, user: str, job_id: uuid.UUID) -> Literal["canceled", "requested"]:
    """End a job of `user`. "canceled": it is over, and all that it held is given back. "requested": its provider is
    asked to stop; pictures that exist by then are delivered and paid, without any it is canceled as above.

    Raises:
        NotFound: the user has no such job.
        AlreadyEnded: it is over.
    """
    queued = await connection.fetchrow(_QUEUED, job_id, user)
    if queued is None:
        state = await connection.fetchval("select state from jobs where id = $1 and owner_id = $2", job_id, user)
        if state is None:
            raise NotFound("Generation not found")
        raise AlreadyEnded(f"the generation is {state} already")
    if queued["worker"] is not None or await connection.fetchval(_IS_TOUCHED, job_id):
        await connection.execute(_REQUEST, job_id)
        return "requested"
    await connection.execute(_CANCEL, job_id, Canceled.code)
    return "canceled"
