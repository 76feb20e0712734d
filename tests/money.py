"""Jobs and credits by plain SQL, as another service would write them."""

from __future__ import annotations

import uuid
from typing import Any

from tests.world import add_images

__all__ = ["add_job", "add_user", "balance_of", "end_job", "give", "lines_of"]


async def add_user(connection: Any, user: str, tenths: int = 0) -> None:
    """A user who has `tenths`."""
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
    if tenths:
        await give(connection, user, tenths)


async def give(connection: Any, user: str, tenths: int, reason: str = "") -> None:
    await connection.execute(
        "insert into credit_ledger (owner_id, kind, amount_tenths, reason) values ($1, 'grant', $2, $3)",
        user, tenths, reason,
    )  # fmt: skip


async def add_job(connection: Any, user: str, price: int = 0, *, n: int = 1, **columns: Any) -> uuid.UUID:
    """A job that costs `price` tenths altogether; pending unless `columns` say otherwise."""
    values = {"prompt": f"of {user}", "provider": "builtin", "model": "builtin", **columns}
    marks = ", ".join(f"${i}" for i in range(4, 4 + len(values)))
    return await connection.fetchval(
        f"insert into jobs (owner_id, price_tenths, n, {', '.join(values)}) values ($1, $2, $3, {marks}) returning id",
        user, price, n, *values.values(),
    )  # fmt: skip


async def end_job(connection: Any, user: str, job: uuid.UUID, state: str, delivered: int = 0) -> list[uuid.UUID]:
    """Ends the job; answers the ids of the images that it delivered."""
    images = await add_images(connection, user, delivered, job_id=job)
    await connection.execute("update jobs set state = $2, image_ids = $3 where id = $1", job, state, images)
    return images


async def balance_of(connection: Any, user: str) -> tuple[int, int]:
    """Balance and holds, in tenths."""
    return tuple(
        await connection.fetchrow("select balance_tenths, held_tenths from accounts where owner_id = $1", user)
    )


async def lines_of(connection: Any, user: str) -> list[tuple[str, int, int]]:
    """Kind, amount and the balance after it, the oldest first."""
    sql = "select kind, amount_tenths, balance_tenths from credit_ledger where owner_id = $1 order by at, id"
    return [tuple(row) for row in await connection.fetch(sql, user)]
