"""Settings of generation: where the providers are, and our keys there."""

from __future__ import annotations

import os
from typing import Any, Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from store.config import Settings

__all__ = ["DOCUMENTS_NAMES", "ProviderSettings"]

_URL: Final = r"^https?://[^\s?#]+$"

DOCUMENTS_NAMES: Final = {
    "openrouter_key": ("OPENROUTER_API_KEY",),
    "workers_ai_key": ("CLOUDFLARE_API_TOKEN",),
    "workers_ai_account": ("CLOUDFLARE_ACCOUNT_ID", "R2_ACCOUNT_ID"),
    "openai_key": ("OPENAI_API_KEY",),
    "nanobanana_key": ("NANO_BANANA_TOKEN",),
    "replicate_key": ("REPLICATE_API_TOKEN",),
    "fal_key": ("FAL_KEY",),
}
"""Names that the source documents and the providers' own tools use, read where ours is not set."""


class ProviderSettings(Settings):
    """`PERUSE_*` of the providers. A provider without a key serves only users who bring their own."""

    default_model: str = Field(
        "", description="model of requests that name none; empty: SDXL if Workers AI has a key, else builtin"
    )
    prices_file: str = Field("", description="TOML file that changes prices and adds models; empty: as shipped")
    openrouter_url: str = Field("https://openrouter.ai/api/v1", pattern=_URL, description="OpenRouter's API")
    openrouter_key: SecretStr = Field(SecretStr(""), description="key of OpenRouter")
    workers_ai_url: str = Field(
        "https://api.cloudflare.com/client/v4", pattern=_URL, description="Cloudflare's API, for Workers AI"
    )
    workers_ai_account: str = Field("", pattern=r"^[\w-]*$", description="account id at Cloudflare")
    workers_ai_key: SecretStr = Field(SecretStr(""), description="token of Workers AI")
    openai_url: str = Field("https://api.openai.com/v1", pattern=_URL, description="OpenAI's API")
    openai_key: SecretStr = Field(SecretStr(""), description="key of OpenAI")
    nanobanana_url: str = Field(
        "https://api.nanobananaapi.ai/api/v1/nanobanana", pattern=_URL, description="Nanobanana's API"
    )
    nanobanana_key: SecretStr = Field(SecretStr(""), description="key of Nanobanana")
    replicate_url: str = Field("https://api.replicate.com/v1", pattern=_URL, description="Replicate's API")
    replicate_key: SecretStr = Field(SecretStr(""), description="token of Replicate")
    fal_url: str = Field("https://queue.fal.run", pattern=_URL, description="fal's queue")
    fal_keys_url: str = Field(
        "https://rest.fal.ai/.well-known/jwks.json", pattern=_URL, description="the keys that fal signs callbacks with"
    )
    fal_key: SecretStr = Field(SecretStr(""), description="key of fal")
    provider_max_bytes: int = Field(
        64 * 2**20, ge=2**16, le=2**30, description="most bytes of one answer: ten pictures as base64 are some 30 MB"
    )

    provider_look_s: float = Field(
        30.0, gt=0, le=600, description="deadline of calls that do not wait for a picture, in seconds"
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        init, env, *rest = super().settings_customise_sources(settings_cls, *args, **kwargs)
        return init, env, _DocumentsNames(settings_cls), *rest


class _DocumentsNames(PydanticBaseSettingsSource):
    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # pydantic asks __call__ only

    def __call__(self) -> dict[str, Any]:
        found = {field: next(filter(None, map(os.environ.get, names)), "") for field, names in DOCUMENTS_NAMES.items()}
        return {field: value for field, value in found.items() if value}
