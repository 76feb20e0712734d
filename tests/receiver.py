"""Somebody's server that webhooks are sent to, on 127.0.0.1; and what a receiver checks, written from the standard."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiohttp import web

from store.primary import Primary
from store.sealing import Sealer
from store.webhook_posting import Poster
from store.webhook_sending import WebhookSender

__all__ = ["Message", "Receiver", "is_signed", "sending"]


class Message(NamedTuple):
    """A request that came; header names in small letters."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Receiver:
    """`start`, `stop`; `answer` may be replaced: a status, or a handler."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.answer: int | Handler = 200
        self.now = self.most = 0

    async def start(self) -> None:
        server = web.Server(self._handle)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.origin = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.messages.append(Message(request.raw_path, headers, await request.read()))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if isinstance(self.answer, int):
                return web.Response(status=self.answer, text=f"said {self.answer}")
            return await self.answer(request)
        finally:
            self.now -= 1

    def of(self, event: str) -> list[Message]:
        return [message for message in self.messages if message.json["type"] == event]


def is_signed(message: Message, secret: str) -> bool:
    """As https://www.standardwebhooks.com says a receiver checks: any `v1` signature, a time at most 5 minutes away."""
    if abs(time.time() - int(message.headers["webhook-timestamp"])) > 300:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    signed = b".".join([message.id.encode(), message.headers["webhook-timestamp"].encode(), message.body])
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = message.headers["webhook-signature"].split(" ")
    return any(hmac.compare_digest(one, f"v1,{expected}") for one in given)


@asynccontextmanager
async def sending(primary: Primary, sealer: Sealer, *allow: str, **options: Any) -> AsyncIterator[WebhookSender]:
    """A sender that runs until the end of the block; one that looks often."""
    poster = Poster(allow=allow, timeout_s=options.pop("timeout_s", 10.0), resolver=options.pop("resolver", None))
    sender = WebhookSender(primary, sealer, poster, **{"poll_s": 0.02, **options})
    task = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
