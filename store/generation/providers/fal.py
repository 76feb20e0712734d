"""fal's queue: submitted, polled, canceled; callbacks are signed with Ed25519.

A task's addresses are made from its id, as the provider's own client makes them: without the model's sub-path.
"""

from __future__ import annotations

import base64
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
from store.generation.models import Models
from store.generation.providers import Capabilities, Done, Output, Progress, Request, Task
from store.generation.providers.answers import Answer, Fault
from store.generation.providers.calls import Call, Endpoint
from store.generation.providers.outputs import data_url, from_url, seed_in
from store.generation.providers.remote import Remote
from store.generation.providers.signatures import Kept, is_signed_by_fal
from store.generation.providers.task_ids import called_about, named

__all__ = ["Fal"]

_TYPES: Final[dict[str, type[GenerationError]]] = {
    "content_policy_violation": ContentPolicy,
    "bad_request": InvalidRequest,
    "client_cancelled": Canceled,
    "client_disconnected": Canceled,
    **dict.fromkeys(
        (
            "request_timeout",
            "startup_timeout",
            "runner_scheduling_failure",
            "runner_connection_timeout",
            "runner_connection_refused",
            "runner_connection_error",
            "runner_disconnected",
            "runner_incomplete_response",
            "runner_server_error",
            "internal_error",
        ),
        ProviderFailed,
    ),
}
"""How a task ended. A failure of the machines was tried again in the queue already, and is not billed."""
_SPACES: Final = ("workflows", "comfy")


class _Queued(msgspec.Struct):
    request_id: str = ""


class _Status(msgspec.Struct):
    status: str = ""
    queue_position: int | None = None


class _Image(msgspec.Struct):
    url: str = ""


class _Result(msgspec.Struct):
    images: list[_Image] | None = None
    has_nsfw_concepts: list[bool] | None = None
    seed: Any = None


class _Detail(msgspec.Struct):
    msg: str = ""
    type: str = ""


class _Refusal(msgspec.Struct):
    detail: str | list[_Detail] = ""
    error_type: str = ""


class _Jwk(msgspec.Struct):
    x: str = ""
    crv: str = ""


class _Jwks(msgspec.Struct):
    keys: list[_Jwk]


class Fal(Remote):
    """`POST /{owner}/{app}/{path}`, then `/{owner}/{app}/requests/{id}/status` and the result."""

    name = "fal"
    capabilities = Capabilities(has_tasks=True, cancels=True, calls_back=True)

    def __init__(self, at: Endpoint, models: Models, *, keys_url: str, clock: Clock | None = None) -> None:
        super().__init__(at, models, explain=_explain, scheme="Key")
        self._keys_url, self._clock = keys_url, clock or SystemClock()
        self._keys = Kept(self._fetch_keys, self._clock)

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Task:
        model = self._models.checked(request)
        path = f"/{model.remote}/image-to-image" if request.references else f"/{model.remote}"
        async with self._submitting(request, key) as call:
            answer = await call.send(
                "POST",
                path,
                json=_input(request),
                query={"fal_webhook": request.callback_url} if request.callback_url else None,
            )
            return named(call, self.name, call.read(answer, _Queued).request_id)

    async def poll(self, task: Task, *, key: SecretStr | None = None) -> Progress | Done:
        path = self._path(task)
        async with self._http.call("poll", task.model, key) as call:
            found = call.read(await call.send("GET", f"{path}/status"), _Status)
            if found.status != "COMPLETED":
                call.is_waiting = True
                return Progress(queue_position=found.queue_position if found.status == "IN_QUEUE" else None)
        # Completed is not succeeded: only the result tells.
        async with self._http.call("result", task.model, key) as call:
            return _done(call, call.read(await call.send("GET", path), _Result))

    def resume(self, model: str, task_id: str) -> Task:
        return Task(self.name, model, task_id)

    async def cancel(self, task: Task, *, key: SecretStr | None = None) -> bool:
        async with self._http.call("cancel", task.model, key) as call:
            try:
                found = call.read(await call.send("PUT", f"{self._path(task)}/cancel"), _Status)
            except (NoSuchTask, InvalidRequest):
                return False
            return found.status in ("OK", "CANCELLATION_REQUESTED")

    async def called_back(self, headers: Mapping[str, str], body: bytes) -> str:
        headers = {name.lower(): value for name, value in headers.items()}
        now_s = self._clock.wall()
        if not await self._keys.accepts(lambda keys: is_signed_by_fal(headers, body, keys, now_s=now_s)):
            raise BadCallback(f"{self.name}: the callback is not signed by it", provider=self.name)
        return called_about(self.name, body, lambda data: msgspec.json.decode(data, type=_Queued).request_id)

    async def _fetch_keys(self) -> list[bytes]:
        async with self._http.call("keys", "") as call:
            found = call.read(await call.send("GET", self._keys_url, key=""), _Jwks)
            return [_raw(key.x) for key in found.keys if key.crv == "Ed25519"]

    def _path(self, task: Task) -> str:
        parts = self._models.of(task.model).remote.split("/")
        return "/" + "/".join(parts[: 3 if parts[0] in _SPACES else 2]) + f"/requests/{task.id}"


def _input(request: Request) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "prompt": request.prompt,
        "num_images": request.n,
        "output_format": "png",
        **request.options,
    }
    if request.references:
        # Its size is the reference's.
        asked["image_url"] = data_url(request.references[0])
    else:
        asked["image_size"] = {"width": request.width, "height": request.height}
    if request.steps is not None:
        asked["num_inference_steps"] = request.steps
    if request.seed is not None:
        asked["seed"] = request.seed
    return asked


def _done(call: Call, found: _Result) -> Done:
    """A picture that its checker objects to comes as a black one."""
    images, flags = found.images or [], found.has_nsfw_concepts or []
    black = {index for index, is_black in enumerate(flags) if is_black}
    outputs: list[Output] = [
        from_url(call, image.url, seed=seed_in(found.seed))
        for index, image in enumerate(images)
        if image.url and index not in black
    ]
    if not outputs and any(flags):
        raise call.error(ContentPolicy, "blackened the picture")
    if not outputs:
        raise call.error(NoImage, "completed without a picture")
    return Done(tuple(outputs))


def _explain(answer: Answer) -> Fault:
    found = answer.read(_Refusal) or _Refusal()
    if isinstance(found.detail, str):
        kind = _TYPES.get(found.error_type or answer.headers.get("x-fal-error-type", ""))
        return Fault(kind, found.detail)
    first = found.detail[0] if found.detail else _Detail()
    return Fault(_TYPES.get(first.type), f"{first.msg} ({first.type})")


def _raw(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""
