"""Ids of rows: UUIDv7 (RFC 9562), so that ids made later sort later and index pages fill from one side."""

from __future__ import annotations

import re
import secrets
import uuid
from typing import Final

__all__ = ["is_user_id", "new_id"]

#: The same pattern is a CHECK in the primary. A leading `~` marks users that Peruse itself owns.
USER_ID: Final = re.compile(r"~?[A-Za-z0-9._@|:-]{1,127}")


def new_id(now_ms: int) -> uuid.UUID:
    """A UUIDv7: 48 bits of `now_ms` (Unix milliseconds), then 74 random bits."""
    value = (now_ms & (2**48 - 1)) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def is_user_id(text: str) -> bool:
    """Whether `text` can name a user: 1–128 of `A-Za-z0-9._@|:-`, a leading `~` being reserved for Peruse."""
    return USER_ID.fullmatch(text) is not None
