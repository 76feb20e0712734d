"""Whatever a provider answers, it ends as a result or as an error of ours."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from store.generation.errors import GenerationError
from store.generation.providers import Done, Progress, Request, Task
from tests.fakes.providers_world import MODEL_OF, answering

LEAVES = st.none() | st.booleans() | st.sampled_from(
    [-1, 0, 1, 2, 3, 200, 400, 429, 500, 3030, 2**70, 0.04, 1e400, "", "x", "COMPLETED", "IN_QUEUE", "succeeded",
     "failed", "https://x.example/a.png", "data:image/png;base64,x", "content_filter", "../..", "\0", "é", "9" * 400]
)  # fmt: skip
ANY = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.sampled_from(["code", "message", "url", "id"]), LEAVES)
PNG = "iVBORw0KGgo="
URL = "https://x.example/a.png"
GOOD: list[Any] = [
    {"data": [{"b64_json": PNG, "url": URL, "revised_prompt": "x"}], "usage": {"cost": 0.04}, "error": None},
    {"choices": [{"message": {"images": [{"image_url": {"url": URL}}], "refusal": None}, "finish_reason": "stop"}]},
    {"error": {"code": 403, "message": "no", "type": "x", "param": None, "metadata": {"error_type": "refusal"}}},
    {"result": {"image": PNG}, "success": True, "errors": [{"code": 3030, "message": "no"}]},
    {"code": 200, "msg": "success", "data": {"taskId": "t1"}},
    {"code": 200, "data": {"successFlag": 1, "errorCode": 0, "response": {"resultImageUrl": URL}, "taskId": "t1"}},
    {"code": 200, "data": {"successFlag": 3, "errorCode": 400, "errorMessage": "no", "taskId": "t1"}},
    {"id": "t1", "status": "succeeded", "output": [URL], "error": None, "input": {"seed": 7}},
    {"id": "t1", "status": "failed", "output": None, "error": "nsfw"},
    {"request_id": "t1", "status": "COMPLETED", "images": [{"url": URL}], "seed": 7, "has_nsfw_concepts": [False]},
    {"detail": [{"msg": "no", "type": "content_policy_violation"}], "error_type": "request_timeout"},
    {"key": "whsec_AAAA", "keys": [{"crv": "Ed25519", "x": "AAAA"}]},
]


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A good answer with one or two things in it replaced or gone."""
    good = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 2))):
        at: Any = good
        while True:
            place = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            inner = at[place]
            if not (isinstance(inner, dict | list) and inner) or draw(st.booleans()):
                break
            at = inner
        if isinstance(at, dict) and len(at) > 1 and draw(st.booleans()):
            del at[place]
        else:
            at[place] = draw(ANY)
    return json.dumps(good).encode()


BODIES = spoiled() | st.binary(max_size=40)
TYPES = st.sampled_from(["application/json", "image/png", "text/html", "", "application/json; charset=latin-1", ";;"])
STATUSES = st.sampled_from([200, 200, 200, 201, 202, 204, 301, 400, 401, 403, 404, 418, 429, 500, 502, 503, 529])


async def everything(provider: str, answer: httpx.Response) -> list[Any]:
    adapter, model = answering(provider, answer), MODEL_OF[provider]
    request = Request(model=model, prompt="a fox", width=512, height=512)
    found: list[Any] = []
    for ask in (
        lambda: adapter.submit(request),
        lambda: adapter.poll(Task(provider, model, "task-1")),
        lambda: adapter.cancel(Task(provider, model, "task-1")),
        lambda: adapter.called_back(dict(answer.headers), answer.content),
    ):
        try:
            found.append(await ask())
        except GenerationError as error:
            found.append(error)
    return found


@pytest.mark.parametrize("provider", sorted(set(MODEL_OF) - {"builtin"}))
@settings(max_examples=150, deadline=None)
@given(status=STATUSES, body=BODIES, content_type=TYPES, after=st.sampled_from(["", "1", "nan", "-9", "x"]))
@example(status=200, body=b"", content_type="image/png", after="")
@example(status=200, body=b"null", content_type="application/json", after="")
@example(status=200, body=b'{"data": null, "code": 200}', content_type="application/json", after="")
@example(status=200, body=b'{"choices": null}', content_type="application/json", after="")
@example(
    status=200, body=b'{"status": "COMPLETED", "images": null, "has_nsfw_concepts": null}', content_type="", after=""
)
@example(
    status=200, body=b'{"data": [{"b64_json": "iVBORw0KGgo="}], "usage": {"cost": "NaN"}}', content_type="", after=""
)
@example(status=429, body=b'{"error": "text"}', content_type="application/json", after="1e999")
def test_no_answer_gets_past_the_adapter(
    provider: str, status: int, body: bytes, content_type: str, after: str
) -> None:
    """mission: 22, 26"""
    headers = {"content-type": content_type, "retry-after": after}

    submitted, polled, canceled, called = asyncio.run(
        everything(provider, httpx.Response(status, headers=headers, content=body))
    )

    wanted = Task if provider in ("fal", "nanobanana", "replicate") else Done
    assert isinstance(submitted, wanted | GenerationError)
    assert isinstance(polled, Progress | Done | GenerationError)
    assert isinstance(canceled, bool | GenerationError)
    assert isinstance(called, str | GenerationError)
    for found in (submitted, polled, canceled, called):
        if isinstance(found, GenerationError):
            assert len(str(found)) < 500
            assert "fake-key-0123456789" not in str(found)
        if isinstance(found, Done):
            assert found.outputs
            assert all(output.data or output.url.startswith("http") for output in found.outputs)
            assert all(output.seed is None or type(output.seed) is int for output in found.outputs)
            assert found.cost_usd is None or (found.cost_usd.is_finite() and found.cost_usd >= 0)


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("openrouter", {"data": [{"b64_json": PNG}], "usage": {"cost": "a lot"}}),
        ("openrouter", {"data": [{"b64_json": PNG}], "usage": [1]}),
        ("fal", {"request_id": "t1", "status": "COMPLETED", "images": [{"url": URL}], "seed": "odd"}),
        ("replicate", {"id": "t1", "status": "succeeded", "output": URL, "input": ["odd"]}),
    ],
)
async def test_no_picture_is_lost_for_a_detail_that_makes_no_sense(provider: str, body: object) -> None:
    """It was paid for."""
    submitted, polled, *_ = await everything(provider, httpx.Response(200, json=body))

    done = submitted if isinstance(submitted, Done) else polled
    assert isinstance(done, Done)
    assert (done.outputs[0].seed, done.cost_usd) == (None, None)
