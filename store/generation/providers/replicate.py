"""Replicate: predictions of its official models, polled or called back (Standard Webhooks)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from pydantic import SecretStr

from store.clock import Clock, SystemClock
from store.generation.errors import (
    BadCallback,
    Canceled,
    ContentPolicy,
    GenerationError,
    InvalidRequest,
    NoImage,
    NoSuchTask,
    ProviderFailed,
)
from store.generation.limits import Model, aspect
from store.generation.models import Models
from store.generation.providers import Capabilities, Done, Progress, Request, Task
from store.generation.providers.answers import Answer, Fault
from store.generation.providers.calls import Call, Endpoint
from store.generation.providers.outputs import data_url, from_url, seed_in
from store.generation.providers.remote import Remote
from store.generation.providers.signatures import Kept, is_standard_webhook
from store.generation.providers.task_ids import called_about, named

__all__ = ["Replicate"]

_RESETS: Final = re.compile(r"resets in ~?(\d+)\s*s")
_UNSAFE: Final = re.compile(r"nsfw|sensitive|safety|content policy|moderat|E005", re.IGNORECASE)


class _Prediction(msgspec.Struct):
    id: str = ""
    status: str = ""
    output: str | list[str] | None = None
    error: str | None = None
    input: Any = None
    """What was asked for, with the seed."""


class _Refusal(msgspec.Struct):
    detail: str | None = None
    title: str | None = None


class _Secret(msgspec.Struct):
    key: str


class Replicate(Remote):
    """`POST /models/{owner}/{name}/predictions`, without waiting: the id must be known before the picture is."""

    name = "replicate"
    capabilities = Capabilities(has_tasks=True, cancels=True, calls_back=True)

    def __init__(self, at: Endpoint, models: Models, *, clock: Clock | None = None) -> None:
        super().__init__(at, models, explain=_explain)
        self._clock = clock or SystemClock()
        self._secret = Kept(self._fetch_secret, self._clock)

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Task:
        model = self._models.checked(request)
        asked: dict[str, Any] = {"input": _input(request, model)}
        # Under a user's own key it would be signed with that account's secret, which we do not have.
        if request.callback_url and key is None:
            asked |= {"webhook": request.callback_url, "webhook_events_filter": ["completed"]}
        # A prediction that waits longer than we would is ended there before it starts, unbilled.
        deadline_s = round(model.pace_of(request.width, request.height).deadline_s)
        async with self._submitting(request, key) as call:
            answer = await call.send(
                "POST", f"/models/{model.remote}/predictions", json=asked, headers={"Cancel-After": f"{deadline_s}s"}
            )
            return named(call, self.name, call.read(answer, _Prediction).id)

    async def poll(self, task: Task, *, key: SecretStr | None = None) -> Progress | Done:
        async with self._http.call("poll", task.model, key) as call:
            found = call.read(await call.send("GET", f"/predictions/{task.id}"), _Prediction)
            match found.status:
                case "starting" | "processing":
                    call.is_waiting = True
                    return Progress()
                case "succeeded":
                    urls = [found.output] if isinstance(found.output, str) else found.output or []
                    if not urls:
                        raise call.error(NoImage, "the prediction succeeded without a picture")
                    seed = seed_in(found.input.get("seed")) if isinstance(found.input, dict) else None
                    return Done(tuple(from_url(call, url, seed=seed) for url in urls))
                case "canceled" | "aborted":
                    raise call.error(Canceled, f"the prediction was {found.status}")
                case _:
                    raise _failed(call, found)

    def resume(self, model: str, task_id: str) -> Task:
        return Task(self.name, model, task_id)

    async def cancel(self, task: Task, *, key: SecretStr | None = None) -> bool:
        async with self._http.call("cancel", task.model, key) as call:
            try:
                found = call.read(await call.send("POST", f"/predictions/{task.id}/cancel"), _Prediction)
            except (NoSuchTask, InvalidRequest):
                return False
            return found.status not in ("succeeded", "failed")

    async def called_back(self, headers: Mapping[str, str], body: bytes) -> str:
        headers = {name.lower(): value for name, value in headers.items()}
        now_s = self._clock.wall()
        if not await self._secret.accepts(lambda secret: is_standard_webhook(headers, body, secret, now_s=now_s)):
            raise BadCallback(f"{self.name}: the callback is not signed by it", provider=self.name)
        return called_about(self.name, body, lambda data: msgspec.json.decode(data, type=_Prediction).id)

    async def _fetch_secret(self) -> str:
        async with self._http.call("keys", "") as call:
            return call.read(await call.send("GET", "/webhooks/default/secret"), _Secret).key


def _input(request: Request, model: Model) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "prompt": request.prompt,
        "aspect_ratio": aspect(request.width, request.height, model.limits.aspects),
        "megapixels": "0.25" if request.width * request.height <= 512 * 512 else "1",
        "num_outputs": request.n,
        "output_format": "png",
        **request.options,
    }
    if request.steps is not None:
        asked["num_inference_steps"] = request.steps
    if request.seed is not None:
        asked["seed"] = request.seed
    if request.references:
        asked["image"] = data_url(request.references[0])
    return asked


def _failed(call: Call, found: _Prediction) -> GenerationError:
    words = found.error or f"status {found.status!r}"
    return call.error(ContentPolicy if _UNSAFE.search(words) else ProviderFailed, f"the prediction failed: {words}")


def _explain(answer: Answer) -> Fault:
    found = answer.read(_Refusal)
    words = (found.detail or found.title or "") if found else ""
    resets = _RESETS.search(words)
    return Fault(None, words, float(resets[1]) if resets else None)
