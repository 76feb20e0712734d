"""Real adapters that talk to the fakes: what every test of a provider stands on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from pydantic import SecretStr

from store.clock import Clock
from store.generation.config import ProviderSettings
from store.generation.limits import Model, Pace
from store.generation.models import Models
from store.generation.providers import Done, Output, Provider, Request, Task
from store.generation.providers.calls import Endpoint
from store.generation.providers.fal import Fal
from store.generation.providers.nanobanana import Nanobanana
from store.generation.providers.openai import OpenAI
from store.generation.providers.opening import open_providers
from store.generation.providers.openrouter import OpenRouter
from store.generation.providers.outputs import bytes_of
from store.generation.providers.polling import finish
from store.generation.providers.replicate import Replicate
from store.generation.providers.workers_ai import WorkersAI
from tests.fakes.providers import KEY, FakeProviders

__all__ = ["CANARY", "MODEL_OF", "MovedClock", "ProvidersWorld", "answering", "opened"]

CANARY = "canary-prompt-0f3a"
MODEL_OF = {
    "builtin": "builtin",
    "workers_ai": "@cf/stabilityai/stable-diffusion-xl-base-1.0",
    "openai": "openai/dall-e-2",
    "openrouter": "bytedance-seed/seedream-4.5",
    "nanobanana": "nanobanana",
    "replicate": "replicate/black-forest-labs/flux-schnell",
    "fal": "fal-ai/flux/schnell",
}


class HastyModels(Models):
    """The models, given up after `deadline_s`."""

    deadline_s = 30.0

    def of(self, id: str) -> Model:
        return msgspec.structs.replace(super().of(id), pace=(Pace(2**40, 0, 0, self.deadline_s),))


class MovedClock:
    """A clock that goes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def wall(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@dataclass
class ProvidersWorld:
    fake: FakeProviders
    models: HastyModels
    providers: Mapping[str, Provider]
    settings: ProviderSettings

    def request(self, model: str, prompt: str = f"a red panda {CANARY}", **fields: Any) -> Request:
        """A request that the model accepts, with a seed where it takes one."""
        limits = self.models.of(MODEL_OF.get(model, model)).limits
        asked: dict[str, Any] = {"width": 512, "height": 512, **fields}
        if limits.has_seed:
            asked.setdefault("seed", 7)
        return Request(model=MODEL_OF.get(model, model), prompt=prompt, **asked)

    async def submit(self, request: Request) -> Done | Task:
        return await self.providers[self.models.of(request.model).provider].submit(request)

    async def draw(self, request: Request) -> Done:
        """Submits, and polls quickly where there is a task."""
        found = await self.submit(request)
        return found if isinstance(found, Done) else await self.finish(found)

    async def finish(self, task: Task, *, deadline_s: float = 20.0) -> Done:
        return await finish(self.providers[task.provider], task, deadline_s=deadline_s, every_s=0.01)

    async def task(self, provider: str, *, script: str = "ok", callback_url: str = "") -> Task:
        """A task that the provider has taken."""
        self.fake.script(provider, script)
        found = await self.submit(self.request(provider, callback_url=callback_url))
        assert isinstance(found, Task)
        return found

    async def bytes_of(self, output: Output) -> bytes:
        return await bytes_of(output, fetch)


async def fetch(url: str) -> bytes:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(url)).raise_for_status().content


@asynccontextmanager
async def opened(
    *, deadline_s: float = 30.0, more: Mapping[str, str] | None = None, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[ProvidersWorld]:
    """The fakes and the adapters that know them. `settings` replace those that the fakes print."""
    fake = FakeProviders()
    await fake.start()
    try:
        printed = {name.removeprefix("PERUSE_").lower(): value for name, value in fake.settings().items()}
        made = ProviderSettings(**{**printed, **settings})
        models = HastyModels(more)
        models.deadline_s = deadline_s
        async with open_providers(made, models, clock=clock) as providers:
            yield ProvidersWorld(fake, models, providers, made)
    finally:
        await fake.stop()


def answering(provider: str, answer: httpx.Response) -> Provider:
    """The adapter, with a provider that always answers the same."""

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    models = Models()
    at = Endpoint(
        httpx.AsyncClient(transport=httpx.MockTransport(handle)), "https://provider.example", SecretStr(KEY), 2**20
    )
    kinds: dict[str, Provider] = {
        "openrouter": OpenRouter(at, models), "openai": OpenAI(at, models), "nanobanana": Nanobanana(at, models),
        "workers_ai": WorkersAI(at, models, account="acc"), "replicate": Replicate(at, models),
        "fal": Fal(at, models, keys_url="https://provider.example/keys"),
    }  # fmt: skip
    return kinds[provider]
