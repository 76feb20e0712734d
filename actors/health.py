"""The pulse of a host: proof that its sync moves.

Replicas that stand still look just like users who do not write. So each host owns a reserved user, whose account it
touches in the primary every few seconds and must see arrive in its own replica, by its own sweep. When that does not
happen, the host says that it is stuck, and gateways ask another one.
"""

from __future__ import annotations

import structlog

from actors.errors import CallError
from actors.replicas import Replicas
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary
from store.users import ensure_user, touch

__all__ = ["Pulse", "reserved_user"]

log = structlog.get_logger()

#: Touches in a row that did not arrive. Counted, not timed: a process that was stopped for a while is not stuck.
_MISSED = 2


def reserved_user(host_id: str) -> str:
    """The user of a host's own; nobody can sign in as one whose id begins with `~`."""
    return f"~{host_id}"


class Pulse:
    """`beat` every few seconds; `is_stuck` says what it found."""

    def __init__(self, primary: Primary, replicas: Replicas, host_id: str) -> None:
        self._primary = primary
        self._replicas = replicas
        self._host_id = host_id
        self._user = reserved_user(host_id)
        self._touched: Bookmark | None = None
        self._missed = 0

    @property
    def is_stuck(self) -> bool:
        return self._missed >= _MISSED

    async def beat(self) -> None:
        """See whether the last touch has arrived, and touch again.

        Raises:
            PrimaryUnavailable: nothing can be said: that is the primary's trouble, not the host's.
        """
        was_stuck = self.is_stuck
        self._judge()
        if self.is_stuck != was_stuck:
            log.warning("host.stuck" if self.is_stuck else "host.unstuck", host=self._host_id)
        try:
            _, touched = await self._primary.write(self._user, lambda connection: touch(connection, self._user))
            if touched.version == 0:
                _, touched = await self._primary.write(
                    self._user, lambda connection: ensure_user(connection, self._user)
                )
        except PrimaryUnavailable:
            self._touched, self._missed = None, 0
            raise
        if not self._missed:
            self._touched = touched

    def _judge(self) -> None:
        try:
            active = self._replicas.life.pin(self._user)
        except CallError:
            return  # refused for want of room: the touch may arrive later
        if active is None or self._touched is None:
            return  # it waits to be seeded, as others do
        self._missed = self._missed + 1 if active.is_behind(self._touched) else 0
