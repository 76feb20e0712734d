"""The secret behind the owner tags of object keys: a key tells nobody whose it is."""

from __future__ import annotations

import secrets
from functools import lru_cache
from pathlib import Path

from store.keyfile import kept_secret

__all__ = ["owner_secret"]


@lru_cache(maxsize=8)
def owner_secret(data: Path) -> bytes:
    """The data folder's secret."""
    return kept_secret(data / "keys" / "objects.secret", lambda: secrets.token_bytes(32))
