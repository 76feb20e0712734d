"""The caller's usage."""

from __future__ import annotations

from aiohttp import web

from gateway.routes.context import caller, stats_response

__all__ = ["stats"]


async def stats(request: web.Request) -> web.StreamResponse:
    """GET /api/stats: totals of all days, and the last `days` of them, from the caller's replica.

    Six totals are there twice: generationsCount, generationsSuccess, generationsFailed, creditsUsed, modelUsage and
    storageUsedBytes are what other services call generations_count and so on. Days without a generation are left out.
    """
    return await stats_response(request, (await caller(request)).user)
