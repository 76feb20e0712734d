"""OpenAI's images: generations, and edits when there are references."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from pydantic import SecretStr

from store.generation.errors import ContentPolicy, GenerationError, NoImage, ProviderAccount
from store.generation.limits import Model
from store.generation.models import Models
from store.generation.providers import Done, Output, Request
from store.generation.providers.answers import Answer, Fault
from store.generation.providers.at_once import AnswersAtOnce
from store.generation.providers.calls import Call, Endpoint
from store.generation.providers.outputs import from_base64, from_url
from store.generation.providers.remote import Remote

__all__ = ["OpenAI"]

_CODES: Final[dict[str, type[GenerationError]]] = {
    "moderation_blocked": ContentPolicy,
    "content_policy_violation": ContentPolicy,
    # Delivered as 400 and 429: our account's fault all the same, and no use in trying again.
    "billing_hard_limit_reached": ProviderAccount,
    "insufficient_quota": ProviderAccount,
    "invalid_api_key": ProviderAccount,
}
_SAFETY: Final = "safety system"
"""What dall-e-2 says in its message, without any code."""


class _Problem(msgspec.Struct):
    message: str | None = None
    code: str | None = None
    type: str | None = None


class _Refusal(msgspec.Struct):
    error: _Problem


class _Image(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Images(msgspec.Struct):
    data: list[_Image] | None = None


class OpenAI(AnswersAtOnce, Remote):
    """`POST /images/generations` and `/images/edits`."""

    name = "openai"

    def __init__(self, at: Endpoint, models: Models) -> None:
        super().__init__(at, models, explain=_explain)

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Done:
        model = self._models.checked(request)
        asked = _asked(request, model)
        pace = model.pace_of(request.width, request.height)
        async with self._submitting(request, key) as call:
            if request.references:
                name = "image[]" if len(request.references) > 1 else "image"
                answer = await call.send(
                    "POST",
                    "/images/edits",
                    form={field: str(value) for field, value in asked.items()},
                    files=[
                        (
                            name,
                            (f"{index}.{picture.content_type.rpartition('/')[2]}", picture.data, picture.content_type),
                        )
                        for index, picture in enumerate(request.references)
                    ],
                    deadline_s=pace.deadline_s,
                )
            else:
                answer = await call.send("POST", "/images/generations", json=asked, deadline_s=pace.deadline_s)
            found = call.read(answer, _Images)
            outputs = [_output(call, image) for image in found.data or () if image.b64_json or image.url]
            if not outputs:
                raise call.error(NoImage, "answered without a picture")
            return Done(tuple(outputs[: request.n]))


def _asked(request: Request, model: Model) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": model.remote,
        "prompt": request.prompt,
        "n": request.n,
        "size": f"{request.width}x{request.height}",
        **request.options,
    }
    if model.remote.startswith("dall-e"):
        # An address lives for an hour; bytes are here. The newer models always send bytes and refuse the field.
        asked["response_format"] = "b64_json"
    else:
        # Left to itself it may choose the one that costs four times as much.
        asked["quality"] = "medium"
    return asked


def _output(call: Call, image: _Image) -> Output:
    revised = image.revised_prompt or ""
    if image.b64_json:
        return from_base64(call, image.b64_json, revised_prompt=revised)
    return from_url(call, image.url or "", revised_prompt=revised)


def _explain(answer: Answer) -> Fault:
    found = answer.read(_Refusal)
    if not found:
        return Fault(None)
    problem = found.error
    kind = _CODES.get(problem.code or "") or _CODES.get(problem.type or "")
    if kind is None and answer.status == 400 and _SAFETY in (problem.message or ""):
        kind = ContentPolicy
    return Fault(kind, f"{problem.message or ''} ({problem.code})" if problem.code else problem.message or "")
