"""Jobs of users, as plain SQL makes them: the hold, the refund and the day's usage follow in the primary."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.money import add_job, add_user, give

__all__ = ["add_jobs", "end_job", "grant"]


async def grant(connection: Any, user: str, tenths: int) -> None:
    """Give `user`, who need not be there yet, tenths of a credit."""
    await add_user(connection, user)
    await give(connection, user, tenths, "a gift")


async def add_jobs(connection: Any, user: str, count: int = 1, **columns: Any) -> list[uuid.UUID]:
    """Jobs that have just begun to wait; the newest last."""
    await add_user(connection, user)
    price = columns.pop("price_tenths", 0)
    return [
        await add_job(connection, user, price, **{"prompt": f"prompt {n} of {user}", **columns}) for n in range(count)
    ]


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
