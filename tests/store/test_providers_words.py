"""Answers as providers were seen to give them, and what they mean."""

from __future__ import annotations

import httpx
import pytest

from store.generation import errors
from store.generation.providers import Request
from tests.fakes.providers_world import MODEL_OF, answering

SAFETY = "Your request was rejected as a result of our safety system. Your prompt may contain text that is not allowed."


def openai(code: str | None, message: str = "No.", kind: str = "invalid_request_error") -> dict[str, object]:
    return {"error": {"code": code, "message": message, "param": None, "type": kind}}


def openrouter(code: int, message: str, **metadata: object) -> dict[str, object]:
    return {"error": {"code": code, "message": message, "metadata": metadata or None}, "user_id": None}


def workers_ai(code: int, message: str = "AiError: AiError: no") -> dict[str, object]:
    return {"errors": [{"message": message, "code": code}], "success": False, "result": {}, "messages": []}


@pytest.mark.parametrize(
    ("provider", "status", "body", "kind"),
    [
        ("openai", 400, openai(None, SAFETY), errors.ContentPolicy),
        ("openai", 400, openai("content_policy_violation"), errors.ContentPolicy),
        ("openai", 400, openai("moderation_blocked", kind="image_generation_user_error"), errors.ContentPolicy),
        ("openai", 400, openai("billing_hard_limit_reached"), errors.ProviderAccount),
        ("openai", 429, openai("insufficient_quota"), errors.ProviderAccount),
        ("openai", 429, openai("rate_limit_exceeded"), errors.RateLimited),
        ("openai", 400, openai(None, "Invalid size"), errors.InvalidRequest),
        ("openrouter", 401, openrouter(401, "Missing Authentication header"), errors.ProviderAccount),
        ("openrouter", 402, openrouter(402, "Insufficient credits."), errors.ProviderAccount),
        ("openrouter", 403, openrouter(403, "flagged", reasons=["violence"]), errors.ContentPolicy),
        ("openrouter", 403, openrouter(403, "no", error_type="permission_denied"), errors.ProviderAccount),
        ("openrouter", 400, openrouter(400, "no", error_type="content_policy_violation"), errors.ContentPolicy),
        ("openrouter", 400, openrouter(400, "no", error_type="string_too_long"), errors.InvalidRequest),
        ("openrouter", 502, openrouter(502, "Provider returned error", provider_name="x", raw="?"), errors.Unavailable),
        ("openrouter", 524, openrouter(524, "timeout"), errors.UnknownOutcome),
        ("openrouter", 529, openrouter(529, "overloaded"), errors.RateLimited),
        ("openrouter", 200, openrouter(429, "Rate limit exceeded"), errors.RateLimited),
        ("openrouter", 200, openrouter(400, "no", error_type="refusal"), errors.ContentPolicy),
        ("workers_ai", 400, workers_ai(3030, "Your output has been flagged."), errors.ContentPolicy),
        ("workers_ai", 400, workers_ai(5007), errors.InvalidRequest),
        ("workers_ai", 401, workers_ai(10000, "Authentication error"), errors.ProviderAccount),
        ("workers_ai", 403, workers_ai(5018), errors.ProviderAccount),
        ("workers_ai", 404, workers_ai(3042), errors.InvalidRequest),
        ("workers_ai", 408, workers_ai(3046), errors.UnknownOutcome),
        ("workers_ai", 429, workers_ai(3021), errors.RateLimited),
        ("workers_ai", 429, workers_ai(3036), errors.ProviderAccount),
        ("workers_ai", 429, workers_ai(3040), errors.RateLimited),
        ("workers_ai", 429, workers_ai(4006), errors.ProviderAccount),
        ("nanobanana", 200, {"code": 402, "msg": "no credits", "data": None}, errors.ProviderAccount),
        ("nanobanana", 200, {"code": 422, "msg": "wrong", "data": None}, errors.InvalidRequest),
        ("nanobanana", 200, {"code": 455, "msg": "maintenance", "data": None}, errors.RateLimited),
        ("replicate", 422, {"title": "Input validation failed", "detail": "- input: no"}, errors.InvalidRequest),
        ("replicate", 402, {"title": "Insufficient credit", "detail": "no"}, errors.ProviderAccount),
        ("fal", 422, {"detail": [{"type": "content_policy_violation", "msg": "no"}]}, errors.ContentPolicy),
        ("fal", 422, {"detail": [{"type": "image_too_large", "msg": "no"}]}, errors.InvalidRequest),
        ("fal", 403, {"detail": "User is locked. Reason: Exhausted balance."}, errors.ProviderAccount),
        ("fal", 504, {"detail": "no", "error_type": "startup_timeout"}, errors.ProviderFailed),
    ],
)
async def test_what_a_provider_says_is_understood(
    provider: str, status: int, body: object, kind: type[errors.GenerationError]
) -> None:
    """mission: 26, 47, 48, 49, 50"""
    adapter = answering(provider, httpx.Response(status, json=body))

    with pytest.raises(errors.GenerationError) as caught:
        await adapter.submit(Request(model=MODEL_OF[provider], prompt="a fox", width=512, height=512))

    assert type(caught.value) is kind
