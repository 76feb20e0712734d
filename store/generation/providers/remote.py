"""What the providers share that are asked over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from pydantic import SecretStr

from store.generation.models import Models
from store.generation.providers import Request
from store.generation.providers.answers import Answer, Fault
from store.generation.providers.calls import Call, Endpoint, Http

__all__ = ["Remote"]


class Remote:
    """Whom an adapter asks, about which models, with whose key."""

    name: str

    def __init__(
        self, at: Endpoint, models: Models, *, explain: Callable[[Answer], Fault], scheme: str = "Bearer"
    ) -> None:
        """`explain` and `scheme`: see `Http`."""
        self._http = Http(self.name, at, explain=explain, scheme=scheme)
        self._models = models

    @property
    def has_key(self) -> bool:
        return self._http.has_key

    def _submitting(self, request: Request, key: SecretStr | None) -> AbstractAsyncContextManager[Call]:
        """The call that hands a request over. No message about it repeats the prompt, or the callback's secret."""
        return self._http.call("submit", request.model, key, hide=(request.prompt, request.callback_url))
