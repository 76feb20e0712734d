"""Callbacks that are signed: Standard Webhooks (HMAC) and fal's (Ed25519).

`headers` have their keys in small letters. A body is checked as the bytes that came.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from store.clock import Clock

__all__ = ["SKEW_S", "Kept", "is_signed_by_fal", "is_standard_webhook"]

T = TypeVar("T")

SKEW_S: Final = 300.0
"""How far the sender's clock may be away, and how long a recorded callback can be sent again."""
_KEPT_S: Final = 24 * 3600.0
_FRESH_S: Final = 60.0


class Kept(Generic[T]):
    """What signatures are checked with: fetched once a day, and when one does not fit, for it may have been changed;
    but at most once a minute, for a forged one never fits."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], clock: Clock) -> None:
        self._fetch, self._clock = fetch, clock
        self._found: T | None = None
        self._at_s = 0.0

    async def accepts(self, is_signed: Callable[[T], bool]) -> bool:
        """Raises: what `fetch` raises: then nobody knows."""
        age_s = self._clock.monotonic() - self._at_s
        if self._found is not None and age_s < _KEPT_S:
            if is_signed(self._found):
                return True
            if age_s < _FRESH_S:
                return False
        self._found = await self._fetch()
        self._at_s = self._clock.monotonic()
        return is_signed(self._found)


def is_standard_webhook(headers: Mapping[str, str], body: bytes, secret: str, *, now_s: float) -> bool:
    """Whether one of the `v1,` signatures is made with `secret`: `whsec_` and base64."""
    id, stamp, given = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    key = _unbase64(secret.removeprefix("whsec_"))
    if not id or not key or not _is_recent(stamp, now_s):
        return False
    digest = hmac.digest(key, f"{id}.{stamp}.".encode() + body, "sha256")
    expected = base64.b64encode(digest).decode()
    return any(
        hmac.compare_digest(signature.encode(), expected.encode())
        for version, _, signature in (text.partition(",") for text in given.split())
        if version == "v1"
    )


def is_signed_by_fal(headers: Mapping[str, str], body: bytes, keys: Iterable[bytes], *, now_s: float) -> bool:
    """Whether one of `keys` (raw public keys of 32 bytes) signed request id, user id, timestamp and body."""
    names = ("request-id", "user-id", "timestamp")
    parts = [headers.get(f"x-fal-webhook-{name}", "") for name in names]
    if not all(parts) or not _is_recent(parts[2], now_s):
        return False
    try:
        signature = bytes.fromhex(headers.get("x-fal-webhook-signature", ""))
    except ValueError:
        return False
    message = "\n".join([*parts, hashlib.sha256(body).hexdigest()]).encode()
    return any(_is_ed25519(key, signature, message) for key in keys)


def _is_ed25519(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _is_recent(stamp: str, now_s: float) -> bool:
    return stamp.isdecimal() and len(stamp) < 16 and abs(now_s - int(stamp)) <= SKEW_S


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
