"""Generations as tests ask for them, and a worker's part played by plain SQL."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

from tests.world import Reply, World

__all__ = ["GENERATIONS", "begin", "complete", "ended", "fail", "generate", "grant", "money"]

GENERATIONS = "/api/generations"


async def generate(world: World, user: str, *, path: str = GENERATIONS, headers: Any = None, **body: Any) -> Reply:
    """POST of `body`; the model is `builtin` unless it says otherwise, for it costs nothing."""
    return await world.request("POST", path, user=user, json=body, headers=headers or {})


async def grant(world: World, user: str, tenths: int) -> None:
    """Credits for `user`, who is made if need be."""

    async def work(connection: Any) -> None:
        await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
        await connection.execute(
            "insert into credit_ledger (owner_id, kind, amount_tenths) values ($1, 'grant', $2)", user, tenths
        )

    await world.write(user, work)


async def money(world: World, user: str) -> tuple[int, int, list[int]]:
    """Balance and what is held, in tenths, and the amounts of the ledger, which are the balance together."""
    primary = world.gateway.primary
    rows = await primary.fetch("select balance_tenths, held_tenths from accounts where owner_id = $1", user)
    lines = await primary.fetch("select amount_tenths from credit_ledger where owner_id = $1 order by at, id", user)
    amounts = [line[0] for line in lines]
    assert sum(amounts) == (rows[0][0] if rows else 0)
    return (rows[0][0], rows[0][1], amounts) if rows else (0, 0, [])


async def begin(world: World, job: str, *, progress: float | None = None, position: int | None = None) -> None:
    """A worker takes the job."""

    async def work(connection: Any) -> None:
        await connection.execute("update jobs set state = 'processing' where id = $1 and state = 'pending'", _id(job))
        await connection.execute(
            "update queue set worker = 'w', lease_until = now() + interval '1 minute', progress = $2, "
            "provider_position = $3 where job_id = $1", _id(job), progress, position,
        )  # fmt: skip

    await world.write("", work)


async def complete(world: World, job: str, *, pictures: int = 1) -> list[str]:
    """The job's end with so many pictures; their ids."""

    async def work(connection: Any) -> list[str]:
        row = await connection.fetchrow("select owner_id, prompt, model, params from jobs where id = $1", _id(job))
        ids = [uuid.uuid4() for _ in range(pictures)]
        for number, row_id in enumerate(ids):
            await connection.execute(
                "insert into images (id, owner_id, object_key, content_type, size_bytes, width, height, prompt, model, "
                "seed, steps, job_id) values ($1, $2, $3, 'image/png', 9, 512, 512, $4, $5, $6, $7, $8)",
                row_id, row["owner_id"], f"generated/{secrets.token_hex(16)}/{number:013d}-{secrets.token_hex(16)}.png",
                row["prompt"], row["model"], 7 + number, 20, _id(job),
            )  # fmt: skip
        await connection.execute(
            "update jobs set state = 'completed', image_ids = $2, duration_ms = 1200 where id = $1", _id(job), ids
        )
        return [str(row_id) for row_id in ids]

    return await world.write("", work)


async def fail(world: World, job: str, code: str = "provider_failed") -> None:
    """The job's end without a picture."""
    sql = "update jobs set state = 'failed', error_code = $2, error_message = 'it broke' where id = $1"
    await world.write("", lambda connection: connection.execute(sql, _id(job), code))


async def ended(world: World, user: str, job: str) -> Reply:
    return await world.get(f"{GENERATIONS}/{job}", user=user)


def _id(job: str) -> uuid.UUID:
    return uuid.UUID(job)
