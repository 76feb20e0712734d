"""A poller: a client that sends the same bytes again and again on a connection that stays open."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from store.epoch import Bookmark
from tests.faults.promises import Gallery, Image, Read, gallery
from tests.faults.sessions import Page

__all__ = ["Poller"]

_HANGS_S = 25.0


class Poller:
    """Polls one user's gallery, and writes down what it is told: one session per connection, hence per gateway.

    Every now and then it changes what it sends, then repeats that: without anything, with the tag of what it has, with
    the newest bookmark that somebody gave it (`bookmarks`: by user). `reads` counts all of its replies.
    """

    def __init__(self, url: str, user: str, token: str, *, seed: int, bookmarks: Mapping[str, Bookmark]) -> None:
        self.user = user
        self.sessions: list[list[Read]] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._address = urlsplit(url)
        self._token = token
        self._random = random.Random(seed)
        self._bookmarks = bookmarks
        #: Body → what it shows; tag → the same.
        self._seen: dict[bytes, Gallery] = {}
        self._tagged: dict[str, Gallery] = {}

    @property
    def reads(self) -> int:
        return sum(map(len, self.sessions))

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                self.sessions.append([])
                await self._session(reader, writer, stop)
            except (OSError, asyncio.IncompleteReadError):
                self.counts["connection lost"] += 1
            except TimeoutError:
                self.wrong.append(f"I8: {self.user} got no answer in {_HANGS_S:g} s")
            finally:
                writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event) -> None:
        tag = ""
        for _ in range(self._random.randrange(300, 3000)):
            lines, asked, repeats = [], None, self._random.randrange(5, 60)
            kind = self._random.choice(["plain", "plain", "tag", "bookmark"])
            if kind == "tag" and tag:
                lines = [f"If-None-Match: {tag}"]
            elif kind == "bookmark" and (asked := self._bookmarks.get(self.user)) is not None:
                lines = [f"Peruse-Bookmark: {asked}"]
            head = ("GET /api/images?limit=200 HTTP/1.1", "Host: p", f"Authorization: Bearer {self._token}", *lines)
            request = "\r\n".join((*head, "", "")).encode()
            for _ in range(repeats):
                if stop.is_set():
                    return
                async with asyncio.timeout(_HANGS_S):
                    tag = await self._ask(reader, writer, request, asked) or tag
                await asyncio.sleep(0.003)

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, asked: Bookmark | None
    ) -> str | None:
        """The tag of the reply; None for a refusal."""
        sent_at = time.time()
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status = int(first.split(" ")[1])
        body = b"" if status == 304 else await reader.readexactly(int(headers["content-length"]))
        if status not in (200, 304):
            self.counts[f"refused with {status}"] += 1
            if status != 503 or "retry-after" not in headers:
                self.wrong.append(f"I8: a read of {self.user} was answered with {status}: {body[:300]!r}")
            return None
        at, tag = Bookmark.parse(headers["peruse-bookmark"]), headers["etag"]
        assert at is not None
        images = self._tagged[tag] if status == 304 else self._images(body)
        self._tagged[tag] = images
        outcome, source, age_s = headers["peruse-outcome"], headers["peruse-source"], int(headers["peruse-age"])
        self.sessions[-1].append(
            Read(sent_at, "newest", asked, "primary", None, at, outcome, source, age_s, images)
        )  # fmt: skip
        self.counts[f"{status} {outcome} from {source}"] += 1
        return tag

    def _images(self, body: bytes) -> Gallery:
        images = self._seen.get(body)
        if images is None:
            page = msgspec.json.decode(body, type=Page)
            images = self._seen[body] = gallery([Image(*msgspec.structs.astuple(one)) for one in page.images])
        return images
