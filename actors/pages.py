"""Pages that a gateway keeps as bytes.

Over the wire their stamp spares the host from sending them again; it is asked all the same. With a slot on the same
node (see slots) not even that.
"""

from __future__ import annotations

import time
from typing import Final

from actors.messages import PageHead
from actors.slots import VERIFIED_AT
from store.epoch import Bookmark

__all__ = ["Page", "Pages"]

#: A host that has not swept for so long is asked: it may be gone.
_TRUSTED_NS: Final = 2_000_000_000
#: A kept page without its body and query, measured with tracemalloc: 1,350 bytes; most of it is its heads.
_PAGE_BYTES: Final = 1_500


class Page:
    """A kept page: what it is true for, and the slot that says whether it still is (`words` None: ask).

    `heads` is for the gateway to keep what it made of it.
    """

    __slots__ = ("at", "body", "heads", "is_read", "query_hash", "slot", "slot_stamp", "stamp", "words")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.stamp = 0
        self.at = Bookmark("", 0)
        self.query_hash = ""
        self.heads: tuple[str, str] | None = None
        self.words: memoryview | None = None
        self.slot = self.slot_stamp = 0
        self.is_read = False


class Pages:
    """Kept pages by user and query, at most `max_bytes` of them, all told: whoever asks for many small ones gets no
    more room than who asks for few large ones. The first kept go first, but one that was served since it was kept stays
    for another round: a crowd that comes once does not push out those who come often."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pages: dict[tuple[str, bytes], Page] = {}
        self.bytes = 0
        #: Users served without asking their host, since it was last told.
        self.touched: set[str] = set()

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, user: str, encoded: bytes) -> Page | None:
        return self._pages.get((user, encoded))

    def glance(self, user: str, encoded: bytes, floor: Bookmark | None, max_age_s: int) -> tuple[Page, int] | None:
        """A page that is as fresh as its host's answer would be, and its age in whole seconds; None: ask. The hottest
        path there is. `max_age_s` below 0: however old."""
        page = self._pages.get((user, encoded))
        if page is None or page.words is None:
            return None
        words = page.words
        age_ns = time.monotonic_ns() - words[VERIFIED_AT]  # before the stamp: see slots
        if words[page.slot] != page.slot_stamp or age_ns > _TRUSTED_NS:
            return None
        at = page.at
        if floor is not at and floor is not None and floor != at and floor.is_after(*at):
            return None
        age_s = -(-age_ns // 1_000_000_000) if age_ns > 0 else 0
        if 0 <= max_age_s < age_s:
            return None
        self.touched.add(user)
        page.is_read = True
        return page, age_s

    def keep(self, user: str, encoded: bytes, page: Page | None, body: bytes, head: PageHead) -> Page:
        """Keep a page that came over the wire, or what is new about `page`, whose body is still the same."""
        if page is not None:
            page.is_read = True
        else:
            page = Page(body)
            key = (user, encoded)
            self._drop(key)
            self._pages[key] = page
            self.bytes += _size(key, page)
            while self.bytes > self._max_bytes:
                self._drop_one()
        at = Bookmark(head.epoch, head.version)
        if at != page.at or head.query_hash != page.query_hash:
            page.at, page.query_hash, page.heads = at, head.query_hash, None
        page.stamp = head.stamp
        page.words = None
        return page

    def _drop_one(self) -> None:
        key = next(iter(self._pages))
        page = self._pages[key]
        if page.is_read:
            page.is_read = False
            self._pages[key] = self._pages.pop(key)
        else:
            self._drop(key)

    def _drop(self, key: tuple[str, bytes]) -> None:
        page = self._pages.pop(key, None)
        if page is not None:
            self.bytes -= _size(key, page)

    def trust(self, page: Page, words: memoryview | None, head: PageHead) -> None:
        """Serve `page` without asking for as long as its slot says so."""
        if words is not None and head.slot:
            page.words, page.slot, page.slot_stamp = words, head.slot, head.slot_stamp

    def distrust(self) -> None:
        """Ask for everything again: users may have moved to other hosts."""
        for page in self._pages.values():
            page.words = None


def _size(key: tuple[str, bytes], page: Page) -> int:
    return len(key[1]) + len(page.body) + _PAGE_BYTES
