"""OpenRouter: its image endpoint, and chat completions for models that it does not serve there."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec
from pydantic import SecretStr

from store.generation.errors import (
    ContentPolicy,
    GenerationError,
    InvalidRequest,
    NoImage,
    ProviderAccount,
    ProviderFailed,
    RateLimited,
    Unavailable,
    UnknownOutcome,
)
from store.generation.limits import Model, aspect
from store.generation.models import Models
from store.generation.providers import Done, Output, Request
from store.generation.providers.answers import Answer, Fault
from store.generation.providers.at_once import AnswersAtOnce
from store.generation.providers.calls import Call, Endpoint
from store.generation.providers.outputs import data_url, from_base64, from_url
from store.generation.providers.remote import Remote

__all__ = ["OpenRouter"]

_TYPES: Final[dict[str, type[GenerationError]]] = {
    "authentication": ProviderAccount,
    "permission_denied": ProviderAccount,
    "payment_required": ProviderAccount,
    "rate_limit_exceeded": RateLimited,
    "provider_overloaded": RateLimited,
    "provider_unavailable": Unavailable,
    "content_policy_violation": ContentPolicy,
    "refusal": ContentPolicy,
    "server": ProviderFailed,
    "timeout": UnknownOutcome,
    "unmapped": ProviderFailed,
}
"""`metadata.error_type`; every other one is about the request."""


class _Problem(msgspec.Struct):
    message: str = ""
    code: int | str | None = None
    metadata: dict[str, Any] | None = None


class _Usage(msgspec.Struct):
    cost: Decimal | None = None


_NO_USAGE: Final = msgspec.Raw(b"null")
"""Read apart from the pictures: none is lost for a cost that makes no sense."""


class _Image(msgspec.Struct):
    b64_json: str = ""


class _Images(msgspec.Struct):
    data: list[_Image] | None = None
    usage: msgspec.Raw = _NO_USAGE
    error: _Problem | None = None


class _Url(msgspec.Struct):
    url: str


class _Attached(msgspec.Struct):
    image_url: _Url


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    images: list[_Attached] | None = None


class _Choice(msgspec.Struct):
    message: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None
    error: _Problem | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NO_USAGE
    error: _Problem | None = None


class OpenRouter(AnswersAtOnce, Remote):
    """`POST /images`; where that knows nothing of a model, `POST /chat/completions`."""

    name = "openrouter"

    def __init__(self, at: Endpoint, models: Models) -> None:
        super().__init__(at, models, explain=_explain)

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Done:
        model = self._models.checked(request)
        try:
            return await self._images(request, model, key)
        except InvalidRequest as error:
            # 404 before anything was drawn: the model is only served by chat, or not at all, which chat tells as well.
            if error.status not in (404, 405):
                raise
        return await self._chat(request, model, key)

    async def _images(self, request: Request, model: Model, key: SecretStr | None) -> Done:
        asked: dict[str, Any] = {
            "model": model.remote,
            "prompt": request.prompt,
            "n": request.n,
            **_shape(request, model),
        }
        if request.seed is not None:
            asked["seed"] = request.seed
        if request.references:
            asked["input_references"] = [_attachment(data_url(picture)) for picture in request.references]
        async with self._submitting(request, key) as call:
            answer = await call.send("POST", "/images", json=asked, deadline_s=_deadline_s(request, model))
            found = call.read(answer, _Images)
            _note_cost(call, found.usage)
            if found.error:
                raise _told(call, found.error)
            outputs = [
                from_base64(call, image.b64_json, seed=request.seed) for image in found.data or () if image.b64_json
            ]
            return _done(call, outputs[: request.n])

    async def _chat(self, request: Request, model: Model, key: SecretStr | None) -> Done:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
        content += [_attachment(data_url(picture)) for picture in request.references]
        asked: dict[str, Any] = {
            "model": model.remote,
            "modalities": ["image", "text"],
            "stream": False,
            "messages": [{"role": "user", "content": content if request.references else request.prompt}],
        }
        if shape := aspect(request.width, request.height, model.limits.aspects or ("1:1",)):
            asked["image_config"] = {"aspect_ratio": shape}
        async with self._submitting(request, key) as call:
            answer = await call.send("POST", "/chat/completions", json=asked, deadline_s=_deadline_s(request, model))
            found = call.read(answer, _Chat)
            _note_cost(call, found.usage)
            choice = found.choices[0] if found.choices else _Choice()
            if problem := found.error or choice.error:
                raise _told(call, problem)
            outputs = [from_url(call, image.image_url.url, seed=None) for image in choice.message.images or ()]
            if not outputs and (choice.finish_reason == "content_filter" or choice.message.refusal):
                raise call.error(ContentPolicy, f"refused: {choice.message.refusal or 'content filter'}")
            return _done(call, outputs[: request.n])


def _shape(request: Request, model: Model) -> dict[str, str]:
    """Proportions for the models that know only those, else pixels: both together are refused."""
    if not model.limits.aspects:
        return {"size": f"{request.width}x{request.height}"}
    shape = aspect(request.width, request.height, model.limits.aspects)
    return {"aspect_ratio": shape or "1:1"}


def _attachment(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _deadline_s(request: Request, model: Model) -> float:
    return model.pace_of(request.width, request.height).deadline_s


def _note_cost(call: Call, usage: msgspec.Raw) -> None:
    try:
        found = msgspec.json.decode(usage, type=_Usage | None)
    except msgspec.DecodeError:
        return
    if found and found.cost is not None and found.cost.is_finite() and found.cost >= 0:
        call.cost_usd = found.cost


def _done(call: Call, outputs: list[Output]) -> Done:
    if not outputs:
        raise call.error(NoImage, "answered without a picture")
    return Done(tuple(outputs), call.cost_usd)


def _told(call: Call, problem: _Problem) -> GenerationError:
    """An error inside an answer of status 200: the model had started."""
    status = problem.code if isinstance(problem.code, int) else 500
    kind = _kind(status, problem.metadata or {})
    if kind is None:
        kind = RateLimited if status in (429, 529) else ProviderFailed if status >= 500 else InvalidRequest
    return call.error(kind, f"error {problem.code} in the answer: {problem.message}")


def _explain(answer: Answer) -> Fault:
    found = answer.read(_Chat)
    problem = found.error if found and found.error else _Problem()
    return Fault(_kind(answer.status, problem.metadata or {}), problem.message)


def _kind(status: int, metadata: dict[str, Any]) -> type[GenerationError] | None:
    """None: as the status says."""
    if isinstance(error_type := metadata.get("error_type"), str):
        return _TYPES.get(error_type, InvalidRequest)
    # Without a type, 403 is moderation or a guardrail; keys are refused with 401.
    return ContentPolicy if status == 403 else None
