"""One POST to an endpoint that a user named: signed as Standard Webhooks says, and never to a private address.

What is checked is the address that is connected to, as in `objects.fetch`. Redirects are not followed, no cookie is
kept, no proxy is asked, nothing is unpacked, and little of the answer is read.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Final, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from store.errors import InvalidValue
from store.generation.retries import retry_after
from store.objects.addresses import is_public
from store.objects.allowed import is_trusted
from store.objects.fetch import PrivateAddress, public_socket

__all__ = ["Answer", "Poster", "checked_url", "signatures"]

MAX_URL_CHARS: Final = 2048
_PORT: Final = 443
_READ_BYTES: Final = 4096
_KEPT_CHARS: Final = 1000
_LOOKUPS: Final = 32
_HEADERS: Final = {
    "User-Agent": "Peruse-Webhooks",
    "Content-Type": "application/json",
    "Accept-Encoding": "identity",
}


class Answer(NamedTuple):
    """What an endpoint answered; `status` None: nothing, and `text` says why."""

    status: int | None
    text: str  # the beginning of its body, as it came: nothing of it is checked
    took_s: float
    retry_after_s: float | None = None


def signatures(secrets: Iterable[bytes], message_id: str, at_s: int, body: bytes) -> str:
    """The `webhook-signature` of a message: one `v1,…` per secret, separated by a space."""
    signed = f"{message_id}.{at_s}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(secret, signed, 'sha256')).decode()}" for secret in secrets)


def checked_url(text: str, allow: Sequence[str]) -> tuple[URL, bool]:
    """The URL of an endpoint, and whether its origin is trusted wherever it is (named in `allow`).

    Raises:
        InvalidValue: `url` is not one that is posted to. Where a name leads is seen when it is.
    """
    if len(text) > MAX_URL_CHARS:
        raise InvalidValue("url", f"url has {len(text)} characters, the most is {MAX_URL_CHARS}")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidValue("url", "url must be written in ASCII, with everything else encoded")
    try:
        url = URL(text, encoded=True)
        host, port = url.raw_host, url.port
    except ValueError:
        raise InvalidValue("url", "url is not a URL") from None
    if url.scheme not in ("http", "https") or not host or port is None:
        raise InvalidValue("url", "url must begin with https://")
    if url.user is not None or url.password is not None:
        raise InvalidValue("url", "url must not hold a user name or password")
    host = host.lower().rstrip(".")
    literal = f"[{host}]" if ":" in host else host
    if is_trusted(f"{url.scheme}://{literal}:{port}", allow):
        return url, True
    if url.scheme != "https" or port != _PORT:
        raise InvalidValue("url", "url must begin with https:// and have no port")
    if _is_private_literal(host):
        raise InvalidValue("url", "url must lead to a public address")
    return url, False


def _is_private_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return not is_public(host)


class Poster:
    """Posts, as many at a time as its callers do. It connects with the first one; `close` at the end."""

    def __init__(
        self, *, allow: Sequence[str] = (), timeout_s: float = 15.0, resolver: AbstractResolver | None = None
    ) -> None:
        """`allow` are origins that are trusted wherever they are; `timeout_s` is for a whole exchange."""
        self._allow: Final = allow
        self.timeout_s: Final = timeout_s
        self._resolver = resolver
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Post once; whatever goes wrong is an answer without a status. No text of it holds the URL."""
        began = time.monotonic()
        try:
            asked, is_trusted_origin = checked_url(url, self._allow)
        except InvalidValue as error:
            return Answer(None, str(error), 0.0)
        status: int | None = None
        text = bytearray()
        wait_s: float | None = None
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self._session(is_trusted_origin).post(
                    asked, data=body, headers={**_HEADERS, **headers}, allow_redirects=False
                ) as answer,
            ):
                status = answer.status
                wait_s = retry_after(answer.headers.get("Retry-After"), now_s=time.time())
                while len(text) < _READ_BYTES and (part := await answer.content.read(_READ_BYTES - len(text))):
                    text += part
        except PrivateAddress:
            return Answer(None, "the host has an address that is not public", time.monotonic() - began)
        except TimeoutError:
            if status is None:
                return Answer(None, f"no answer within {self.timeout_s:g} s", time.monotonic() - began)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The error's own text may hold the whole URL. With a status, the answer is what counts.
            if status is None:
                return Answer(None, f"no answer: {type(error).__name__}", time.monotonic() - began)
        return Answer(status, _shown(bytes(text)), time.monotonic() - began, wait_s)

    async def close(self) -> None:
        """Ends what is under way."""
        for session in self._sessions.values():
            await session.close()
        if self._resolver is not None:
            await self._resolver.close()

    def _session(self, is_trusted_origin: bool) -> aiohttp.ClientSession:
        if is_trusted_origin not in self._sessions:
            self._resolver = self._resolver or _Names()
            connector = aiohttp.TCPConnector(
                socket_factory=None if is_trusted_origin else public_socket,
                resolver=self._resolver,
                limit=0,  # the sender bounds them
                use_dns_cache=False,
                force_close=True,
                happy_eyeballs_delay=None,
            )
            self._sessions[is_trusted_origin] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._sessions[is_trusted_origin]


class _Names(AbstractResolver):
    """Looks names up on threads of its own: a name server that never answers takes none from the rest of the process,
    where a handful of threads are shared by all."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="webhook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
            if kind in (socket.AF_INET, socket.AF_INET6)
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _shown(body: bytes) -> str:
    """The beginning of a body as a text column can hold it."""
    return body.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")[:_KEPT_CHARS]
