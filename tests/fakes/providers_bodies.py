"""What the providers of tasks say about a task, each in its own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.providers_scripts import Step

__all__ = ["FakeTask", "fal_answer", "fal_refuses", "nb_record", "nb_refuses", "prediction", "replicate_refuses"]


@dataclass
class FakeTask:
    """A task at a provider. `state`: running, done, failed, refused, empty, canceled."""

    id: str
    provider: str
    prompt: str
    fields: dict[str, Any]
    step: Step
    callback: str = ""
    state: str = "running"
    looks: int = 0
    url: str = ""


def nb_record(task: FakeTask) -> dict[str, Any]:
    flag, code, words = {
        "running": (0, 0, ""), "done": (1, 0, ""), "empty": (1, 0, ""), "canceled": (3, 500, "canceled"),
        "failed": (3, 500, "Internal Error"), "refused": (3, 400, "Your prompt violates our content policy"),
    }[task.state]  # fmt: skip
    response = None if task.state == "running" else {"originImageUrl": None, "resultImageUrl": task.url or None}
    data = {"taskId": task.id, "paramJson": "", "completeTime": "", "response": response, "successFlag": flag}
    return {"code": 200, "msg": "success", "data": {**data, "errorCode": code, "errorMessage": words}}


def nb_refuses(status: int, why: str) -> web.Response:
    code = {"key": 401, "funds": 402}.get(why, status)
    return web.json_response({"code": code, "msg": "No.", "data": None}, status=200 if why == "funds" else status)


def prediction(task: FakeTask) -> dict[str, Any]:
    status = {"running": "processing", "done": "succeeded", "empty": "succeeded", "canceled": "canceled"}
    words = {"failed": "CUDA out of memory", "refused": "NSFW content detected. Try running it again."}
    return {
        "id": task.id, "model": "x/y", "version": "hidden", "status": status.get(task.state, "failed"),
        "input": task.fields, "output": [task.url] if task.url else None, "error": words.get(task.state), "logs": "",
        "urls": {"get": "", "cancel": ""},
    }  # fmt: skip


def replicate_refuses(status: int, why: str) -> web.Response:
    words = {"key": "You did not pass a valid authentication token", "funds": "Insufficient credit"}.get(why, "No.")
    if status == 429:
        words = "Request was throttled. Your rate limit resets in ~30s."
    return web.json_response({"title": "Error", "detail": words, "status": status}, status=status)


def fal_answer(task: FakeTask) -> tuple[dict[str, Any], int]:
    """The result, or the error that takes its place."""
    if task.state == "failed":
        return {"detail": "Internal server error", "error_type": "runner_server_error"}, 500
    if task.state == "canceled":
        return {"detail": "Request was cancelled", "error_type": "client_cancelled"}, 499
    if task.state == "refused":
        detail = {"loc": ["body", "prompt"], "msg": "The content was flagged", "type": "content_policy_violation"}
        return {"detail": [detail]}, 422
    if task.state == "empty":
        return {"images": [], "seed": 1}, 200
    image = {"url": task.url, "content_type": "image/png", "width": 1024, "height": 1024}
    seed = task.fields.get("seed", 196619188014358660)
    return {
        "images": [image],
        "seed": seed,
        "has_nsfw_concepts": [task.step.name == "task_black"],
        "prompt": task.prompt,
    }, 200


def fal_refuses(status: int, why: str) -> web.Response:
    if why == "policy":
        detail = [{"loc": ["body", "prompt"], "msg": "flagged", "type": "content_policy_violation"}]
        return web.json_response({"detail": detail}, status=422)
    words = {"key": "Invalid authentication", "funds": "User is locked. Reason: Exhausted balance."}.get(why, "No.")
    return web.json_response({"detail": words}, status={"key": 401, "funds": 403}.get(why, status))
