"""The freshness contract: what every read says about its age, and what no reader is shown twice.

A gateway keeps, per user, the greatest position that it served or committed, and sends it as the floor of every
read: so versions never go back within a gateway, bookmark or not. When no replica can answer at the floor, the
primary does, with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from actors import Behind, CallError, Outcome, Overloaded, Page, PageHead, Question, ReplicaClient, Seeding, Terms
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.gallery import query_hash
from store.reads import PrimaryReads

__all__ = ["ANY", "Floors", "Read", "Reads", "Wish"]

Source = Literal["replica", "primary", "seeding"]
_OUTCOMES: Final = {Outcome.FRESH: "fresh", Outcome.WAITED: "waited", Outcome.STALE: "stale"}
_ROTATE_S: Final = 300.0
_MAX_FLOORS: Final = 100_000


class Floors:
    """The greatest position served per user, kept for 5 to 10 minutes after it was last raised."""

    def __init__(self) -> None:
        # Two generations instead of a time per entry: forgetting costs nothing on the read path.
        self._young: dict[str, Bookmark] = {}
        self._old: dict[str, Bookmark] = {}
        self._rotate_at = time.monotonic() + _ROTATE_S

    def get(self, user: str) -> Bookmark | None:
        return self._young.get(user) or self._old.get(user)

    def raise_to(self, user: str, bookmark: Bookmark) -> None:
        """Never lowers."""
        now = time.monotonic()
        if now > self._rotate_at or len(self._young) >= _MAX_FLOORS:
            self._old, self._young = self._young, {}
            self._rotate_at = now + _ROTATE_S
        known = self.get(user)
        self._young[user] = bookmark if known is None or bookmark.is_after(*known) else known


class Wish(NamedTuple):
    """What a reader asks for, as the `Peruse-…` headers say it."""

    bookmark: Bookmark | None = None
    terms: Terms = Terms()
    or_primary: bool = True  # when no replica is as fresh in time


ANY: Final = Wish()


class Read(msgspec.Struct, frozen=True, gc=False):  # one is made for every read
    """An answer: the position it is true for, how old that is, who gave it and how, its bytes (None: no such row), and
    the kept page that they are from, if they are."""

    at: Bookmark
    age_s: int
    source: Source
    outcome: str
    hash: str
    body: bytes | None
    page: Page | None = None


class Reads:
    """Reads of one gateway: from the user's replica, else from the primary."""

    def __init__(
        self,
        client: ReplicaClient,
        primary: PrimaryReads,
        *,
        version: int,
        timeout_s: float,
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._client = client
        self._pages = client.pages
        self._on_refused = on_refused
        self._primary = primary
        self._version = version
        self._timeout_s = timeout_s
        self.floors = Floors()

    def glance(self, user: str, encoded: bytes, wish: Wish = ANY) -> Read | None:
        """The answer for `user` when it is at hand, and as fresh as `wish` says; None: `read` it."""
        floor = served = self.floors.get(user)
        max_age_s = -1
        if wish is not ANY:
            bookmark, terms, _ = wish
            if terms.validate:
                return None
            floor, max_age_s = self._floor(user, bookmark), terms.max_age_s
        found = self._pages.glance(user, encoded, floor, max_age_s)
        if found is None:
            return None
        page, age_s = found
        at = page.at
        if at is not served and at != served:  # a bookmark may have asked for more than was ever served here
            self.floors.raise_to(user, at)
        return Read(at, age_s, "replica", "fresh", page.query_hash, page.body, page)

    def ask(self, user: str, encoded: bytes, wish: Wish) -> Question | None:
        """Ask the user's replica without waiting; None, or a reply that is an error: `read` it.

        Raises:
            CallError: nobody can be asked.
        """
        bookmark, terms, _ = wish
        floor = self._floor(user, bookmark)
        return self._client.ask(user, encoded, floor, terms, self._timeout_s + terms.max_wait_ms / 1000)

    def take(self, question: Question) -> Read:
        """What the replica said to `ask`.

        Raises:
            CallError: that it cannot answer.
        """
        head, page = self._client.take(question, question.reply.result())
        return self._shown(question.user, head, page)

    async def read(self, user: str, encoded: bytes, wish: Wish = ANY) -> Read:
        """The answer for `user`, as fresh as `wish` says.

        Raises:
            CallError: no replica is as fresh in time, and the wish is not to ask the primary.
            PrimaryUnavailable: neither a replica nor the primary can answer.
        """
        bookmark, terms, or_primary = wish
        floor = self._floor(user, bookmark)
        timeout_s = self._timeout_s + terms.max_wait_ms / 1000
        try:
            head, page = await self._client.read(user, encoded, floor, terms, timeout_s=timeout_s)
        except CallError as refusal:
            # The primary can serve a fraction of what has just overloaded a host.
            self._on_refused(refusal.code)
            if isinstance(refusal, Overloaded) or (isinstance(refusal, Behind) and not or_primary):
                raise
            return await self._from_primary(user, encoded, floor, refusal)
        return self._shown(user, head, page)

    def _floor(self, user: str, bookmark: Bookmark | None) -> Bookmark | None:
        floor = self.floors.get(user)
        return bookmark if bookmark is not None and (floor is None or bookmark.is_after(*floor)) else floor

    def _shown(self, user: str, head: PageHead, page: Page | None) -> Read:
        if page is None:
            at, query_hash, body = Bookmark(head.epoch, head.version), head.query_hash, None
        else:
            at, query_hash, body = page.at, page.query_hash, page.body
        if at != self.floors.get(user):  # a bookmark may have asked for more than was ever served here
            self.floors.raise_to(user, at)
        outcome = _OUTCOMES[head.outcome]
        return Read(at, head.age_s, "replica", outcome, query_hash, body, page if outcome == "fresh" else None)

    async def _from_primary(self, user: str, encoded: bytes, floor: Bookmark | None, refusal: CallError) -> Read:
        try:
            page = await self._primary.read(user, encoded, floor=floor)
        except PrimaryUnavailable as error:
            if isinstance(refusal, Behind):
                raise PrimaryUnavailable(f"{refusal}; {error}") from error
            raise
        self.floors.raise_to(user, page.at)
        if not isinstance(refusal, Seeding):
            self._client.poke(user, page.at)  # whoever serves this user next should have seen what we have shown
        source: Source = "seeding" if isinstance(refusal, Seeding) else "primary"
        return Read(page.at, 0, source, "primary", query_hash(encoded, self._version), page.body)

    def wrote(self, user: str, bookmark: Bookmark) -> None:
        """After a commit: readers of this gateway see it from now on, and the user's host hears of it."""
        self.floors.raise_to(user, bookmark)
        self._client.poke(user, bookmark)
