"""All providers of a process, from its settings: one HTTP client each, closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from pydantic import SecretStr

from store.clock import Clock
from store.generation.config import ProviderSettings
from store.generation.models import Models
from store.generation.providers import Provider
from store.generation.providers.builtin import Builtin
from store.generation.providers.calls import Endpoint, open_client
from store.generation.providers.fal import Fal
from store.generation.providers.nanobanana import Nanobanana
from store.generation.providers.openai import OpenAI
from store.generation.providers.openrouter import OpenRouter
from store.generation.providers.replicate import Replicate
from store.generation.providers.workers_ai import WorkersAI

__all__ = ["RESULT_HOSTS", "open_providers"]

#: Where OpenAI, Replicate and fal keep their results. Nanobanana does not say where: see PERUSE_FETCH_ALLOW.
RESULT_HOSTS: Final = (
    "oaidalleapiprodscus.blob.core.windows.net",
    "replicate.delivery",
    "*.replicate.delivery",
    "fal.media",
    "*.fal.media",
)


@asynccontextmanager
async def open_providers(
    settings: ProviderSettings, models: Models, *, clock: Clock | None = None
) -> AsyncIterator[Mapping[str, Provider]]:
    """The providers by name, those without a key of ours too: a user may bring one."""
    async with AsyncExitStack() as stack:

        async def at(url: str, key: SecretStr) -> Endpoint:
            client = await stack.enter_async_context(open_client())
            return Endpoint(client, url, key, settings.provider_max_bytes, settings.provider_look_s)

        workers_ai = await at(settings.workers_ai_url, settings.workers_ai_key)
        fal = await at(settings.fal_url, settings.fal_key)
        providers: list[Provider] = [
            Builtin(models),
            WorkersAI(workers_ai, models, account=settings.workers_ai_account),
            OpenAI(await at(settings.openai_url, settings.openai_key), models),
            OpenRouter(await at(settings.openrouter_url, settings.openrouter_key), models),
            Nanobanana(await at(settings.nanobanana_url, settings.nanobanana_key), models),
            Replicate(await at(settings.replicate_url, settings.replicate_key), models, clock=clock),
            Fal(fal, models, keys_url=settings.fal_keys_url, clock=clock),
        ]
        yield {provider.name: provider for provider in providers}
