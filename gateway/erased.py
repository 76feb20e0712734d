"""The users who were erased, as a gateway knows them: whoever holds a token of theirs is refused until it has ended."""

from __future__ import annotations

import time
from datetime import datetime

from store.erasure import marks_since
from store.primary import Primary
from store.users import REFUSED_S

__all__ = ["ErasedUsers"]


class ErasedUsers:
    """`user in erased`, as of the last look."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        #: User → (when they were erased, monotonic time up to which they are refused).
        self._known: dict[str, tuple[datetime, float]] = {}
        self._since: datetime | None = None

    def __contains__(self, user: str) -> bool:
        known = self._known.get(user)
        return known is not None and known[1] > time.monotonic()

    async def look(self) -> set[str]:
        """Ask the primary; answers those who were not known yet.

        Raises:
            PrimaryUnavailable: nobody new is known.
        """
        marks = await marks_since(self._primary, self._since)
        now = time.monotonic()
        new = set()
        for user, at, age_s in marks:
            known = self._known.get(user)
            if known is None or known[0] != at:
                self._known[user] = (at, now + REFUSED_S - age_s)
                new.add(user)
            self._since = at
        if new:
            self._known = {user: known for user, known in self._known.items() if known[1] > now}
        return new
