"""Nanobanana: a task that is polled. Whether a call succeeded is said by `code` in the body, whatever the HTTP status.

One result per task is all that it documents, so a call draws one picture. Its callbacks are not signed: they are a
reason to poll, like everybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from pydantic import SecretStr

from store.generation.errors import (
    ContentPolicy,
    GenerationError,
    InvalidRequest,
    NoImage,
    NoSuchTask,
    ProviderFailed,
    RateLimited,
)
from store.generation.limits import Model, aspect
from store.generation.models import Models
from store.generation.providers import Capabilities, Done, Progress, Request, Task
from store.generation.providers.answers import Answer, Fault, by_status
from store.generation.providers.calls import Call, Endpoint
from store.generation.providers.outputs import from_url
from store.generation.providers.remote import Remote
from store.generation.providers.task_ids import called_about, named

__all__ = ["Nanobanana"]

_TASK_CODES: Final[dict[int, type[GenerationError]]] = {400: ContentPolicy, 451: InvalidRequest}
"""`errorCode` of a task that failed; every other one is the provider's failure."""
_TO_IMAGE: Final = "TEXTTOIAMGE"
_FROM_IMAGE: Final = "IMAGETOIAMGE"
"""Spelt so by the provider."""
_NOBODY: Final = "https://nobody.invalid/"
_GENERATING: Final = 0
_SUCCESS: Final = 1


class _Submitted(msgspec.Struct, rename="camel"):
    task_id: str = ""


class _Response(msgspec.Struct, rename="camel"):
    result_image_url: str | None = None
    origin_image_url: str | None = None


class _Record(msgspec.Struct, rename="camel"):
    task_id: str = ""
    success_flag: int | None = None
    response: _Response | None = None
    error_code: int | None = None
    error_message: str | None = None


class _SubmitAnswer(msgspec.Struct):
    code: int
    msg: str | None = ""
    data: _Submitted | None = None


class _RecordAnswer(msgspec.Struct):
    code: int
    msg: str | None = ""
    data: _Record | None = None


class Nanobanana(Remote):
    """`POST /generate` or `/generate-2`, then `GET /record-info`."""

    name = "nanobanana"
    capabilities = Capabilities(has_tasks=True, calls_back=True)

    def __init__(self, at: Endpoint, models: Models) -> None:
        super().__init__(at, models, explain=_explain)

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Task:
        model = self._models.checked(request)
        path, asked = _asked(request, model)
        async with self._submitting(request, key) as call:
            answer = call.read(await call.send("POST", path, json=asked), _SubmitAnswer)
            if answer.code != 200:
                raise _refused(call, answer.code, answer.msg)
            return named(call, self.name, answer.data.task_id if answer.data else "")

    async def poll(self, task: Task, *, key: SecretStr | None = None) -> Progress | Done:
        async with self._http.call("poll", task.model, key) as call:
            answer = call.read(await call.send("GET", "/record-info", query={"taskId": task.id}), _RecordAnswer)
            if answer.code != 200:
                raise _refused(call, answer.code, answer.msg)
            record = answer.data
            if record is None:
                raise call.error(NoSuchTask, f"knows no task {task.id}")
            if record.success_flag in (_GENERATING, None):
                call.is_waiting = True
                return Progress()
            if record.success_flag != _SUCCESS:
                kind = _TASK_CODES.get(record.error_code or 0, ProviderFailed)
                raise call.error(kind, f"the task failed ({record.error_code}): {record.error_message}")
            # The origin's address lives for ten minutes, the result's longer.
            found = record.response
            url = (found.result_image_url or found.origin_image_url) if found else ""
            if not url:
                raise call.error(NoImage, "the task succeeded without a picture")
            return Done((from_url(call, url),))

    def resume(self, model: str, task_id: str) -> Task:
        return Task(self.name, model, task_id)

    async def cancel(self, task: Task, *, key: SecretStr | None = None) -> bool:
        return False

    async def called_back(self, headers: Mapping[str, str], body: bytes) -> str:
        return called_about(self.name, body, _task_in)


def _asked(request: Request, model: Model) -> tuple[str, dict[str, Any]]:
    urls = [picture.url for picture in request.references]
    asked: dict[str, Any] = {"prompt": request.prompt}
    if urls:
        asked["imageUrls"] = urls
    if request.callback_url:
        asked["callBackUrl"] = request.callback_url
    if model.limits.aspects:
        longest = max(request.width, request.height)
        asked["aspectRatio"] = aspect(request.width, request.height, model.limits.aspects)
        asked["resolution"] = "1K" if longest <= 1344 else "2K"
        asked["outputFormat"] = "png"
        return "/generate-2", asked
    asked |= {"type": _FROM_IMAGE if urls else _TO_IMAGE, "numImages": 1, "image_size": "1:1"}
    # Documented as required, also for those who poll.
    asked.setdefault("callBackUrl", _NOBODY)
    if request.watermark:
        asked["watermark"] = request.watermark
    return "/generate", asked


def _task_in(body: bytes) -> str:
    found = msgspec.json.decode(body, type=_RecordAnswer, strict=False)
    return found.data.task_id if found.data else ""


def _refused(call: Call, code: int, message: str | None) -> GenerationError:
    kind = RateLimited if code == 455 else call.weigh(by_status(code))
    return call.error(kind, f"error {code} in the answer: {message}")


def _explain(answer: Answer) -> Fault:
    found = answer.read(_SubmitAnswer)
    return Fault(None, found.msg or "") if found else Fault(None)
