"""A listener to an event stream, as a browser's EventSource reads it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from actors.host import ReplicaHost
from tests.gateway.link import PrimaryLink
from tests.world import World

__all__ = ["FarWorld", "Listener", "Message", "listening"]


class FarWorld(World):
    """Its gateway reaches the primary over a link, its host without."""

    def __init__(self, data: Path, link: PrimaryLink, database: str) -> None:
        super().__init__(data, link.url)
        self._near = database

    async def start_host(self, slot: int) -> ReplicaHost:
        far, self.database = self.database, self._near
        try:
            return await super().start_host(slot)
        finally:
            self.database = far


class Message(NamedTuple):
    """One dispatched event. `event` is "message" or "resync"."""

    id: str
    event: str
    data: Any


class Listener:
    """Reads one stream; `last_id` is what an EventSource would send when it comes back."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.last_id = ""
        self.comments = 0
        self._early: list[Message] = []

    async def begun(self) -> str:
        """The position at which the stream starts, or its first message's."""
        async with asyncio.timeout(10):
            while not self.last_id:
                message = await self._block()
                if message is not None:
                    self._early.append(message)
        return self.last_id

    async def next(self, *, timeout_s: float = 10.0) -> Message:
        """The next event that is dispatched."""
        if self._early:
            return self._early.pop(0)
        async with asyncio.timeout(timeout_s):
            while True:
                message = await self._block()
                if message is not None:
                    return message

    async def ended(self, *, timeout_s: float = 10.0) -> None:
        """Returns at the end of the stream."""
        try:
            while True:
                await self.next(timeout_s=timeout_s)
        except EOFError:
            return

    async def _block(self) -> Message | None:
        """One block, up to its empty line; None when it dispatches nothing."""
        event, last_id, data = "message", self.last_id, []
        while line := (await self._line()).rstrip("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                last_id = value
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)
            elif name == "":
                self.comments += 1
        self.last_id = last_id  # not before the empty line: a block that breaks off counts for nothing
        return Message(last_id, event, json.loads("\n".join(data))) if data else None

    async def _line(self) -> str:
        line = await self.answer.content.readline()
        if not line:
            raise EOFError
        return line.decode()


@asynccontextmanager
async def listening(
    world: World, user: str, *, last_id: str | None = None, headers: dict[str, str] | None = None
) -> AsyncIterator[Listener]:
    """`user` listening to their own events."""
    sent = {"Authorization": f"Bearer {world.token(user)}", **(headers or {})}
    if last_id is not None:
        sent["Last-Event-ID"] = last_id
    timeout = aiohttp.ClientTimeout(total=None)
    async with world.http.get("/api/events", headers=sent, timeout=timeout) as answer:
        assert answer.status == 200, await answer.text()
        yield Listener(answer)
