"""Prices: the documents' table, exact to the tenth of a credit, and the operator's file."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import SettingError
from store.generation.models import TABLE
from store.generation.pricing import HIGH_RESOLUTION_PIXELS, Price, read_prices

MODELS, PRICES = read_prices()
SDXL = "@cf/stabilityai/stable-diffusion-xl-base-1.0"


@pytest.mark.parametrize(
    ("model", "tenths", "high_tenths"), [("openai/dall-e-3", 50, 75), (SDXL, 30, 45), ("openai/dall-e-2", 20, 30)]
)
def test_the_documents_table(model: str, tenths: int, high_tenths: int) -> None:
    """mission: 68, 69, 70, 71, 72, 73"""
    assert PRICES.credits_tenths(model, 1024, 1024) == tenths
    assert PRICES.credits_tenths(model, 1025, 1024) == high_tenths
    assert PRICES.credits_tenths(model, 1792, 1024) == high_tenths
    assert PRICES.credits_tenths(model, 1024, 1024, n=4) == 4 * tenths
    assert PRICES.credits_tenths(model, 1792, 1024, n=4) == 4 * high_tenths


def test_one_megapixel_is_not_high_resolution() -> None:
    """mission: 69"""
    assert HIGH_RESOLUTION_PIXELS == 1024 * 1024 == 1_048_576


def test_builtin_is_free() -> None:
    assert PRICES.credits_tenths("builtin", 2048, 2048, n=8) == 0
    assert PRICES.usd("builtin", 2048, 2048, n=8) == 0


@pytest.mark.parametrize(("px", "usd"), [(512, "0.005"), (768, "0.010"), (1024, "0.0125"), (1536, "0.045")])
def test_the_documents_dollars(px: int, usd: str) -> None:
    """mission: 78"""
    assert PRICES.usd("nanobanana", px, px) == Decimal(usd)
    assert PRICES.usd("nanobanana", px, px, n=3) == 3 * Decimal(usd)


def test_dollars_between_two_sizes_are_the_larger_ones() -> None:
    assert PRICES.usd("nanobanana", 640, 640) == Decimal("0.010")
    assert PRICES.usd("nanobanana", 4096, 4096) == Decimal("0.045")
    assert PRICES.usd("google/gemini-2.5-flash-image", 1024, 1024) == Decimal("0.039")


def test_every_model_has_a_price() -> None:
    for model in TABLE:
        price = PRICES[model.id]
        assert price.credits_tenths > 0 or model.id == "builtin"
        assert all(usd > 0 for _, usd in price.usd if model.id not in (SDXL, "builtin") and price.usd[-1][1])


@given(tenths=st.integers(0, 10**6), n=st.integers(0, 100), pixels=st.sampled_from([(1024, 1024), (2048, 2048)]))
def test_k_of_n_pictures_cost_k_times_one(tenths: int, n: int, pixels: tuple[int, int]) -> None:
    """So that what is settled and what is refunded always add up to what was held."""
    price = Price(tenths)
    one = price.picture_tenths(*pixels)

    assert isinstance(one, int)
    assert one * 2 in ((3 * tenths, 3 * tenths + 1) if pixels == (2048, 2048) else (2 * tenths,))
    assert one * n == sum(price.picture_tenths(*pixels) for _ in range(n))


def test_an_operators_file_changes_prices_and_adds_models(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        '["openai/dall-e-3"]\ncredits = "7.5"\n'
        '["acme/painter"]\nlike = "bytedance-seed/seedream-4.5"\ncredits = "0.5"\nusd = "0.0004"\n'
    )

    models, prices = read_prices(path)

    assert prices.credits_tenths("openai/dall-e-3", 1024, 1024) == 75
    assert prices.credits_tenths(SDXL, 1024, 1024) == 30
    assert models["acme/painter"].provider == "openrouter"
    assert prices.credits_tenths("acme/painter", 1024, 1024) == 5
    assert prices.credits_tenths("acme/painter", 2048, 2048, n=2) == 16
    assert prices.usd("acme/painter", 1024, 1024, n=3) == Decimal("0.0012")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["acme/x"]\ncredits = "1"\n', "'acme/x' is no model: say which one it is `like`"),
        ('["acme/x"]\nlike = "nothing"\ncredits = "1"\n', "like 'nothing', which is no model"),
        ('[builtin]\ncredits = "0.25"\n', "'builtin': '0.25' credits have more than one decimal"),
        ('[builtin]\ncredits = "-1"\n', "'-1' is not an amount from 0 to 1,000,000"),
        ('[builtin]\ncredits = "NaN"\n', "'NaN' is not an amount"),
        ('[builtin]\ncredits = "many"\n', "'many' is not a number"),
        ("[builtin]\ncredits = 1.5\n", "cannot be read"),
        ('[builtin]\ncredits = "1"\nusd = { large = "1" }\n', "'large' is not a size like 512x512"),
        ('[builtin]\ncredits = "1"\nprice = "1"\n', "cannot be read"),
        ("[builtin\n", "cannot be read"),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(tmp_path: Path, text: str, words: str) -> None:
    """mission: 66"""
    path = tmp_path / "prices.toml"
    path.write_text(text)

    with pytest.raises(SettingError, match="PERUSE_PRICES_FILE") as caught:
        read_prices(path)

    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"PERUSE_PRICES_FILE: .*none\.toml cannot be read"):
        read_prices(tmp_path / "none.toml")
