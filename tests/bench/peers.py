"""What the hot read is compared with: the same page, from a process of its own.

`python -m tests.bench.peers bare FILE` answers the bytes of FILE and does nothing else: what aiohttp can do at best.
`python -m tests.bench.peers postgres USER` asks Postgres for the page at every request, in one statement that makes
the JSON, over a warm pool and with prepared statements. It checks no token and makes no page token, so the peer does
less than the gateway it is held against. Its database's address comes from the environment: it may hold a password.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import uvloop
from aiohttp import web

__all__ = ["PRIMARY_VARIABLE"]

PRIMARY_VARIABLE: Final = "BENCH_PRIMARY_URL"
#: Two to eight gave the same or up to a sixth less with 32 readers on two cores: the peer gets what suits it.
_CONNECTIONS: Final = 16
_TIME: Final = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
_PAGE: Final = f"""
select coalesce(json_agg(d), '[]')::text from (
    select id, '/files/' || object_key as url, '/files/' || thumb_key as thumb_url, thumbhash,
           split_part(object_key, '/', 3) as filename, content_type, size_bytes, width, height, prompt,
           negative_prompt, model, seed, steps, generation_params, job_id, parent_id, visibility, starred, title,
           moderation, {_TIME.format("trashed_at")} as trashed_at, {_TIME.format("created_at")} as created_at
    from images
    where owner_id = $1 and trashed_at is null
    order by images.created_at desc, images.id desc
    limit 50
) d
"""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def bare_handler(page: bytes) -> Handler:
    """Answers `page`."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=page, content_type="application/json")

    return handle


async def postgres_handler(url: str, user: str) -> Handler:
    """Answers `user`'s newest 50 images."""
    pool = await asyncpg.create_pool(
        url, min_size=_CONNECTIONS, max_size=_CONNECTIONS, max_inactive_connection_lifetime=0, reset=_keep_session
    )

    async def handle(request: web.Request) -> web.Response:
        async with pool.acquire() as connection:
            images = await connection.fetchval(_PAGE, user)  # prepared once per connection by asyncpg's cache
        body = b'{"success":true,"images":%s,"next_page_token":null}' % images.encode()
        return web.Response(body=body, content_type="application/json")

    return handle


async def _keep_session(connection: Any) -> None:
    """Instead of asyncpg's RESET ALL, a round trip at every release."""


async def _serve(kind: str, argument: str) -> None:
    if kind == "bare":
        handler = bare_handler(Path(argument).read_bytes())
    elif kind == "postgres":
        handler = await postgres_handler(os.environ[PRIMARY_VARIABLE], argument)
    else:
        raise SystemExit(f"peer {kind!r} is neither bare nor postgres")
    app = web.Application()
    app.router.add_get("/api/images", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"ready http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2]))
