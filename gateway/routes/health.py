"""Health for load balancers, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web

from actors import HostStats, read_worker_stats
from gateway.metrics import exposition
from gateway.routes.context import GATEWAY
from store.errors import PrimaryUnavailable
from store.hosts import HostRow

if TYPE_CHECKING:
    from gateway.app import Gateway

__all__ = ["healthz", "metrics", "readyz"]

_NO_HEARTBEAT_S: Final = 10.0
#: A host that is further behind than this, with the primary up, is lagging.
_LAG_S: Final = 5.0


async def healthz(request: web.Request) -> web.Response:
    """GET /healthz: this process answers."""
    return web.json_response({"success": True}, headers={"Cache-Control": "no-store"})


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: 503 until a host has answered once; later only while nobody can answer reads, or while the
    primary is up and for 10 s no heartbeat has come through it of a host that is not stuck.

    `hosts` says one word for each: live, idle (no user's replica is open), lagging (behind the primary), stuck (its own
    writes do not come back through its sync), silent (it beats, and does not answer us), draining, gone.
    """
    gateway = request.app[GATEWAY]
    stats, primary_up = await asyncio.gather(gateway.client.stats(), _primary_answers(gateway))
    membership = gateway.client.membership
    live = {row.id for row in gateway.client.hosts if row.is_live}
    is_answered = any(answer.host in live for answer in stats)
    beats = time.monotonic() - membership.beat_seen_at <= _NO_HEARTBEAT_S
    ready = membership.was_answered and (is_answered or primary_up) and (beats or not primary_up)
    answers = {answer.host: answer for answer in stats}
    body = {
        "success": ready,
        "ready": ready,
        "primary": "up" if primary_up else "down",
        "hosts": {row.id: _word(row, answers.get(row.id), primary_up=primary_up) for row in gateway.client.hosts},
        "lag_s": round(max((s.lag_s for s in stats), default=0.0), 3),
    }
    return web.json_response(body, status=200 if ready else 503, headers={"Cache-Control": "no-store"})


def _word(row: HostRow, stats: HostStats | None, *, primary_up: bool) -> str:
    if not row.is_live:
        return row.word
    if stats is None:
        return "silent"
    if stats.is_stuck:
        return "stuck"
    if stats.lag_s > _LAG_S and primary_up:
        return "lagging"
    return "live" if stats.active else "idle"


async def _primary_answers(gateway: Gateway) -> bool:
    try:
        async with asyncio.timeout(1.0):
            await gateway.fallback.fetch("select 1")
    except (PrimaryUnavailable, TimeoutError):
        return False
    return True


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: this gateway's counters, those of the hosts that answer, and of the workers of this machine."""
    gateway = request.app[GATEWAY]
    hosts, workers = await gateway.client.stats(), read_worker_stats(gateway.data)
    body = exposition(gateway.index, gateway.metrics, hosts, workers)
    return web.Response(body=body, content_type="text/plain", charset="utf-8")
