"""The secret behind the owner tags of object keys: a key tells nobody whose it is."""

from __future__ import annotations

import os
import secrets
from functools import lru_cache
from pathlib import Path

__all__ = ["owner_secret"]


@lru_cache(maxsize=8)
def owner_secret(data: Path) -> bytes:
    """The data folder's secret, made on first use (0600)."""
    path = data / "keys" / "objects.secret"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            os.link(temporary, path)  # create-only: processes that start at once agree on one secret
        except FileExistsError:
            pass
        temporary.unlink()
    return path.read_bytes()
