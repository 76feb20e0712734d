"""Sessions: a client that reads and writes at random, and records everything that it is told."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from store.epoch import Bookmark
from tests.faults.promises import VIEWS, Gallery, Image, Read, Write, gallery, greatest
from tests.world import png

__all__ = ["Client", "Page"]


class _Document(msgspec.Struct):
    id: str
    url: str
    title: str | None
    starred: bool
    visibility: str
    trashed_at: str | None
    created_at: str


class Page(msgspec.Struct):
    images: list[_Document]


class _One(msgspec.Struct):
    image: _Document


def _image(document: _Document) -> Image:
    return Image(*msgspec.structs.astuple(document))


#: Longer than any gateway needs to come back: whoever waits longer waits for ever.
_HANGS_S: Final = 25.0


class Client:
    """One user's client, which reads and writes at random and writes down what it is told.

    With `bookmarks` it carries the newest that it has seen, its writes' and now and then those of `others` (user →
    bookmark), and every second request goes over a connection of its own, to whichever gateway takes it: one session.
    Without, it keeps to one connection, hence one gateway; when that is lost, its next session begins. It sends a
    bookmark now and then all the same: what a gateway has shown is promised whatever was sent with it.
    """

    def __init__(
        self, url: str, user: str, token: str, *, bookmarks: bool, seed: int, others: Mapping[str, Bookmark]
    ) -> None:
        self.user = user
        self.sessions: list[list[Read | Write]] = [[]]
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest_s = 0.0
        self.carries_bookmarks = bookmarks
        self.others = others
        self._random = random.Random(seed)
        self._bookmark: Bookmark | None = None
        self._images: Gallery = ()
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        async with self._session(kept=True) as kept, self._session(kept=False) as fresh:
            while not stop.is_set():
                http = fresh if self.carries_bookmarks and self._random.random() < 0.5 else kept
                await self._once(http)
                wrote = bool(self.sessions[-1]) and isinstance(self.sessions[-1][-1], Write)
                # Who has written looks at once.
                await asyncio.sleep(0 if wrote else self._random.uniform(0, 0.02))

    def _session(self, *, kept: bool) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        if not self.carries_bookmarks:
            trace.on_connection_create_end.append(self._connected)
        return aiohttp.ClientSession(
            self._url,
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=1, force_close=not kept),
            cookie_jar=aiohttp.DummyCookieJar(),  # a write's cookie carries its bookmark
            timeout=aiohttp.ClientTimeout(total=_HANGS_S),
            trace_configs=[trace],
        )

    async def _connected(self, *_: Any) -> None:
        """Maybe to another gateway: whatever was promised so far was by the one before."""
        if self.sessions[-1]:
            self.sessions.append([])

    async def _once(self, http: aiohttp.ClientSession) -> None:
        started = time.monotonic()
        try:
            await (self._read(http) if not self._images or self._random.random() < 0.85 else self._write(http))
        except TimeoutError:
            self.wrong.append(f"I8: {self.user} got no answer in {_HANGS_S:g} s")
        except aiohttp.ClientError:
            self.counts["connection lost"] += 1
            await asyncio.sleep(0.02)
        self.longest_s = max(self.longest_s, time.monotonic() - started)

    async def _read(self, http: aiohttp.ClientSession) -> None:
        wish = self._wish()
        asked: Bookmark | None = None
        if self.carries_bookmarks or self._random.random() < 0.1:
            if (other := self.others.get(self.user)) is not None and self._random.random() < 0.2:
                self._saw(other)
            asked = self._bookmark
        if asked is not None:
            wish["Peruse-Bookmark"] = str(asked)
        name = self._random.choice(["newest", "newest", *VIEWS])
        sent_at = time.time()
        async with http.get("/api/images", params={"limit": "200", **VIEWS[name]}, headers=wish) as answer:
            body = await answer.read()
            if answer.status != 200:
                self._refused("read", answer, body)
                return
            headers = answer.headers
        at = Bookmark.parse(headers["Peruse-Bookmark"])
        assert at is not None
        images = gallery([_image(document) for document in msgspec.json.decode(body, type=Page).images])
        outcome, source, age_s = headers["Peruse-Outcome"], headers["Peruse-Source"], int(headers["Peruse-Age"])
        on_timeout = wish.get("Peruse-On-Timeout", "primary")
        max_age_s = int(wish["Peruse-Max-Staleness"]) if "Peruse-Max-Staleness" in wish else None
        self.sessions[-1].append(Read(sent_at, name, asked, on_timeout, max_age_s, at, outcome, source, age_s, images))
        self.counts[f"{outcome} from {source}"] += 1
        self._saw(at)
        if name == "newest":
            self._images = images

    def _wish(self) -> dict[str, str]:
        """Mostly none: what everybody asks for."""
        wishes: list[dict[str, str]] = [
            {"Peruse-On-Timeout": "stale", "Peruse-Max-Wait": str(self._random.choice([0, 5, 50]))},
            {"Peruse-On-Timeout": "error"},
            {"Peruse-Validate": "1"},
            {"Peruse-Max-Wait": "0"},
            {"Peruse-Max-Staleness": str(self._random.randint(1, 3))},
        ]
        return self._random.choice(wishes) if self._random.random() < 0.3 else {}

    async def _write(self, http: aiohttp.ClientSession) -> None:
        image = self._random.choice(self._images).id
        changes = {"title": f"title {self._random.getrandbits(32):x}", "starred": self._random.random() < 0.5}
        kind = self._random.choice(["title", "title", "title", "starred", "trash", "restore", "upload"])
        if kind == "upload":
            form = aiohttp.FormData()
            form.add_field("file", png(size=(8, 8)), filename="a.png", content_type="image/png")
            request = http.post("/api/images/upload", data=form)
        elif kind == "trash":
            request = http.delete(f"/api/images/{image}")
        elif kind == "restore":
            trashed = [i.id for i in _trashed(self.sessions[-1])]
            request = http.post(f"/api/images/{self._random.choice(trashed or [image])}/restore")
        else:
            request = http.patch(f"/api/images/{image}", json={kind: changes[kind]})
        async with request as answer:
            body = await answer.read()
            if answer.status not in (200, 201):
                self._refused("write", answer, body)
                return
            at = Bookmark.parse(answer.headers["Peruse-Bookmark"])
        assert at is not None
        written = _image(msgspec.json.decode(body, type=_One).image)
        self.sessions[-1].append(Write(at, gallery([written])[0]))
        self.counts["written"] += 1
        self._saw(at)

    def _saw(self, at: Bookmark) -> None:
        self._bookmark = greatest(self._bookmark, at)

    def _refused(self, what: str, answer: aiohttp.ClientResponse, body: bytes) -> None:
        self.counts[f"{what} refused with {answer.status}"] += 1
        gone = what == "write" and answer.status == 404  # deleted, or another user's by now
        if not gone and not (answer.status == 503 and "Retry-After" in answer.headers):
            self.wrong.append(f"I8: a {what} of {self.user} was answered with {answer.status}: {body[:300]!r}")


def _trashed(events: Sequence[Read | Write]) -> Gallery:
    """The trash as the session saw it last."""
    return next((e.images for e in reversed(events) if isinstance(e, Read) and e.view == "trash"), ())
