"""Every provider, faked faithfully in one aiohttp app: `python -m tests.fakes.providers --port 9000`.

Each provider has its own prefix, error bodies and ways of failing; `providers_scripts` lists the ways. Every call is
recorded, so that a test can say how often, when and with which fields a provider was called, and what it drew.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from aiohttp import web

from tests.fakes.providers_scripts import FIELDS, PROMPT, STEP, Scripts, Step, misbehave

__all__ = ["FakeProviders", "Recorded"]

KEY: Final = "fake-key-0123456789"
ACCOUNT: Final = "fake-account"
_PREFIXES: Final = {
    "openrouter": "/openrouter/api/v1",
    "workers_ai": "/cf/client/v4",
    "openai": "/openai/v1",
    "nanobanana": "/nb/api/v1/nanobanana",
    "replicate": "/replicate/v1",
    "fal": "/fal",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Recorded:
    """One call that arrived. `fields` is its JSON or form; files as their sizes."""

    provider: str
    what: str
    path: str
    key_sha: str
    headers: dict[str, str]
    fields: dict[str, Any]
    body_sha: str
    at: float = field(default_factory=time.monotonic)


class FakeProviders:
    """The server. `calls`: what arrived; `drawn`: one entry per picture, that is, per charge."""

    def __init__(self) -> None:
        from tests.fakes.providers_direct import Direct
        from tests.fakes.providers_tasks import Tasks

        self.calls: list[Recorded] = []
        self.drawn: list[str] = []
        self.results: dict[str, bytes] = {}
        self.scripts = Scripts()
        self.keys_asked = 0
        self.url = ""
        self._runner: web.AppRunner | None = None
        self.app = web.Application(client_max_size=64 * 2**20)
        self.app.router.add_get("/results/{name}", self._result)
        self.app.router.add_get("/calls", self._recorded)
        Direct(self)
        self.tasks = Tasks(self)

    async def start(self, port: int = 0) -> None:
        self._runner = web.AppRunner(self.app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self.tasks.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def settings(self) -> dict[str, str]:
        """The environment that points Peruse here."""
        env: dict[str, str] = {"PERUSE_WORKERS_AI_ACCOUNT": ACCOUNT}
        for provider, prefix in _PREFIXES.items():
            env[f"PERUSE_{provider.upper()}_URL"] = self.url + prefix
            env[f"PERUSE_{provider.upper()}_KEY"] = KEY
        env["PERUSE_FAL_KEYS_URL"] = f"{self.url}/fal/.well-known/jwks.json"
        return env

    def script(self, provider: str, *steps: str) -> None:
        """What the next calls of a provider that make something do."""
        self.scripts.add(provider, *steps)

    def made(self, provider: str, what: str = "submit") -> list[Recorded]:
        """The calls of one kind, in order."""
        return [call for call in self.calls if call.provider == provider and call.what == what]

    def keep(self, data: bytes, *, suffix: str = "png") -> str:
        """An address where these bytes can be fetched."""
        name = f"{len(self.results)}-{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
        self.results[name] = data
        return f"{self.url}/results/{name}"

    def route(
        self,
        method: str,
        provider: str,
        path: str,
        handler: Handler,
        refuse: Callable[[int, str], web.Response],
        *,
        what: str = "submit",
        scheme: str = "Bearer",
    ) -> None:
        """Serves `path` as the provider would; `refuse(status, why)` makes its errors, why: key, funds, policy, "".

        Only calls that submit follow scripts.
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            given_scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            fields = await _fields(request)
            record = Recorded(
                provider, what, request.path, hashlib.sha256(key.encode()).hexdigest()[:12],
                {name.lower(): value for name, value in request.headers.items() if name.lower() != "authorization"},
                fields, hashlib.sha256(await request.read()).hexdigest(),
            )  # fmt: skip
            self.calls.append(record)
            prompt = _prompt(fields)

            def refused(status: int, why: str) -> web.Response:
                """As providers do, it tells what it was told."""
                response = refuse(status, why)
                told = json.dumps(f"No: {key} {prompt} {fields} {request.query_string}")[1:-1]
                response.text = (response.text or "").replace("No.", told)
                if 300 <= status < 400:
                    response.headers["Location"] = "/calls"
                return response

            if given_scheme != scheme or not key or "wrong" in key:
                return refused(401, "key")
            step = Step("ok")
            if what == "submit":
                step = self.scripts.step(provider, prompt, request.headers.get("X-Fake-Script", ""))
            request[FIELDS], request[PROMPT], request[STEP] = fields, prompt, step
            match step.name:
                case "status":
                    response = refused(int(step.args[0]), "")
                    if len(step.args) > 1:
                        response.headers["Retry-After"] = step.args[1]
                    return response
                case "bad_key" | "no_funds" | "policy":
                    why = {"bad_key": "key", "no_funds": "funds", "policy": "policy"}[step.name]
                    return refused({"key": 401, "funds": 402, "policy": 400}[why], why)
            does_first = step.name.startswith("accepted") or step.name == "reset_mid"
            answer = await handler(request) if does_first else None
            assert answer is None or isinstance(answer, web.Response)
            if (unlike := await misbehave(request, step, answer)) is not None:
                return unlike
            return answer or await handler(request)

        self.app.router.add_route(method, _PREFIXES[provider] + path, handle)

    async def _result(self, request: web.Request) -> web.Response:
        data = self.results.get(request.match_info["name"])
        return web.Response(status=404) if data is None else web.Response(body=data, content_type="image/png")

    async def _recorded(self, request: web.Request) -> web.Response:
        return web.json_response({"calls": [asdict(call) for call in self.calls], "drawn": self.drawn})


def _prompt(fields: dict[str, Any]) -> str:
    """The prompt, wherever a provider has it."""
    if "messages" in fields:
        content = fields["messages"][0]["content"]
        return str(content if isinstance(content, str) else content[0]["text"])
    inner = fields.get("input")
    return str((inner if isinstance(inner, dict) else fields).get("prompt", ""))


async def _fields(request: web.Request) -> dict[str, Any]:
    if request.content_type == "multipart/form-data":
        form: dict[str, Any] = {}
        for name, value in (await request.post()).items():
            form[name] = {"bytes": len(value.file.read())} if isinstance(value, web.FileField) else value
        return form
    try:
        found = await request.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def _serve(port: int) -> None:
    fake = FakeProviders()
    await fake.start(port)
    print("\n".join(f"export {name}={value}" for name, value in fake.settings().items()))
    print(f"# scripts in prompts, such as [[status 503; ok]]; what arrived: {fake.url}/calls", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await fake.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    try:
        asyncio.run(_serve(parser.parse_args().port))
    except KeyboardInterrupt:
        pass
