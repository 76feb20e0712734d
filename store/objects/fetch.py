"""Bytes from a URL that somebody else chose: a provider's result, a user's image.

What is checked is the address that is connected to, at the moment at which it is: a name may stand for another address
from one second to the next, and a redirect may lead anywhere. Nothing is unpacked, no cookie is kept, no proxy is
asked, and every redirect is a new URL with all of the checks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from store.errors import FetchError, FetchFailed, FetchRefused, FetchTooLarge
from store.objects.addresses import is_public
from store.objects.allowed import is_allowed, is_trusted

__all__ = ["Fetched", "Fetcher", "PrivateAddress", "public_socket"]

_PORT: Final = 443
_MAX_HOPS: Final = 4  # the URL itself and three redirects
_MAX_URL_CHARS: Final = 8192
_REDIRECTS: Final = {301, 302, 303, 307, 308}
_CHUNK_BYTES: Final = 64 * 1024
_HEADERS: Final = {"User-Agent": "Peruse", "Accept": "image/*", "Accept-Encoding": "identity"}

_AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came, and what the other side says that it is: nothing of it is checked."""

    url: str  # after redirects
    content_type: str  # lower case, without parameters; empty when none was sent
    data: bytes


class PrivateAddress(Exception):
    """Raised where a connection to a private address would begin. Not an OSError: those make the connector try the next
    address of the name."""


class Fetcher:
    """Fetches, many at a time. Made once; it connects with the first fetch."""

    def __init__(
        self,
        *,
        allow: Sequence[str] | None,
        max_bytes: int,
        timeout_s: float,
        resolver: AbstractResolver | None = None,
        at_once: int = 8,
    ) -> None:
        """`allow` names hosts and trusted origins (see PERUSE_FETCH_ALLOW); None lets every public https host pass, and
        trusts none. The limits are for one fetch with all of its redirects."""
        self._allow: Final = allow
        self._max_bytes: Final = max_bytes
        self._timeout_s: Final = timeout_s
        self._resolver: Final = resolver
        self._at_once: Final = asyncio.Semaphore(at_once)
        self._guarded: aiohttp.ClientSession | None = None
        self._trusting: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> Fetched:
        """What the URL leads to.

        Raises:
            FetchRefused: it, or what it redirects to, must not be fetched.
            FetchTooLarge: it has more bytes than the limit.
            FetchFailed: no answer with 200 and the whole body in time.
        """
        host = ""
        try:
            async with asyncio.timeout(self._timeout_s), self._at_once:
                for _ in range(_MAX_HOPS):
                    session, asked = self._checked(url)
                    host = asked.raw_host or ""
                    answer = await self._ask(session, asked)
                    if isinstance(answer, Fetched):
                        return answer
                    url = answer
        except TimeoutError as error:
            raise FetchFailed(f"{host or 'the URL'} did not send everything within {self._timeout_s:g} s") from error
        raise FetchFailed(f"{host} redirects more than {_MAX_HOPS - 1} times")

    async def close(self) -> None:
        """Ends what is under way."""
        for session in (self._guarded, self._trusting):
            if session is not None:
                await session.close()

    def _checked(self, text: str) -> tuple[aiohttp.ClientSession, URL]:
        """The URL, and the session that may ask for it."""
        try:
            url = _parsed(text)
            host, port = url.raw_host, url.port
        except ValueError:
            raise FetchRefused("this is not a URL") from None
        if url.scheme not in ("http", "https") or not host or port is None:
            raise FetchRefused("only https:// URLs are fetched")
        if url.user is not None or url.password is not None:
            raise FetchRefused(f"a URL with a user name or password is not fetched, from {host} or elsewhere")
        host = host.lower().rstrip(".")
        literal = f"[{host}]" if ":" in host else host
        if self._allow is not None and is_trusted(f"{url.scheme}://{literal}:{port}", self._allow):
            self._trusting = self._trusting or self._session(is_guarded=False)
            return self._trusting, url
        if url.scheme != "https" or port != _PORT:
            raise FetchRefused(f"{host}: only https:// URLs without a port are fetched")
        if self._allow is not None and not is_allowed(host, self._allow):
            raise FetchRefused(f"{host} is not in PERUSE_FETCH_ALLOW")
        self._guarded = self._guarded or self._session(is_guarded=True)
        return self._guarded, url

    async def _ask(self, session: aiohttp.ClientSession, url: URL) -> Fetched | str:
        """The body, or where the redirect leads to."""
        try:
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS and (location := answer.headers.get("Location")):
                    return str(url.join(_parsed(location)))
                if answer.status != 200:
                    raise FetchFailed(f"{url.raw_host} answered {answer.status}")
                if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise FetchRefused(f"{url.raw_host} sends packed bytes, which are not unpacked")
                if answer.content_length is not None and answer.content_length > self._max_bytes:
                    raise FetchTooLarge(f"{url.raw_host} sends {answer.content_length} bytes, over {self._max_bytes}")
                content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                return Fetched(str(url), content_type, await self._body(url, answer))
        except PrivateAddress:
            raise FetchRefused(f"{url.raw_host} has an address that is not public") from None
        except FetchError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            # The error's own text may hold the whole URL, and with it a signature.
            raise FetchFailed(f"{url.raw_host} could not be fetched from: {type(error).__name__}") from None

    async def _body(self, url: URL, answer: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > self._max_bytes:
                raise FetchTooLarge(f"{url.raw_host} sends over {self._max_bytes} bytes")
        return bytes(data)

    def _session(self, *, is_guarded: bool) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            socket_factory=public_socket if is_guarded else None,
            resolver=self._resolver,
            use_dns_cache=False,
            force_close=True,
            happy_eyeballs_delay=None,
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )


def _parsed(text: str) -> URL:
    """Raises: ValueError. What is encoded stays as it is: a signature covers these very signs."""
    if len(text) > _MAX_URL_CHARS:
        raise ValueError("too long")
    return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def public_socket(info: _AddressInfo) -> socket.socket:
    """A socket for this address and no other: the connector connects it to what is checked here."""
    family, kind, protocol, _, address = info
    if family not in (socket.AF_INET, socket.AF_INET6) or not is_public(str(address[0])):
        raise PrivateAddress
    return socket.socket(family=family, type=kind, proto=protocol)
