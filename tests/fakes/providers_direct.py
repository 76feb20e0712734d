"""The fakes that answer with pictures: OpenRouter, Workers AI, OpenAI."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fakes.providers_pictures import picture
from tests.fakes.providers_scripts import FIELDS, PROMPT, STEP, Step

if TYPE_CHECKING:
    from tests.fakes.providers import FakeProviders

__all__ = ["Direct"]

_ASPECTS = {"1:1": (1024, 1024), "16:9": (1344, 768), "9:16": (768, 1344), "3:2": (1248, 832), "2:3": (832, 1248)}
_SD = {"prompt", "negative_prompt", "width", "height", "image", "image_b64", "mask"}
_SD |= {"num_steps", "strength", "guidance", "seed"}


class Direct:
    def __init__(self, fake: FakeProviders) -> None:
        self.fake = fake
        fake.route("POST", "openrouter", "/images", self.images, _openrouter_refuses)
        fake.route("POST", "openrouter", "/chat/completions", self.chat, _openrouter_refuses)
        fake.route("POST", "workers_ai", "/accounts/{account}/ai/run/{model:.+}", self.run, _workers_ai_refuses)
        fake.route("POST", "openai", "/images/generations", self.generations, _openai_refuses)
        fake.route("POST", "openai", "/images/edits", self.edits, _openai_refuses)

    def draw(self, request: web.Request, width: int, height: int, kind: str = "PNG") -> bytes:
        """A picture, counted as drawn and charged."""
        fields = request[FIELDS]
        self.fake.drawn.append(request[PROMPT])
        return picture(request[PROMPT], fields.get("seed"), width, height, kind)

    async def images(self, request: web.Request) -> web.Response:
        fields, step = request[FIELDS], request[STEP]
        if "chat-only" in fields["model"]:
            return _openrouter_refuses(404, "")
        if fields.get("n", 1) != 1:
            return _openrouter_refuses(400, "")
        if step.name == "error_200":
            problem = {"code": 502, "message": "Provider returned error", "metadata": {"provider_name": "x"}}
            return web.json_response({"error": problem})
        data: list[dict[str, Any]] = []
        if step.name != "empty":
            width, height = _ASPECTS.get(fields.get("aspect_ratio", ""), (1024, 1024))
            if "size" in fields:
                width, height = map(int, fields["size"].split("x"))
            encoded = _encoded(step, self.draw(request, width, height))
            data = [{"b64_json": encoded, "media_type": "image/png"}]
        return web.json_response({"created": 1, "data": data, "usage": {"total_tokens": 4175, "cost": 0.04}})

    async def chat(self, request: web.Request) -> web.Response:
        step = request[STEP]
        message: dict[str, Any] = {"role": "assistant", "content": "Here is …", "refusal": None}
        finish = "stop"
        if step.name == "empty":
            message |= {"content": "I cannot draw this.", "refusal": "I cannot draw this."}
            finish = "content_filter"
        else:
            url = "data:image/png;base64," + _encoded(step, self.draw(request, 1024, 1024))
            message["images"] = [{"type": "image_url", "image_url": {"url": url}}]
        return web.json_response(
            {
                "id": "gen-1",
                "object": "chat.completion",
                "choices": [{"index": 0, "finish_reason": finish, "message": message}],
                "usage": {"total_tokens": 1300, "cost": 0.038},
            }
        )

    async def run(self, request: web.Request) -> web.Response:
        fields, step, model = request[FIELDS], request[STEP], request.match_info["model"]
        is_form = request.content_type == "multipart/form-data"
        if "flux-2" in model and not is_form:
            return _workers_ai_refuses(400, "form")
        if "flux-1" in model and (set(fields) - {"prompt", "steps"} or fields.get("steps", 4) > 8):
            return _workers_ai_refuses(400, "")
        if "flux-" not in model and (
            "leonardo" not in model and (set(fields) - _SD or fields.get("num_steps", 20) > 20)
        ):
            return _workers_ai_refuses(400, "")
        if step.name == "error_200":
            envelope = {"errors": [{"code": 3040, "message": "Capacity temporarily exceeded"}], "success": False}
            return web.json_response({**envelope, "result": {}, "messages": []})
        width, height = int(fields.get("width", 1024)), int(fields.get("height", 1024))
        if any(name in model for name in ("flux-", "lucid")):
            encoded = "" if step.name == "empty" else _encoded(step, self.draw(request, width, height, "JPEG"))
            result = {"image": encoded} if encoded else {}
            return web.json_response({"result": result, "success": True, "errors": [], "messages": []})
        kind = "JPEG" if "phoenix" in model else "PNG"
        body = self.draw(request, width, height, kind)
        if step.name == "empty":
            body = b""
        if step.name in ("not_an_image", "truncated_base64"):
            body = b"this is a text"
        return web.Response(body=body, content_type="image/jpeg" if kind == "JPEG" else "image/png")

    async def generations(self, request: web.Request) -> web.Response:
        fields, step = request[FIELDS], request[STEP]
        is_dalle = fields["model"].startswith("dall-e")
        if (fields["model"] == "dall-e-3" and fields.get("n", 1) > 1) or ("response_format" in fields and not is_dalle):
            return _openai_refuses(400, "")
        return self._openai(request, step, as_url=is_dalle and fields.get("response_format") != "b64_json")

    async def edits(self, request: web.Request) -> web.Response:
        fields = request[FIELDS]
        if not any(name in ("image", "image[]") for name in fields):
            return _openai_refuses(400, "")
        return self._openai(request, request[STEP], as_url=False)

    def _openai(self, request: web.Request, step: Step, *, as_url: bool) -> web.Response:
        fields = request[FIELDS]
        if step.name == "error_200":
            return web.json_response({"error": {"code": None, "message": "x", "param": None, "type": "server_error"}})
        width, height = map(int, fields.get("size", "1024x1024").split("x"))
        data: list[dict[str, Any]] = []
        for _ in range(0 if step.name == "empty" else int(fields.get("n", 1))):
            body = self.draw(request, width, height)
            if as_url or step.name in ("as_url", "dead_url"):
                url = self.fake.keep(body)
                if step.name == "dead_url":
                    self.fake.results.clear()
                data.append({"url": url, "revised_prompt": f"revised {request[PROMPT]}"})
            else:
                data.append({"b64_json": _encoded(step, body)})
        return web.json_response({"created": 1, "data": data, "usage": {"total_tokens": 100}})


def _encoded(step: Step, body: bytes) -> str:
    if step.name == "not_an_image":
        body = b"this is a text"
    encoded = base64.b64encode(body).decode()
    return encoded[: len(encoded) // 8 * 4 + 1] if step.name == "truncated_base64" else encoded


def _openrouter_refuses(status: int, why: str) -> web.Response:
    metadata: dict[str, Any] | None = None
    message = {"key": "Missing Authentication header", "funds": "Insufficient credits. Add more"}.get(why, "No.")
    if why == "policy":
        status, metadata = 403, {"reasons": ["violence"], "flagged_input": "…", "provider_name": "x"}
    return web.json_response({"error": {"code": status, "message": message, "metadata": metadata}}, status=status)


def _workers_ai_refuses(status: int, why: str) -> web.Response:
    codes = {401: 10000, 408: 3046, 429: 3021, 400: 5004, 413: 3006, 403: 5018}
    code = {"policy": 3030, "key": 10000, "funds": 4006, "form": 5004}.get(why, codes.get(status, 0))
    status = {"policy": 400, "funds": 429}.get(why, status)
    words = "required properties at '/' are 'multipart'" if why == "form" else "AiError: AiError: No. (<uuid>)"
    envelope = {"errors": [{"message": words, "code": code}], "success": False, "result": {}, "messages": []}
    return web.json_response(envelope, status=status)


def _openai_refuses(status: int, why: str) -> web.Response:
    code, kind = {
        "policy": ("moderation_blocked", "image_generation_user_error"),
        "funds": ("billing_hard_limit_reached", "invalid_request_error"),
        "key": ("invalid_api_key", "invalid_request_error"),
    }.get(why, (None, "invalid_request_error" if status < 500 else "server_error"))
    status = {"policy": 400, "funds": 400, "key": 401}.get(why, status)
    message = "Your request was rejected by the safety system." if why == "policy" else "No."
    error = {"code": code, "message": message, "param": None, "type": kind}
    return web.json_response({"error": error}, status=status)
