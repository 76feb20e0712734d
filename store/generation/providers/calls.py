"""One call of a provider over HTTP: deadline, size cap, errors of ours, and its log line.

The only file that knows the HTTP client. What a call may do to us is bounded here; what its answer means is the
adapter's. A call is never repeated here, and a redirect never followed: it would take the key along.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import httpx
import msgspec
import structlog
from pydantic import SecretStr

from store.generation.errors import (
    BadAnswer,
    GenerationError,
    InvalidRequest,
    NoSuchTask,
    ProviderAccount,
    ProviderFailed,
    TimedOut,
    Unavailable,
    UnknownOutcome,
)
from store.generation.providers.answers import Answer, Fault, by_status
from store.generation.retries import retry_after

__all__ = ["Call", "Endpoint", "Http", "open_client"]

T = TypeVar("T")

CONNECT_S: Final = 10.0
_DETAIL: Final = 300

_log = structlog.get_logger()


class Endpoint(NamedTuple):
    """Where a provider is, and how it is asked."""

    client: httpx.AsyncClient
    url: str
    key: SecretStr
    max_bytes: int
    """Most bytes of one answer."""
    look_s: float = 30.0
    """Deadline of calls that do not wait for a picture: to hand over a task, to look at it, to cancel it."""


def open_client() -> httpx.AsyncClient:
    """A client for one provider: its connections are shared by all calls. Close it with `aclose`."""
    # Its lines at INFO hold whole URLs, and fal takes the callback's URL, with its secret, in the query.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return httpx.AsyncClient(
        verify=_trusted(),
        follow_redirects=False,
        trust_env=False,
        limits=httpx.Limits(max_connections=256, max_keepalive_connections=16, keepalive_expiry=15.0),
        headers={"Accept-Encoding": "identity", "User-Agent": "peruse"},
    )


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes 20 ms and 600 KB."""
    return httpx.create_ssl_context(trust_env=False)


class Http:
    """A provider's address, key and way of saying no."""

    def __init__(
        self, provider: str, at: Endpoint, *, explain: Callable[[Answer], Fault], scheme: str = "Bearer"
    ) -> None:
        """`explain` reads what an answer with an error status says."""
        self.provider, self.client, self.url, self.key = provider, at.client, at.url.rstrip("/"), at.key
        self.max_bytes, self.look_s, self.explain, self.scheme = at.max_bytes, at.look_s, explain, scheme

    @property
    def has_key(self) -> bool:
        return bool(self.key.get_secret_value())

    @asynccontextmanager
    async def call(
        self, what: str, model: str, key: SecretStr | None = None, *, hide: tuple[str, ...] = ()
    ) -> AsyncIterator[Call]:
        """One call, logged once when the block ends, however it ends.

        `what`: submit, poll, result, cancel, keys. `hide`: texts that no message may repeat, beside the key.
        """
        call = Call(self, what, model, key or self.key, hide)
        started = time.monotonic()
        code = "broken"
        try:
            yield call
            code = "ok"
        except GenerationError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = "abandoned"
            raise
        finally:
            # A task is polled every second: that it goes on is no news.
            log = _log.debug if call.is_waiting else _log.info if code == "ok" else _log.warning
            log(
                "provider.called",
                provider=self.provider,
                model=model,
                call=what,
                status=call.status,
                code=code,
                took_ms=round((time.monotonic() - started) * 1000),
                cost_usd=None if call.cost_usd is None else str(call.cost_usd),
                **({"detail": call.detail} if call.detail else {}),
            )


class Call:
    """One call under way. The adapter notes on it what the log line should say."""

    def __init__(self, http: Http, what: str, model: str, key: SecretStr, hide: tuple[str, ...]) -> None:
        self._http, self._key, self.model = http, key.get_secret_value(), model
        # Shorter texts would take words apart that have nothing to do with them.
        self._hide = tuple(text for text in (self._key, *self._key.split(":"), *hide) if len(text) >= 4)
        self.status: int | None = None
        self.cost_usd: Decimal | None = None
        self.detail = ""
        self.is_waiting = False
        self.is_submit = what == "submit"

    async def send(
        self,
        method: str,
        path: str,
        *,
        deadline_s: float | None = None,
        json: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
        files: list[tuple[str, tuple[str, bytes, str]]] | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Answer:
        """Sends and reads. `path` begins with /; `key` replaces ours in the header, "" sends none.

        Raises: an error of ours for every failure and every status that is not 2xx.
        """
        deadline_s = self._http.look_s if deadline_s is None else deadline_s
        token = self._key if key is None else key
        if key is None and not token:
            raise self.error(ProviderAccount, f"no key: set PERUSE_{self._http.provider.upper()}_KEY, or bring one")
        if not (token.isascii() and token.isprintable()):
            raise self.error(ProviderAccount, "the key has signs that no key has")
        auth = {"Authorization": f"{self._http.scheme} {token}"} if token else {}
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._exchange(
                    self._http.client.build_request(
                        method,
                        path if path.startswith("http") else self._http.url + path,
                        content=None if json is None else msgspec.json.encode(json),
                        data=form,
                        files=files,
                        params=query,
                        headers={
                            **auth,
                            **({} if json is None else {"Content-Type": "application/json"}),
                            **(headers or {}),
                        },
                        timeout=httpx.Timeout(deadline_s, connect=CONNECT_S, pool=CONNECT_S),
                    )
                )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise self.error(Unavailable, f"could not be reached: {type(error).__name__}") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise self._lost(TimedOut, f"gave no answer within {deadline_s:g} s") from error
        except httpx.DecodingError as error:
            raise self._lost(BadAnswer, "sent an answer that cannot be unpacked") from error
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError) as error:
            # Not from the error: it may show the headers.
            raise self.error(InvalidRequest, f"cannot be asked: {type(error).__name__}") from None
        except httpx.TransportError as error:
            raise self._lost(UnknownOutcome, f"broke off: {type(error).__name__}") from error
        if not 200 <= answer.status < 300:
            raise self._refused(answer)
        return answer

    async def _exchange(self, request: httpx.Request) -> Answer:
        response = await self._http.client.send(request, stream=True)
        self.status = response.status_code
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self._http.max_bytes:
                    raise self._lost(BadAnswer, f"sent more than {self._http.max_bytes} bytes")
        finally:
            await response.aclose()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, bytes(body))

    def read(self, answer: Answer, type: type[T]) -> T:
        """The answer's JSON as `type`. Raises: BadAnswer."""
        found = answer.read(type)
        if found is None:
            raise self._lost(BadAnswer, f"sent {answer.content_type or 'something'} that is not the promised JSON")
        return found

    def error(self, kind: type[GenerationError], words: str, *, retry_after_s: float | None = None) -> GenerationError:
        """An error about this call, in words without secrets."""
        self.detail = self._clean(words)
        error = kind(
            f"{self._http.provider}: {self.model}: {self.detail}",
            provider=self._http.provider,
            model=self.model,
            status=self.status,
        )
        error.retry_after_s = retry_after_s
        return error

    def weigh(self, kind: type[GenerationError]) -> type[GenerationError]:
        """What an error of the call itself means. Only a submit makes something: a look that fails says nothing."""
        is_vague = issubclass(kind, UnknownOutcome | ProviderFailed)
        return Unavailable if is_vague and not self.is_submit else kind

    def _lost(self, kind: type[GenerationError], words: str) -> GenerationError:
        return self.error(self.weigh(kind), words)

    def _refused(self, answer: Answer) -> GenerationError:
        fault = self._http.explain(answer)
        if fault.error is not None:
            kind = fault.error
        elif answer.status in (404, 410) and not self.is_submit:
            kind = NoSuchTask
        else:
            kind = self.weigh(by_status(answer.status))
        asked_s = retry_after(answer.headers.get("retry-after"), now_s=time.time())
        return self.error(
            kind,
            f"status {answer.status}: {fault.words}" if fault.words else f"status {answer.status}",
            retry_after_s=fault.retry_after_s if asked_s is None else asked_s,
        )

    def _clean(self, words: str) -> str:
        for secret in self._hide:
            words = words.replace(secret, "[hidden]")
        return " ".join(words.split())[:_DETAIL]
