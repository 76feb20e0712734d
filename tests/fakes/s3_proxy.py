"""The way to an S3 server, with faults: each is met by the next request of its method, once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import ClientSession, DummyCookieJar, web

__all__ = ["Fault", "S3Proxy"]

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "date", "server"}
Deed = Literal["answer", "lose", "cut", "damage", "drip", "hang", "wait"]


@dataclass
class Fault:
    """What happens to one request.

    answer  it is not passed on, and answered with `status` and `code`
    lose    it is passed on and done, and its answer becomes `status` and `code`
    cut     the body of its answer ends after `after` bytes, without a word
    damage  one bit of the body of its answer is another
    drip    the body of its answer comes a byte at a time
    hang    it is passed on and done, and never answered
    wait    it waits for `gate` before it is passed on
    """

    method: str
    deed: Deed
    status: int = 503
    code: str = "SlowDown"
    after: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    met: asyncio.Event = field(default_factory=asyncio.Event)


class S3Proxy:
    """Copies requests to the server at `target`. `url` is its own endpoint; `seen` are the methods that came."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.faults: list[Fault] = []
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        self._session = ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar())
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self._stopping.set()
        await self._runner.cleanup()
        await self._session.close()

    def forget(self) -> None:
        """No faults, and nothing seen."""
        self.faults.clear()
        self.seen.clear()
        self.headers.clear()

    def add(self, method: str, deed: Deed, *, times: int = 1, **more: object) -> Fault:
        """One more fault for the next requests of this method; the last of `times` is returned."""
        made = [Fault(method, deed, **more) for _ in range(times)]  # type: ignore[arg-type]
        self.faults += made
        return made[-1]

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.method)
        self.headers.append(dict(request.headers))
        body = await request.read()
        fault = next((fault for fault in self.faults if fault.method == request.method), None)
        if fault is not None:
            self.faults.remove(fault)
            fault.met.set()
            if fault.deed == "answer":
                return _problem(fault)
            if fault.deed == "wait":
                await fault.gate.wait()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        async with self._session.request(
            request.method, self._target + request.raw_path, headers=headers, data=body, allow_redirects=False
        ) as answer:
            data = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
        if fault is None or fault.deed in ("answer", "wait"):
            return web.Response(status=answer.status, headers=kept, body=None if request.method == "HEAD" else data)
        if fault.deed == "lose":
            return _problem(fault)
        if fault.deed == "hang":
            await self._stopping.wait()
        if fault.deed == "damage":
            return web.Response(status=answer.status, headers=kept, body=bytes([data[0] ^ 1]) + data[1:])
        response = web.StreamResponse(status=answer.status, headers=kept)
        response.content_length = len(data)
        await response.prepare(request)
        if fault.deed == "cut":
            await response.write(data[: fault.after])
            assert request.transport is not None
            request.transport.close()
        else:
            for byte in data:
                await response.write(bytes([byte]))
                await asyncio.sleep(0.01)
        return response


def _problem(fault: Fault) -> web.Response:
    body = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>as told</Message></Error>"
    return web.Response(status=fault.status, text=body, content_type="application/xml")
