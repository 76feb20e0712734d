"""The caller's account."""

from __future__ import annotations

from aiohttp import web

from gateway.routes.context import account_response, caller

__all__ = ["get_account"]


async def get_account(request: web.Request) -> web.StreamResponse:
    """GET /api/account: plan, credits, budgets and storage, from the caller's replica."""
    return await account_response(request, (await caller(request)).user)
