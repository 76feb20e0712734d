"""Peers on aiohttp, one process each: `python -m tests.bench.peers.handlers KIND ARGUMENT`.

bare FILE       answers the bytes of FILE and does nothing else: what aiohttp can do at best
postgres USER   asks Postgres for the page at every request, in one statement that makes the JSON, over a warm pool and
                with prepared statements. The database's address comes from the environment: it may hold a password
redis FILE      gets the page from a redis-server of its own, over a Unix socket and hiredis
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp import web

__all__ = ["PRIMARY_VARIABLE", "answer_until_told"]

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
    import asyncpg

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


async def redis_handler(page: bytes, folder: Path) -> Handler:
    """Answers `page`, which a redis-server in `folder` holds; it ends with this process."""
    from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

    from tests.bench.peers.needs import tool
    from tests.bench.process import Process

    socket = folder / "redis.sock"
    command = [tool("redis-server"), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    server = Process("redis-server", command, log=folder / "peers.log")
    pool = BlockingConnectionPool(
        connection_class=UnixDomainSocketConnection, path=str(socket), max_connections=_CONNECTIONS, timeout=None
    )
    redis = Redis(connection_pool=pool)
    server.wait_until(socket.exists, what="open its socket")
    await redis.set("page:ana", page)

    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=await redis.get("page:ana"), content_type="application/json")

    return handle


async def answer_until_told(handler: Handler) -> None:
    """Serve `handler` on a free port, say `ready URL`, and end with SIGTERM."""
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


async def _serve(kind: str, argument: str) -> None:
    if kind == "bare":
        handler = bare_handler(Path(argument).read_bytes())
    elif kind == "postgres":
        handler = await postgres_handler(os.environ[PRIMARY_VARIABLE], argument)
    elif kind == "redis":
        handler = await redis_handler(Path(argument).read_bytes(), Path(argument).parent)
    else:
        raise SystemExit(f"peer {kind!r} is none of bare, postgres, redis")
    await answer_until_told(handler)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2]))
