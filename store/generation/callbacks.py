"""Callbacks: where a provider may tell that a task has ended. A hint, as a poke is: whoever works on it looks now."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from store.keyfile import kept_secret

__all__ = ["Callbacks", "open_callbacks"]


class Callbacks:
    """Addresses that nobody can guess, one per provider. `base` is the gateway's public one, "" if it has none."""

    def __init__(self, secret: bytes, base: str) -> None:
        self._secret, self._base = secret, base.rstrip("/")

    def url(self, provider: str) -> str:
        """ "" where nobody could reach us."""
        return f"{self._base}/callbacks/{provider}/{self._token(provider)}" if self._base else ""

    def is_valid(self, provider: str, token: str) -> bool:
        return hmac.compare_digest(self._token(provider).encode(), token.encode(errors="replace"))

    def _token(self, provider: str) -> str:
        return hmac.digest(self._secret, f"callbacks\n{provider}".encode(), hashlib.sha256).hex()[:40]


def open_callbacks(data: Path, base: str) -> Callbacks:
    """Those of a data folder: every process of the instance has the same."""
    return Callbacks(kept_secret(data / "keys" / "callbacks.secret", lambda: secrets.token_bytes(32)), base)
