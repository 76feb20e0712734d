"""People who read and write while something breaks, and what they saw."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import httpx

from store.epoch import Bookmark
from tests.served import eventually

__all__ = ["Load", "Seen"]


class Seen(NamedTuple):
    """One read that was answered: when it was sent (monotonic seconds), how long it took, where it came from."""

    sent_at: float
    took_s: float
    source: str


class Load:
    """A writer and two readers of one user, who hold a bookmark each, and what they saw.

    `acked`: image id → the last title whose write was acknowledged. `unsure`: titles whose outcome nobody told.
    `went_back`: reads below the reader's own bookmark. `lost`: requests that ended without an answer.
    Without `ids` there is no writer. `pause_s` is what each of them waits between two requests.
    """

    def __init__(self, client: httpx.AsyncClient, ids: list[str], *, pause_s: float = 0.0) -> None:
        self.client = client
        self.ids = ids
        self.acked: dict[str, str] = {}
        self.unsure: dict[str, set[str]] = {}
        self.writes = 0
        self.seen: list[Seen] = []
        self.lost: list[str] = []
        self.last_read_at = self.last_write_at = time.monotonic()
        self.longest_pause_s = 0.0
        self.went_back: list[str] = []
        self._pause_s = pause_s
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def reads(self) -> int:
        return len(self.seen)

    async def __aenter__(self) -> Load:
        work = [self._read(), self._read(), *([self._write()] if self.ids else [])]
        self._tasks = [asyncio.create_task(one) for one in work]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        broken = [r for r in results if isinstance(r, Exception) and not isinstance(r, asyncio.CancelledError)]
        assert broken == []

    async def _write(self) -> None:
        n = 0
        while True:
            n += 1
            image, title = self.ids[n % len(self.ids)], f"title {n}"
            self.unsure.setdefault(image, set()).add(title)  # until somebody says how it went
            try:
                reply = await self.client.patch(f"/api/images/{image}", json={"title": title})
            except httpx.HTTPError as error:
                self.lost.append(f"write: {error!r}")
                await asyncio.sleep(0.02)
                continue
            if reply.status_code == 200:
                self.acked[image] = title
                del self.unsure[image]
                self.writes += 1
                self.last_write_at = time.monotonic()
                await asyncio.sleep(self._pause_s)
            else:
                assert reply.status_code == 503, reply.text
                assert reply.headers["Retry-After"]
                await asyncio.sleep(0.02)

    async def _read(self) -> None:
        seen: Bookmark | None = None
        while True:
            headers = {"Peruse-Bookmark": str(seen)} if seen else {}
            sent_at = time.monotonic()
            try:
                reply = await self.client.get("/api/images", headers=headers)
            except httpx.HTTPError as error:
                self.lost.append(f"read: {error!r}")
                await asyncio.sleep(0.02)
                continue
            if reply.status_code != 200:
                assert reply.status_code == 503, reply.text
                await asyncio.sleep(0.02)
                continue
            at = Bookmark.parse(reply.headers["Peruse-Bookmark"])
            assert at is not None
            if seen is not None and seen.is_after(*at):
                self.went_back.append(f"{seen} then {at} from {reply.headers['Peruse-Source']}")
            seen = at
            now = time.monotonic()
            self.seen.append(Seen(sent_at, now - sent_at, reply.headers["Peruse-Source"]))
            self.longest_pause_s = max(self.longest_pause_s, now - self.last_read_at)
            self.last_read_at = now
            await asyncio.sleep(self._pause_s)

    async def goes_on(self, *, timeout_s: float = 10.0) -> None:
        """Returns when a read and (if there is a writer) a write began and succeeded after now."""
        asked = time.monotonic()

        async def both() -> bool:
            return self.last_read_at > asked + 0.2 and (not self.ids or self.last_write_at > asked + 0.2)

        await eventually(both, timeout_s=timeout_s)
