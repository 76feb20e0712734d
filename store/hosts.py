"""The `hosts` table: which hosts there are, where they listen, and whether they are alive."""

from __future__ import annotations

from typing import Final, NamedTuple

from store.primary import Primary

__all__ = ["HostRow", "Replaced", "heartbeat", "leave", "list_hosts", "register"]

#: A host whose heartbeat is this much older than the newest one is not asked any more.
LIVE_S: Final = 5.0
#: And when it is this much older, others make replicas of its users.
MISSED_S: Final = 10.0


class HostRow(NamedTuple):
    """One host. `behind_s`: how much older its heartbeat is than the newest of all hosts, never against now():
    after a pause of the primary all heartbeats are equally old, and nobody is dead."""

    id: str
    generation: int
    address: str
    node: str
    build: str
    capacity: int
    state: str
    behind_s: float
    heartbeat: float

    @property
    def word(self) -> str:
        """What it is now: live, stuck, draining or gone. What it last said of itself counts only while it beats."""
        return self.state if self.behind_s <= LIVE_S else "gone"

    @property
    def is_live(self) -> bool:
        return self.word == "live"

    @property
    def is_missed(self) -> bool:
        """Whether its users still belong to it: while it is away for a moment nobody else seeds them."""
        return self.state != "stuck" and self.behind_s <= MISSED_S


class Replaced(Exception):
    """Raised when a host's row carries a newer generation: another process took its place."""


async def register(primary: Primary, host_id: str, *, node: str, build: str, capacity: int) -> int:
    """Take the row of `host_id`, replacing whoever had it; answers the new generation."""
    rows = await primary.fetch(
        "insert into hosts as h (id, address, node, build, capacity, state) values ($1, '', $2, $3, $4, 'gone') "
        "on conflict (id) do update set generation = h.generation + 1, node = excluded.node, build = excluded.build, "
        "capacity = excluded.capacity, state = 'gone', started_at = clock_timestamp() returning generation",
        host_id, node, build, capacity,
    )  # fmt: skip
    return int(rows[0]["generation"])


async def heartbeat(primary: Primary, host_id: str, generation: int, *, address: str, state: str) -> None:
    """Say that this generation is alive, where, and in which state.

    Raises:
        Replaced: a newer generation has the row.
    """
    rows = await primary.fetch(
        "update hosts set heartbeat = clock_timestamp(), address = $3, state = $4 "
        "where id = $1 and generation = $2 returning true",
        host_id, generation, address, state,
    )  # fmt: skip
    if not rows:
        raise Replaced(f"host {host_id} generation {generation} was replaced")


async def leave(primary: Primary, host_id: str, generation: int) -> None:
    """Say that this generation has stopped."""
    await primary.fetch(
        "update hosts set state = 'gone' where id = $1 and generation = $2 returning true",
        host_id,
        generation,
    )


async def list_hosts(primary: Primary) -> list[HostRow]:
    """All hosts that registered within the last day, by id."""
    rows = await primary.fetch(
        "select id, generation, address, node, build, capacity, state, "
        "extract(epoch from max(heartbeat) over () - heartbeat)::float8, extract(epoch from heartbeat)::float8 "
        "from hosts where heartbeat > (select max(heartbeat) from hosts) - interval '1 day' order by id"
    )
    return [HostRow(*row) for row in rows]
