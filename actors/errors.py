"""Every error that the replica side raises.

ReplicaError
├── ReplicaBroken       the file cannot be used: delete it and seed again
├── DiskFull            no room to apply: serve this user from the primary
├── BadFrame            bytes on the wire that are not a frame of ours
└── CallError           a host did not answer a call; `code` is what travels in the frame
    ├── Retryable       the host is away, late or closing: another source may answer
    │   └── QueryTooCostly  the query was stopped: it read more rows than one turn of the loop may
    ├── Overloaded      the host refuses work: do not retry
    ├── Seeding         the replica is being made
    └── Behind          the replica could not reach the floor in time
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadFrame",
    "Behind",
    "CallError",
    "DiskFull",
    "Overloaded",
    "QueryTooCostly",
    "ReplicaBroken",
    "ReplicaError",
    "Retryable",
    "Seeding",
]


class ReplicaError(Exception):
    """Base of every error of the replica side."""


class ReplicaBroken(ReplicaError):
    """Raised when a replica's file is corrupt, foreign, of another schema, or cannot be read."""


class DiskFull(ReplicaError):
    """Raised when a change could not be applied for want of room; nothing of it was."""


class BadFrame(ReplicaError):
    """Raised when a frame is too long, of an unknown type, or its content is not what its type says."""


class CallError(ReplicaError):
    """Base of a host's refusals."""

    code: ClassVar[str] = "error"


class Retryable(CallError):
    """Raised when the host is away, late or closing. A read may be answered elsewhere; nothing was changed."""

    code = "retryable"


class QueryTooCostly(Retryable):
    """Raised when a query was stopped because it would hold up every user of the host."""


class Overloaded(CallError):
    """Raised when the host has as much work as it takes; asking again makes it worse."""

    code = "overloaded"


class Seeding(CallError):
    """Raised when the user's replica is still being made; the primary answers meanwhile."""

    code = "seeding"


class Behind(CallError):
    """Raised when the replica could not reach the read's floor before the deadline."""

    code = "behind"
