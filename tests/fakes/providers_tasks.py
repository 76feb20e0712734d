"""The fakes that take tasks: Nanobanana, Replicate, fal. A task goes on when it is looked at, or with its callback."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.providers_bodies import (
    FakeTask,
    fal_answer,
    fal_refuses,
    nb_record,
    nb_refuses,
    prediction,
    replicate_refuses,
)
from tests.fakes.providers_pictures import picture
from tests.fakes.providers_scripts import FIELDS, PROMPT, STEP, Step

if TYPE_CHECKING:
    from tests.fakes.providers import FakeProviders

__all__ = ["Tasks"]

_FAL = "/{owner}/{app}/requests/{id}"


class Tasks:
    def __init__(self, fake: FakeProviders) -> None:
        self.fake = fake
        self.all: dict[str, FakeTask] = {}
        self.change_keys()
        self._sending: set[asyncio.Task[None]] = set()
        route = fake.route
        for path in ("/generate", "/generate-2"):
            route("POST", "nanobanana", path, self.nb_submit, nb_refuses)
        route("GET", "nanobanana", "/record-info", self.nb_look, nb_refuses, what="poll")
        route("POST", "replicate", "/models/{owner}/{name}/predictions", self.replicate_submit, replicate_refuses)
        route("GET", "replicate", "/predictions/{id}", self.replicate_look, replicate_refuses, what="poll")
        route("POST", "replicate", "/predictions/{id}/cancel", self.replicate_cancel, replicate_refuses, what="cancel")
        route("GET", "replicate", "/webhooks/default/secret", self.replicate_secret, replicate_refuses, what="keys")
        for path in ("/{owner}/{app}", "/{owner}/{app}/{path:(?!requests/).+}"):
            route("POST", "fal", path, self.fal_submit, fal_refuses, scheme="Key")
        route("GET", "fal", _FAL + "/status", self.fal_look, fal_refuses, what="poll", scheme="Key")
        route("GET", "fal", _FAL, self.fal_result, fal_refuses, what="result", scheme="Key")
        route("PUT", "fal", _FAL + "/cancel", self.fal_cancel, fal_refuses, what="cancel", scheme="Key")
        fake.app.router.add_get("/fal/.well-known/jwks.json", self.fal_keys)

    def change_keys(self) -> None:
        """What callbacks are signed with from now on."""
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.signing_key = Ed25519PrivateKey.generate()

    async def close(self) -> None:
        for sending in self._sending:
            sending.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    def make(self, provider: str, request: web.Request, callback: str) -> FakeTask:
        step: Step = request[STEP]
        id = secrets.token_hex(8)
        if step.name == "duplicate_id" and self.all:
            id = list(self.all)[-1]
        fields = request[FIELDS].get("input", request[FIELDS])
        task = FakeTask(id, provider, request[PROMPT], fields, step, callback)
        self.all[id] = task
        if callback and ".invalid" not in callback and step.name not in ("callback_never", "task_never"):
            sending = asyncio.create_task(self._call_back(task))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
        return task

    def look(self, id: str) -> FakeTask | None:
        """A look from outside: after enough of them the task has ended."""
        task = self.all.get(id)
        if task is None or task.step.name == "task_gone":
            return None
        task.looks += 1
        if task.step.name == "task_late" and task.looks < 3:
            return None
        if task.looks > (task.step.number(1) if task.step.name in ("task_polls", "poll_fails") else 1):
            self._end(task)
        return task

    def _end(self, task: FakeTask) -> None:
        if task.state != "running" or task.step.name == "task_never":
            return
        task.state = {
            "task_fails": "failed", "task_policy": "refused", "task_empty": "empty", "task_canceled": "canceled",
        }.get(task.step.name, "done")  # fmt: skip
        if task.state == "done":
            size = task.fields.get("image_size")
            width, height = (size["width"], size["height"]) if isinstance(size, dict) else (1024, 1024)
            body = picture(task.prompt, task.fields.get("seed"), width, height)
            if task.step.name == "not_an_image":
                body = b"this is a text"
            self.fake.drawn.append(task.prompt)
            task.url = self.fake.keep(body)
            if task.step.name == "dead_url":
                self.fake.results.clear()

    def _cancel(self, task: FakeTask) -> None:
        if task.step.name == "ends_on_cancel":
            self._end(task)
        if task.state == "running":
            task.state = "canceled"

    async def _call_back(self, task: FakeTask) -> None:
        await asyncio.sleep(0.02)
        self._end(task)
        body, headers = self.callback(task)
        async with aiohttp.ClientSession() as session:
            for _ in range(2 if task.step.name == "callback_twice" else 1):
                try:
                    async with session.post(task.callback, data=body, headers=headers):
                        pass
                except aiohttp.ClientError:
                    pass

    def callback(self, task: FakeTask, *, at_s: float | None = None) -> tuple[bytes, dict[str, str]]:
        """The body and the headers that the provider would send, signed as it signs."""
        stamp = str(int(time.time() if at_s is None else at_s))
        headers = {"Content-Type": "application/json"}
        if task.provider == "nanobanana":
            return json.dumps(nb_record(task)).encode(), headers
        if task.provider == "replicate":
            body = json.dumps(prediction(task)).encode()
            key = base64.b64decode(self.secret.removeprefix("whsec_"))
            signed = hmac.digest(key, f"msg_{task.id}.{stamp}.".encode() + body, "sha256")
            signature = "v1," + base64.b64encode(signed).decode()
            names = {"webhook-id": f"msg_{task.id}", "webhook-timestamp": stamp, "webhook-signature": signature}
            return body, {**headers, **names}
        payload, status = fal_answer(task)
        body = json.dumps(
            {"request_id": task.id, "status": "OK" if status == 200 else "ERROR", "payload": payload}
        ).encode()
        message = f"{task.id}\nuser-1\n{stamp}\n{hashlib.sha256(body).hexdigest()}"
        names = {
            "X-Fal-Webhook-Request-Id": task.id,
            "X-Fal-Webhook-User-Id": "user-1",
            "X-Fal-Webhook-Timestamp": stamp,
            "X-Fal-Webhook-Signature": self.signing_key.sign(message.encode()).hex(),
        }
        return body, {**headers, **names}

    # Nanobanana

    async def nb_submit(self, request: web.Request) -> web.Response:
        fields, step = request[FIELDS], request[STEP]
        if request.path.endswith("/generate") and fields.get("type") not in ("TEXTTOIAMGE", "IMAGETOIAMGE"):
            return web.json_response({"code": 400, "msg": "type must be TEXTTOIAMGE or IMAGETOIAMGE", "data": None})
        if step.name == "error_200":
            return web.json_response({"code": 429, "msg": "too many", "data": None})
        task = self.make("nanobanana", request, fields.get("callBackUrl", ""))
        data = {} if step.name == "no_id" else {"taskId": task.id}
        return web.json_response({"code": 200, "msg": "success", "data": data})

    async def nb_look(self, request: web.Request) -> web.Response:
        task = self.look(request.query["taskId"])
        if task is None:
            return web.json_response({"code": 200, "msg": "success", "data": None})
        if _fails_now(task):
            return web.json_response({"code": 500, "msg": "Server exception", "data": None})
        return web.json_response(nb_record(task))

    # Replicate

    async def replicate_submit(self, request: web.Request) -> web.Response:
        fields, step = request[FIELDS], request[STEP]
        task = self.make("replicate", request, fields.get("webhook", ""))
        return web.json_response({} if step.name in ("no_id", "error_200") else prediction(task), status=201)

    async def replicate_look(self, request: web.Request) -> web.Response:
        task = self.look(request.match_info["id"])
        if task is None:
            return web.json_response({"detail": "Not found."}, status=404)
        return replicate_refuses(500, "") if _fails_now(task) else web.json_response(prediction(task))

    async def replicate_cancel(self, request: web.Request) -> web.Response:
        task = self.all.get(request.match_info["id"])
        if task is None:
            return web.json_response({"detail": "Not found."}, status=404)
        self._cancel(task)
        return web.json_response(prediction(task))

    async def replicate_secret(self, request: web.Request) -> web.Response:
        self.fake.keys_asked += 1
        return web.json_response({"key": self.secret})

    # fal

    async def fal_submit(self, request: web.Request) -> web.Response:
        step = request[STEP]
        task = self.make("fal", request, request.query.get("fal_webhook", ""))
        base = f"{self.fake.url}/fal/{request.match_info['owner']}/{request.match_info['app']}/requests/{task.id}"
        urls = {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}
        named = {} if step.name in ("no_id", "error_200") else {"request_id": task.id}
        return web.json_response({**named, "status": "IN_QUEUE", "queue_position": 0, **urls})

    async def fal_look(self, request: web.Request) -> web.Response:
        task = self.look(request.match_info["id"])
        if task is None:
            return web.json_response({"detail": "Request not found"}, status=404)
        if _fails_now(task):
            return fal_refuses(500, "")
        if task.state == "running":
            position = {"status": "IN_QUEUE", "queue_position": 2} if task.looks == 1 else {"status": "IN_PROGRESS"}
            return web.json_response(position, status=202)
        return web.json_response({"status": "COMPLETED", "metrics": {"inference_time": 1.2}})

    async def fal_result(self, request: web.Request) -> web.Response:
        task = self.all.get(request.match_info["id"])
        if task is None or task.state == "running":
            return web.json_response({"detail": "Request is still in progress"}, status=400)
        payload, status = fal_answer(task)
        headers = {"X-Fal-Error-Type": payload["error_type"]} if "error_type" in payload else {}
        return web.json_response(payload, status=status, headers=headers)

    async def fal_cancel(self, request: web.Request) -> web.Response:
        task = self.all.get(request.match_info["id"])
        if task is None:
            return web.json_response({"status": "NOT_FOUND"}, status=404)
        self._cancel(task)
        if task.state != "canceled":
            return web.json_response({"status": "ALREADY_COMPLETED"}, status=400)
        return web.json_response({"status": "CANCELLATION_REQUESTED"}, status=202)

    async def fal_keys(self, request: web.Request) -> web.Response:
        self.fake.keys_asked += 1
        raw = self.signing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        x = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        return web.json_response({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]})


def _fails_now(task: FakeTask) -> bool:
    return task.step.name == "poll_fails" and task.looks <= task.step.number(1)
