"""/admin: what operators ask, over HTTP with an admin's token."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from gateway.auth import need
from gateway.errors import BadRequest
from gateway.operators import Operators
from gateway.routes.context import GATEWAY, flag, only_parameters

__all__ = [
    "audit",
    "erase",
    "export",
    "hosts",
    "inspect",
    "overview",
    "passivate",
    "replicas",
    "reseed",
    "rotate_epoch",
    "users",
]


async def hosts(request: web.Request) -> web.Response:
    """GET /admin/hosts."""
    return _answer("hosts", await (await _operators(request)).hosts())


async def overview(request: web.Request) -> web.Response:
    """GET /admin/overview."""
    return _answer("overview", await (await _operators(request)).overview())


async def replicas(request: web.Request) -> web.Response:
    """GET /admin/replicas."""
    return _answer("replicas", await (await _operators(request)).replicas())


async def users(request: web.Request) -> web.Response:
    """GET /admin/users?after=…&limit=…"""
    operators = await _operators(request, "after", "limit")
    limit = request.query.get("limit", "100")
    if not (limit.isascii() and limit.isdigit() and 1 <= len(limit) <= 4 and 1 <= int(limit) <= 1000):
        raise BadRequest("limit must be a whole number from 1 to 1000", field="limit")
    return _answer("users", await operators.users(request.query.get("after", "").replace("\0", ""), int(limit)))


async def erase(request: web.Request) -> web.Response:
    """DELETE /admin/users/{user}: the user, and all that they have, for good."""
    operators = await _operators(request)
    erased = await operators.erase(request.match_info["user"])
    request.app[GATEWAY].housekeeping.objects_soon()
    return _answer("erased", erased)


async def inspect(request: web.Request) -> web.Response:
    """GET /admin/users/{user}/replica."""
    return _answer("replica", await (await _operators(request)).inspect(request.match_info["user"]))


async def passivate(request: web.Request) -> web.Response:
    """POST /admin/users/{user}/replica/passivate."""
    return _answer("replica", await (await _operators(request)).passivate(request.match_info["user"]))


async def reseed(request: web.Request) -> web.Response:
    """POST /admin/users/{user}/replica/reseed."""
    return _answer("replica", await (await _operators(request)).reseed(request.match_info["user"]))


async def audit(request: web.Request) -> web.Response:
    """POST /admin/users/{user}/replica/audit[?repair=1]."""
    operators = await _operators(request, "repair")
    repair = flag(request, "repair")
    return _answer("audit", await operators.audit(request.match_info["user"], repair=repair))


async def export(request: web.Request) -> web.StreamResponse:
    """GET /admin/users/{user}/replica/export: the user's replica as a SQLite file."""
    operators = await _operators(request)
    with tempfile.TemporaryDirectory(prefix="peruse-export-") as folder:
        path = Path(folder) / "replica.db"
        await operators.export(request.match_info["user"], path)
        response = web.FileResponse(
            path,
            headers={
                "Content-Type": "application/vnd.sqlite3",
                "Content-Disposition": 'attachment; filename="replica.db"',
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
            },
        )
        # Sent before the folder goes.
        await response.prepare(request)
        await response.write_eof()
        return response


async def rotate_epoch(request: web.Request) -> web.Response:
    """POST /admin/epoch/rotate."""
    operators = await _operators(request)
    return _answer("epoch", await operators.rotate_epoch())


async def _operators(request: web.Request, *parameters: str) -> Operators:
    gateway = request.app[GATEWAY]
    need(await gateway.auth.identify(request.headers.get("Authorization")), "admin")
    only_parameters(request, *parameters)
    return gateway.operators


def _answer(name: str, value: Any) -> web.Response:
    body = msgspec.json.encode({"success": True, name: value})
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
