"""Cloudflare Workers AI over REST: models that answer bytes, base64 in JSON, or want a form.

Whether an answer is bytes or JSON is read from its content type, never from the name of the model; what the bytes are,
from the bytes: the provider's own examples call a PNG a JPEG.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec
from pydantic import SecretStr

from store.generation.errors import (
    ContentPolicy,
    GenerationError,
    InvalidRequest,
    NoImage,
    ProviderAccount,
    RateLimited,
    UnknownOutcome,
)
from store.generation.limits import Model
from store.generation.models import Models
from store.generation.providers import Done, Request
from store.generation.providers.answers import Answer, Fault
from store.generation.providers.at_once import AnswersAtOnce
from store.generation.providers.calls import Call, Endpoint
from store.generation.providers.outputs import from_base64, from_bytes
from store.generation.providers.remote import Remote

__all__ = ["WorkersAI"]

_CODES: Final[dict[int, type[GenerationError]]] = {
    3030: ContentPolicy,
    3007: UnknownOutcome,
    3008: UnknownOutcome,
    3046: UnknownOutcome,
    3021: RateLimited,
    3040: RateLimited,
    # The free share of the day is used up: status 429, and no use in trying before midnight UTC.
    3036: ProviderAccount,
    4006: ProviderAccount,
    3003: InvalidRequest,
    3006: InvalidRequest,
    3042: InvalidRequest,
    5004: InvalidRequest,
    5007: InvalidRequest,
    3023: ProviderAccount,
    3041: ProviderAccount,
    5016: ProviderAccount,
    5018: ProviderAccount,
    10000: ProviderAccount,
}
_FORMS: Final = ("flux-2-dev", "flux-2-klein")
_FIXED_SIZE: Final = "flux-1-schnell"
"""Its schema refuses every field but prompt and steps."""


class _Problem(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Result(msgspec.Struct):
    image: str = ""


class _Envelope(msgspec.Struct):
    success: bool = True
    result: _Result | None = None
    errors: list[_Problem] | None = None


class WorkersAI(AnswersAtOnce, Remote):
    """`POST /accounts/{account}/ai/run/{model}`. A user's own key is written `account:token`."""

    name = "workers_ai"

    def __init__(self, at: Endpoint, models: Models, *, account: str) -> None:
        super().__init__(at, models, explain=_explain)
        self._account = account

    @property
    def has_key(self) -> bool:
        return super().has_key and bool(self._account)

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Done:
        model = self._models.checked(request)
        account, token = self._account, None
        if key is not None:
            account, _, token = key.get_secret_value().rpartition(":")
        async with self._submitting(request, key) as call:
            if not account or not account.replace("-", "").isalnum():
                raise call.error(ProviderAccount, "no account: set PERUSE_WORKERS_AI_ACCOUNT, or bring account:token")
            answer = await call.send(
                "POST",
                f"/accounts/{account}/ai/run/{model.remote}",
                deadline_s=model.pace_of(request.width, request.height).deadline_s,
                key=token,
                **_body(request, model),
            )
            if answer.content_type.startswith("image/") or answer.content_type == "application/octet-stream":
                return Done((from_bytes(call, answer.body, seed=request.seed),))
            return _from_json(call, answer, request)


def _from_json(call: Call, answer: Answer, request: Request) -> Done:
    found = call.read(answer, _Envelope)
    if not found.success:
        problem = found.errors[0] if found.errors else _Problem()
        kind = _CODES.get(problem.code, NoImage)
        raise call.error(kind, f"error {problem.code} in the answer: {problem.message}")
    if not found.result or not found.result.image:
        raise call.error(NoImage, "answered without a picture")
    return Done((from_base64(call, found.result.image, seed=request.seed),))


def _body(request: Request, model: Model) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": request.prompt}
    steps = request.steps or (model.limits.steps.default if model.limits.steps else None)
    if _FIXED_SIZE in model.remote:
        return {"json": {**fields, "steps": steps}}
    fields |= {"width": request.width, "height": request.height, **request.options}
    if request.seed is not None:
        fields["seed"] = request.seed
    if any(name in model.remote for name in _FORMS):
        return _form(request, {**fields, **({"steps": steps} if steps else {})})
    if request.negative_prompt:
        fields["negative_prompt"] = request.negative_prompt
    if request.references:
        fields["image_b64"] = base64.b64encode(request.references[0].data).decode()
    return {"json": {**fields, **({"num_steps": steps} if steps else {})}}


def _form(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """A multipart form, also when there is no file: every field is a part without a file name."""
    parts = [(name, (None, str(value).encode(), None)) for name, value in fields.items()]
    files = [
        (f"input_image_{index}", (f"{index}", picture.data, picture.content_type))
        for index, picture in enumerate(request.references)
    ]
    return {"files": [*parts, *files]}


def _explain(answer: Answer) -> Fault:
    found = answer.read(_Envelope)
    problem = found.errors[0] if found and found.errors else _Problem()
    return Fault(_CODES.get(problem.code), f"{problem.message} ({problem.code})" if problem.code else "")
