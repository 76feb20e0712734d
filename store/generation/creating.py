"""Jobs from a plan: one transaction for all of a request, with the holds that its triggers take."""

from __future__ import annotations

import time
import uuid
from typing import Final, NamedTuple

from store.credits import refusals
from store.generation.funds import funds_of
from store.generation.params import encode_params
from store.generation.planning import Draft, Plan
from store.ids import new_id
from store.primary import Connection
from store.users import ensure_user

__all__ = ["Created", "create"]

_BATCH: Final = "insert into batches (id, owner_id, kind) values ($1, $2, $3)"
_JOB: Final = """
insert into jobs (id, owner_id, batch_id, kind, prompt, params, image_size, watermark, n, provider, model, own_key,
  price_tenths)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
"""


class Created(NamedTuple):
    """The jobs in the order of the plan, and the row that holds them together if there are many."""

    jobs: tuple[uuid.UUID, ...]
    batch: uuid.UUID | None


async def create(connection: Connection, user: str, plan: Plan) -> Created:
    """Make the jobs of `plan`, in one transaction with whatever else the caller writes: all of them are held and
    queued, or none is.

    Raises:
        InsufficientCredits, BudgetExceeded: the whole of it is not covered.
    """
    await ensure_user(connection, user)
    if plan.price_tenths:
        (await funds_of(connection, user, hold=True)).check(plan.price_tenths)
    now_ms = int(time.time() * 1000)
    batch = None if plan.kind is None else new_id(now_ms)
    if batch is not None:
        await connection.execute(_BATCH, batch, user, plan.kind)
    rows = [_row(new_id(now_ms), user, batch, draft) for draft in plan.drafts]
    with refusals():
        await connection.executemany(_JOB, rows)
    return Created(tuple(row[0] for row in rows), batch)


def _row(row_id: uuid.UUID, user: str, batch: uuid.UUID | None, draft: Draft) -> tuple[uuid.UUID, *tuple[object, ...]]:
    return (
        row_id, user, batch, draft.kind, draft.prompt, encode_params(draft.params), draft.image_size, draft.watermark,
        draft.n, draft.model.provider, draft.model.id, draft.own_key, draft.price_tenths,
    )  # fmt: skip
