"""The short ways to an answer: requests that repeat others (see repeats), and routes without variables, which are
resolved once, when the server starts, and not per request.

Everything else goes through aiohttp's router as ever; all ways end in the same limits, log lines and metrics.
Measured with `make bench`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.web_urldispatcher import PlainResource, UrlMappingMatchInfo

from gateway.repeats import Repeats, RepeatServer
from gateway.routes.context import GATEWAY

__all__ = ["HotRunner"]

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]
_METHODS: Final = frozenset({"GET"})


class HotRunner(web.AppRunner):
    """An AppRunner whose server looks a plain URL up in a dict before it asks the router."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        handle: Any = server.request_handler
        server.request_handler = _shortened(self.app, handle)  # type: ignore[assignment]
        gateway = self.app[GATEWAY]
        return RepeatServer(server, Repeats(gateway.auth, gateway.reads, gateway.metrics, gateway.requests))


def _shortened(app: web.Application, handle: Handle) -> Handle:
    ways = {(method, path): way for method, path, way in _plain_ways(app)}

    async def dispatch(request: web.Request) -> web.StreamResponse:
        way = ways.get((request.method, request.raw_path.partition("?")[0]))
        if way is None or hdrs.EXPECT in request.headers:
            return await handle(request)
        request._match_info = way[0]
        return await way[1](request)

    return dispatch


def _plain_ways(app: web.Application) -> list[tuple[str, str, tuple[UrlMappingMatchInfo, Handle]]]:
    ways = []
    for route in app.router.routes():
        if route.method in _METHODS and isinstance(route.resource, PlainResource):
            match_info = UrlMappingMatchInfo({}, route)
            match_info.add_app(app)
            match_info.freeze()
            match_info.current_app = app
            handler: Any = route.handler
            for middleware in reversed(app.middlewares):
                handler = partial(middleware, handler=handler)
            ways.append((route.method, route.resource.canonical, (match_info, handler)))
    return ways
