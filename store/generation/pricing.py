"""Prices: credits that a user pays, in tenths, and US dollars that a provider takes.

Credits = model × 1.5 above one megapixel × number of pictures, in whole tenths: what an estimate says is exactly what
is held, and k of n pictures cost k times one. `prices.toml` has every model of the table; an operator's file of the
same form changes prices and adds models:

    ["openai/dall-e-3"]
    credits = "5"                                   # of one picture; text, so that it is exact
    usd = "0.04"                                    # what the provider takes; or by size:
    usd = { "512x512" = "0.005", "1024x1024" = "0.0125" }

    ["black-forest-labs/flux.2-pro"]
    like = "bytedance-seed/seedream-4.5"            # provider and limits of this model
    credits = "4"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

import msgspec

from store.errors import SettingError
from store.generation.models import Models

__all__ = ["HIGH_RESOLUTION_PIXELS", "Price", "Prices", "read_prices"]

HIGH_RESOLUTION_PIXELS: Final = 1_048_576
"""One megapixel; a picture of more costs 1.5 times as much. 1024x1024 is not more."""

_SHIPPED: Final = Path(__file__).with_name("prices.toml")


class Price(msgspec.Struct, frozen=True):
    """The price of one picture of a model."""

    credits_tenths: int
    usd: tuple[tuple[int, Decimal], ...] = ()
    """Dollars of a picture of up to so many pixels, ascending; the last holds for larger ones too."""

    def picture_tenths(self, width: int, height: int) -> int:
        """Credits of one picture, in tenths. Half of a tenth, which no document asks for, counts as one."""
        if width * height > HIGH_RESOLUTION_PIXELS:
            return -(-self.credits_tenths * 3 // 2)
        return self.credits_tenths

    def picture_usd(self, width: int, height: int) -> Decimal:
        """What the provider is expected to take for one picture; 0 when nothing is known."""
        fitting = [usd for pixels, usd in self.usd if width * height <= pixels]
        return fitting[0] if fitting else self.usd[-1][1] if self.usd else Decimal(0)


class Prices:
    """The prices of all models."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = dict(prices)

    def __getitem__(self, model: str) -> Price:
        return self._prices[model]

    def credits_tenths(self, model: str, width: int, height: int, n: int = 1) -> int:
        """Credits of `n` pictures, in tenths."""
        return self._prices[model].picture_tenths(width, height) * n

    def usd(self, model: str, width: int, height: int, n: int = 1) -> Decimal:
        """Dollars that the provider is expected to take for `n` pictures."""
        return self._prices[model].picture_usd(width, height) * n


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    credits: str
    usd: str | dict[str, str] = "0"
    like: str = ""


def read_prices(path: Path | None = None) -> tuple[Models, Prices]:
    """Every model of this installation and its price: the shipped ones, changed and extended by the file `path`.

    Raises:
        SettingError: names the file and the entry.
    """
    shipped = _read(_SHIPPED)
    own = {} if path is None else _read(path)
    known = Models()
    for id, entry in own.items():
        if (entry.like or id) not in known:
            asked = f"like {entry.like!r}, which is no model" if entry.like else "no model: say which one it is `like`"
            raise SettingError(f"PERUSE_PRICES_FILE: {path}: {id!r} is {asked}")
    models = Models({id: entry.like for id, entry in own.items() if entry.like and id not in known})
    return models, Prices({id: _price(path or _SHIPPED, id, entry) for id, entry in {**shipped, **own}.items()})


def _read(path: Path) -> dict[str, _Entry]:
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), dict[str, _Entry])
    except (OSError, ValueError) as error:
        raise SettingError(f"PERUSE_PRICES_FILE: {path} cannot be read: {error}") from error


def _price(path: Path, id: str, entry: _Entry) -> Price:
    try:
        tenths = _amount(entry.credits) * 10
        if tenths != int(tenths):
            raise ValueError(f"{entry.credits!r} credits have more than one decimal")
        by_size = {"1x1": entry.usd} if isinstance(entry.usd, str) else entry.usd
        usd = sorted((_pixels(size), _amount(dollars)) for size, dollars in by_size.items())
    except ValueError as error:
        raise SettingError(f"PERUSE_PRICES_FILE: {path}: {id!r}: {error}") from error
    return Price(int(tenths), tuple(usd))


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number") from None
    if not amount.is_finite() or not 0 <= amount <= 1_000_000:
        raise ValueError(f"{text!r} is not an amount from 0 to 1,000,000")
    return amount


def _pixels(size: str) -> int:
    width, x, height = size.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"{size!r} is not a size like 512x512")
    return int(width) * int(height)
