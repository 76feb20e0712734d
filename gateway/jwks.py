"""Keys of an identity provider: fetched from its key set, kept, and fetched again when an unknown one appears.

Only the address from the settings is ever asked: nothing in a token can name another.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import httpx
import msgspec
import structlog
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

__all__ = ["RemoteKeys"]

log = structlog.get_logger()

_KEPT_S: Final = 600.0
_ASK_AGAIN_S: Final = 30.0  # an unknown key id may cause one request in this time, not one each
_FIRST_AGAIN_S: Final = 1.0  # and while there are no keys at all
_MAX_BYTES: Final = 256 * 1024
_TIMEOUT_S: Final = 5.0


class RemoteKeys:
    """The key set at one URL. Old keys stay until a fetch succeeds: a provider's outage ends no session."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False)
        self._keys: KeySet | None = None
        self._fetched_at = self._asked_at = -1e9
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        await self._client.aclose()

    async def key_for(self, token: str) -> KeySet | None:
        """The keys to verify `token` with; None when its key is not among them."""
        kid = _key_id(token)
        if not self._knows(kid) or time.monotonic() - self._fetched_at > _KEPT_S:
            async with self._lock:
                pause_s = _FIRST_AGAIN_S if self._keys is None else _ASK_AGAIN_S
                if time.monotonic() - self._asked_at > pause_s:
                    await self._fetch()
        return self._keys if self._knows(kid) else None

    def _knows(self, kid: str | None) -> bool:
        return self._keys is not None and (kid is None or any(key.kid == kid for key in self._keys.keys))

    async def _fetch(self) -> None:
        try:
            async with self._client.stream("GET", self._url) as answer:
                answer.raise_for_status()
                body = b""
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > _MAX_BYTES:
                        raise ValueError(f"more than {_MAX_BYTES} bytes")
            self._keys = KeySet.import_key_set(msgspec.json.decode(body))
            self._fetched_at = time.monotonic()
        except (httpx.HTTPError, ValueError, JoseError, TypeError, KeyError) as error:
            log.warning("jwks.failed", url=self._url, error=repr(error))
        finally:
            self._asked_at = time.monotonic()  # after it: those who waited for a slow failure do not repeat it


def _key_id(token: str) -> str | None:
    try:
        kid = jws.extract_compact(token.encode()).headers().get("kid")
    except (JoseError, ValueError):
        return None
    return kid if isinstance(kid, str) else None
