"""Which hosts may be fetched from: an allow-list, entry by entry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["check_allowed", "is_allowed", "is_trusted"]

_NAME: Final = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_ORIGIN: Final = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\]):[0-9]{1,5}")


def check_allowed(entry: str) -> None:
    """Raise ValueError unless the entry is `name`, `*.name` or `scheme://host:port`."""
    if not (_NAME.fullmatch(entry) or _ORIGIN.fullmatch(entry)):
        raise ValueError(
            f"{entry!r} is neither a host like cdn.example.org or *.example.org nor an origin with its port"
        )


def is_allowed(host: str, allow: Iterable[str]) -> bool:
    """Tell whether a host, in lower case, is named. `*.name` stands for everything below name, not for name itself."""
    return any(host == entry or (entry.startswith("*.") and host.endswith(entry[1:])) for entry in allow)


def is_trusted(origin: str, allow: Iterable[str]) -> bool:
    """Tell whether `scheme://host:port` is named as such: trusted at whatever address it has."""
    return "://" in origin and origin in allow
