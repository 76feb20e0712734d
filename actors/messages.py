"""What gateways and hosts say to each other: one struct per message, as MessagePack arrays.

Fields are only ever added at the end, with a default: an older other end ignores them.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

__all__ = [
    "AuditReport",
    "CallRequest",
    "Event",
    "KindAudit",
    "Outcome",
    "PageHead",
    "PageReply",
    "PageState",
    "PokeRequest",
    "Position",
    "ReadRequest",
    "ReplicaInfo",
    "SyncReply",
    "Terms",
    "TouchRequest",
    "Type",
    "WireError",
]


class Type(IntEnum):
    """Types of frames. Requests below 64, replies from 64."""

    READ = 1
    POKE = 2
    SYNC = 3
    STATS = 4
    AUTH = 6
    INSPECT = 7
    PASSIVATE = 8
    RESEED = 9
    ACTIVE = 10
    AUDIT = 11
    WATCH = 12
    UNWATCH = 13
    TOUCH = 14
    PAGE = 64
    REPLY = 65
    ERROR = 66
    HELLO = 67
    EVENT = 68


class Terms(msgspec.Struct, frozen=True):
    """How fresh the answer to a read must be, besides its floor, and what may be done for it; see `ReadRequest`."""

    max_wait_ms: int = 250
    max_age_s: int = -1
    validate: bool = False
    stale_ok: bool = False


class ReadRequest(msgspec.Struct, array_like=True, frozen=True):
    """A read. `query` is `encode_query`'s bytes.

    floor_epoch, floor_version    the answer may not be older; an empty epoch means that there is no floor
    have                          stamp of the page that the asker still has; 0 for none
    max_wait_ms                   longest wait for the floor, or for whatever else needs the primary
    max_age_s                     the answer may not be older than this; -1: however old
    validate                      ask the primary first
    stale_ok                      after the wait, an answer below the floor is welcome, marked as stale
    """

    user: str
    query: bytes
    deadline_ms: int
    floor_epoch: str = ""
    floor_version: int = 0
    have: int = 0
    max_wait_ms: int = 250
    max_age_s: int = -1
    validate: bool = False
    stale_ok: bool = False


class PokeRequest(msgspec.Struct, array_like=True, frozen=True):
    """A hint that `user` is at this position in the primary. Not answered."""

    user: str
    epoch: str
    version: int


class TouchRequest(msgspec.Struct, array_like=True, frozen=True):
    """These users were served without asking. Not answered."""

    users: list[str]


class CallRequest(msgspec.Struct, array_like=True, frozen=True):
    """Any other call.

    user              empty where it concerns the host
    epoch, version    WATCH: what the asker has been told already
    repair            AUDIT: make right what is found
    """

    deadline_ms: int
    user: str = ""
    epoch: str = ""
    version: int = 0
    repair: bool = False


class PageState(IntEnum):
    """What follows a page's head."""

    BYTES = 0
    UNCHANGED = 1  # the asker has them: its stamp is the page's
    MISSING = 2  # there is no such row


class Outcome(IntEnum):
    """How an answer came about."""

    FRESH = 0  # at hand
    WAITED = 1  # after a pull
    STALE = 2  # the primary did not answer in time: older than what was asked for, or maybe so


class PageHead(msgspec.Struct, array_like=True, frozen=True):
    """What is known of a page. While the `slot` of the host's shared memory holds `slot_stamp`, it is true without
    asking; 0 for none."""

    epoch: str
    version: int
    age_s: int
    query_hash: str
    stamp: int
    state: PageState
    outcome: Outcome
    slot: int = 0
    slot_stamp: int = 0


class PageReply(msgspec.Struct, frozen=True):
    """A page with its head."""

    head: PageHead
    body: bytes


class SyncReply(msgspec.Struct, array_like=True, frozen=True):
    """Where a sync ended, and how many rows it changed."""

    epoch: str
    version: int
    applied: int


class Position(msgspec.Struct, array_like=True, frozen=True):
    """Answer of WATCH: where the open replica is; an empty epoch when it is not open."""

    epoch: str
    version: int


class Event(msgspec.Struct, array_like=True, frozen=True):
    """A watched user's replica has moved to this position; sent without being asked. `kinds` are the kinds of rows
    that changed; `is_whole`: it was made anew, and anything may have changed."""

    user: str
    epoch: str
    version: int
    kinds: list[str]
    is_whole: bool


class KindAudit(msgspec.Struct, array_like=True):
    """One kind of rows in a replica and in the primary at the same version: counts, hashes over all rows in the
    order of their ids, how many rows differ, and the first ids of them."""

    kind: str
    replica_rows: int
    primary_rows: int
    replica_hash: str
    primary_hash: str
    missing: list[str]
    extra: list[str]
    different: list[str]
    differences: int = 0


class AuditReport(msgspec.Struct, array_like=True):
    """What an audit found. `outcome`: equal, differs, repaired, reseeding, moving (writers were faster), or the
    replica's state when there was nothing to compare: cold, seeding."""

    user: str
    outcome: str
    epoch: str = ""
    version: int = 0
    kinds: list[KindAudit] = []


class ReplicaInfo(msgspec.Struct, array_like=True, frozen=True):
    """A replica as its host knows it. `state`: cold, seeding, active or passive; ages in seconds, -1 for unknown."""

    user: str
    state: str
    epoch: str = ""
    version: int = 0
    age_s: float = -1.0
    idle_s: float = -1.0
    kept_bytes: int = 0
    file_bytes: int = 0
    path: str = ""


class WireError(msgspec.Struct, array_like=True, frozen=True):
    """A refusal."""

    code: str
    message: str
