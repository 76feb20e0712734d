"""Scripts: what a fake provider does with the next call of its kind that makes something.

A step is words: a name and its arguments. A script is steps, divided by ";", one for each call; the last one holds
for all that follow. It comes from `FakeProviders.script`, from the header X-Fake-Script, or from the prompt: a prompt
with `[[status 503; ok]]` is refused once, then drawn; calls are counted by prompt.

everywhere     ok · slow SECONDS · hang · status CODE [RETRY_AFTER] · html_502 · html_200 · wrong_type · huge · drip
               reset (before the answer) · reset_mid (in its middle) · accepted_then_hang · accepted_then_reset
               bad_key · no_funds · policy
pictures       truncated_base64 · not_an_image · empty · error_200 · as_url · dead_url
tasks          task_polls N (that long unfinished) · task_never · task_fails · task_policy · task_empty · task_canceled
               task_gone · task_late · task_black (fal) · poll_fails N (so many looks answer 500) · no_id · duplicate_id
               ends_on_cancel · callback_twice · callback_never
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from typing import Any, Final, NamedTuple

from aiohttp import web

__all__ = ["FIELDS", "PROMPT", "STEP", "Scripts", "Step", "misbehave"]

_IN_PROMPT: Final = re.compile(r"\[\[(.+?)\]\]")


class Step(NamedTuple):
    name: str
    args: tuple[str, ...] = ()

    def number(self, default: float = 0.0) -> float:
        return float(self.args[0]) if self.args else default

    @classmethod
    def parse(cls, text: str) -> Step:
        name, *args = text.split()
        return cls(name, tuple(args))


FIELDS = web.RequestKey("fields", dict[str, Any])
PROMPT = web.RequestKey("prompt", str)
STEP = web.RequestKey("step", Step)


class Scripts:
    """The steps of all providers, and how far each prompt is."""

    def __init__(self) -> None:
        self._next: dict[str, deque[Step]] = {}
        self._seen: Counter[str] = Counter()

    def add(self, provider: str, *steps: str) -> None:
        """The next calls of a provider; after the last one, calls are ok again."""
        self._next.setdefault(provider, deque()).extend(map(Step.parse, steps))

    def step(self, provider: str, prompt: str, header: str = "") -> Step:
        if waiting := self._next.get(provider):
            return waiting.popleft()
        found = _IN_PROMPT.search(prompt)
        text = header or (found[1] if found else "")
        if not text:
            return Step("ok")
        steps = [Step.parse(part) for part in text.split(";") if part.strip()]
        self._seen[prompt] += 1
        return steps[min(self._seen[prompt], len(steps)) - 1]


async def misbehave(request: web.Request, step: Step, answer: web.Response | None) -> web.StreamResponse | None:
    """What a step does to the wire; None when the provider answers as itself. `answer`: what it would have said."""
    match step.name:
        case "slow":
            await asyncio.sleep(step.number())
        case "hang" | "accepted_then_hang":
            await asyncio.sleep(3600)
        case "reset" | "accepted_then_reset":
            assert request.transport is not None
            request.transport.abort()
        case "reset_mid":
            return await _cut(request, answer)
        case "drip":
            return await _drip(request)
        case "huge":
            return await _endless(request)
        case "html_502" | "html_200":
            page = "<html><body><h1>Bad gateway</h1></body></html>"
            return web.Response(status=int(step.name[-3:]), text=page, content_type="text/html")
        case "wrong_type":
            return web.Response(text="OK", content_type="text/plain")
    return None


async def _cut(request: web.Request, answer: web.Response | None) -> web.StreamResponse:
    body = answer.body if answer is not None and isinstance(answer.body, bytes) else b"{" + b" " * 4096
    response = web.StreamResponse(headers={"Content-Type": answer.content_type if answer else "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    assert request.transport is not None
    request.transport.abort()
    return response


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)
    except ConnectionError:
        pass
    return response


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        for _ in range(4096):
            await response.write(b" " * 2**18)
    except ConnectionError:
        pass
    return response
