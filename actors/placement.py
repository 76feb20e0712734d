"""Placement: which host serves a user. Rendezvous hashing, a pure function of the user and the live hosts.

Every gateway and host computes the same order from the same rows, and a host that comes or goes moves only the users
that it serves. Correctness never depends on it: any host may answer for any user.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["first", "ranked"]


def _weight(user: str, host: str) -> bytes:
    return hashlib.blake2b(f"{host}\0{user}".encode(), digest_size=8).digest()


def ranked(user: str, hosts: Iterable[str]) -> list[str]:
    """The hosts in the order in which they are responsible for `user`."""
    return sorted(hosts, key=lambda host: (_weight(user, host), host), reverse=True)


def first(user: str, hosts: Iterable[str]) -> str | None:
    """The host responsible for `user`; None when there is none."""
    return max(hosts, key=lambda host: (_weight(user, host), host), default=None)
