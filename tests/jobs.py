"""Jobs of users, as plain SQL makes them: the hold, the refund and the day's usage follow in the primary."""

from __future__ import annotations

import json
import uuid
from typing import Any

__all__ = ["add_jobs", "end_job", "grant"]


async def grant(connection: Any, user: str, tenths: int) -> None:
    """Give `user`, who need not be there yet, tenths of a credit."""
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
    await connection.execute(
        "insert into credit_ledger (owner_id, kind, amount_tenths, reason) values ($1, 'grant', $2, 'a gift')",
        user,
        tenths,
    )


async def add_jobs(connection: Any, user: str, count: int = 1, **columns: Any) -> list[uuid.UUID]:
    """Jobs that have just begun to wait; the newest last."""
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
    ids = []
    for n in range(count):
        values = {"prompt": f"prompt {n} of {user}", "provider": "builtin", "model": "builtin", **columns}
        marks = ", ".join(f"${i}" for i in range(2, 2 + len(values)))
        sql = f"insert into jobs (owner_id, {', '.join(values)}) values ($1, {marks}) returning id"
        ids.append(await connection.fetchval(sql, user, *values.values()))
    return ids


async def end_job(connection: Any, job_id: uuid.UUID, state: str, *, pictures: int = 1, **columns: Any) -> None:
    """Bring a job to its end; `pictures` were delivered when it is completed."""
    values = {"duration_ms": 1500, "params": json.dumps({"steps": 4}), **columns}
    if state == "completed":
        values["image_ids"] = [uuid.uuid4() for _ in range(pictures)]
    elif state == "failed":
        values |= {"error_code": "provider_error", "error_message": "it is raining"}
    assignments = ", ".join(f"{name} = ${n}" for n, name in enumerate(values, start=3))
    await connection.execute(
        f"update jobs set state = $2, {assignments} where id = $1", job_id, state, *values.values()
    )
