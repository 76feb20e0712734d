"""Secrets as files: made on first use, readable by their owner only, and the same for every process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["kept_secret"]


def kept_secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """What `path` holds; on first use, what `make` makes. Processes that start at once agree on one secret, and a kill
    in the middle leaves none."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # create-only: the first one counts
        except FileExistsError:
            pass
        temporary.unlink()
    return path.read_bytes()
