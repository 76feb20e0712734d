"""Settings of the gateway."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from store.config import Settings

__all__ = ["GatewaySettings"]


class GatewaySettings(Settings):
    """`PERUSE_*` of the HTTP side."""

    jwt_issuer: str = Field("peruse", min_length=1, description="the only `iss` that tokens may carry")
    jwt_audience: str = Field("peruse", min_length=1, description="the `aud` that tokens must carry")
    jwt_key: str = Field("", description="PEM file of the public key that signs tokens; empty: the data folder's own")
    jwks_url: str = Field(
        "", description="https URL of the key set that signs tokens, instead of jwt_key", pattern=r"^(https?://\S+)?$"
    )
    jwt_algorithm: Literal["Ed25519", "EdDSA", "ES256", "ES384", "RS256", "PS256"] = Field(
        "Ed25519", description="the one algorithm that tokens may be signed with"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins, separated by commas, whose pages may call the API; empty: none"
    )
    upload_max_bytes: int = Field(20 * 2**20, ge=1, le=2**30, description="most bytes of one uploaded picture")
    upload_max_pixels: int = Field(40_000_000, ge=1, le=2**30, description="most pixels of one uploaded picture")
    read_timeout_ms: int = Field(
        500, ge=10, le=60_000, description="longest wait for a replica before the primary is asked, in milliseconds"
    )
    kept_page_bytes: int = Field(
        64 * 2**20,
        ge=0,
        le=2**36,
        description="bytes of pages that a gateway keeps: a host still answers every read, without sending them again",
    )
    zero_hop: bool = Field(
        True, description="serve a kept page without asking its host, while shared memory says that it is still true"
    )
    max_streams: int = Field(
        10_000, ge=0, le=1_000_000, description="event streams open at once per gateway; more are refused"
    )
    access_log: Literal["all", "default", "off"] = Field(
        "default", description="default: writes, errors and reads over 100 ms; other reads are only counted"
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(v.strip() for v in value.split(",") if v.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _no_wildcard(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ValueError(f"{origin!r} is not an origin like https://app.example.org")
        return value
