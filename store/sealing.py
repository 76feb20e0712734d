"""Secrets of users at rest: sealed with a key of the data folder, so that the primary alone does not hold them."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from store.errors import SettingError
from store.keyfile import kept_secret

__all__ = ["Sealer", "open_sealer"]

_NONCE_BYTES: Final = 12


class Sealer:
    """AES-256-GCM. `context` says whose and what a secret is: moved to another row, it does not open."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, secret: bytes, context: str) -> bytes:
        """`secret`, readable to nobody without the key; another one each time."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """What was sealed.

        Raises:
            SettingError: it was sealed with another data folder's key, for another context, or is damaged.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context.encode())
        except (InvalidTag, ValueError):
            raise SettingError(
                "a sealed secret does not open: keys/sealing.secret of the data folder is another one now"
            ) from None


@lru_cache(maxsize=8)
def open_sealer(data: Path) -> Sealer:
    """The sealer of a data folder."""
    return Sealer(kept_secret(data / "keys" / "sealing.secret", lambda: AESGCM.generate_key(256)))
