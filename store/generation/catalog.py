"""The catalog: what this installation can draw with, at which price, and whose keys there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from store.credits import as_json
from store.errors import SettingError
from store.generation.config import ProviderSettings
from store.generation.errors import InvalidRequest
from store.generation.limits import Limits
from store.generation.models import SQUARES, Models
from store.generation.pricing import HIGH_RESOLUTION_PIXELS, Prices, read_prices
from store.generation.providers import Provider, Request
from store.generation.providers.opening import open_providers

__all__ = ["Catalog", "draws", "open_catalog"]


class Catalog:
    """The models with their prices. `with_keys`: the providers that need no key of the user."""

    def __init__(self, models: Models, prices: Prices, *, with_keys: Container[str], wished: str = "") -> None:
        """Raises: SettingError when the model `wished` as the default is none."""
        self.models = models
        self.prices = prices
        self.with_keys = with_keys
        try:
            self.default = models.default(wished, with_keys)
        except InvalidRequest as error:
            raise SettingError(f"PERUSE_DEFAULT_MODEL: {error}") from None

    def told(self, own_keys: Container[str]) -> Iterator[dict[str, Any]]:
        """Every model as a user with keys at `own_keys` can use it."""
        for model in self.models.values():
            price = self.prices[model.id]
            is_own = model.provider in own_keys
            tenths = (price.picture_tenths(1, 1), price.picture_tenths(2, HIGH_RESOLUTION_PIXELS))
            usual, high = (0, 0) if is_own else tenths
            yield {
                "id": model.id,
                "provider": model.provider,
                "name": model.name,
                "is_available": is_own or model.provider in self.with_keys,
                "is_default": model.id == self.default,
                "own_key": is_own,
                "limits": {
                    **msgspec.to_builtins(model.limits),
                    "image_sizes": [f"{px}x{px}" for px in SQUARES if draws(model.limits, px, px)],
                },
                "prices": {
                    "credits": as_json(usual),
                    "high_resolution_credits": as_json(high),
                    "usd": [{"up_to_pixels": pixels, "usd": usd} for pixels, usd in price.usd],
                },
                "expected_s": [
                    {"up_to_pixels": pace.max_pixels, "low": pace.low_s, "high": pace.high_s} for pace in model.pace
                ],
            }


def draws(limits: Limits, width: int, height: int) -> bool:
    """Whether a picture of this size may be asked for."""
    try:
        limits.check(Request(model="", prompt="a picture", width=width, height=height))
    except InvalidRequest:
        return False
    return True


@asynccontextmanager
async def open_catalog(settings: ProviderSettings) -> AsyncIterator[tuple[Catalog, Mapping[str, Provider]]]:
    """The catalog of these settings, and the providers by name.

    Raises:
        SettingError: the prices file cannot be used, or the default model is none.
    """
    models, prices = read_prices(Path(settings.prices_file) if settings.prices_file else None)
    async with open_providers(settings, models) as providers:
        with_keys = frozenset(name for name, provider in providers.items() if provider.has_key)
        yield Catalog(models, prices, with_keys=with_keys, wished=settings.default_model), providers
