"""Where the providers' addresses and keys come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.config import save
from store.errors import SettingError
from store.generation.config import DOCUMENTS_NAMES, ProviderSettings
from store.generation.models import Models
from store.generation.providers.opening import open_providers
from tests.fakes.providers_world import MODEL_OF


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing about providers."""
    names = [name for names in DOCUMENTS_NAMES.values() for name in names]
    for name in [*names, *(name for name in os.environ if name.startswith("PERUSE_"))]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("field", "name"), [(field, name) for field, names in DOCUMENTS_NAMES.items() for name in names]
)
def test_the_documents_names_are_read(monkeypatch: pytest.MonkeyPatch, field: str, name: str) -> None:
    """mission: 173"""
    monkeypatch.setenv(name, "value-1")

    found = getattr(ProviderSettings.load(), field)

    assert (found if isinstance(found, str) else found.get_secret_value()) == "value-1"


def test_our_own_name_comes_first_and_what_was_saved_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save(tmp_path, {"openrouter_key": "saved"})
    assert ProviderSettings.load(tmp_path).openrouter_key.get_secret_value() == "saved"

    monkeypatch.setenv("OPENROUTER_API_KEY", "documents")
    assert ProviderSettings.load(tmp_path).openrouter_key.get_secret_value() == "documents"

    monkeypatch.setenv("PERUSE_OPENROUTER_KEY", "ours")
    assert ProviderSettings.load(tmp_path).openrouter_key.get_secret_value() == "ours"


def test_a_key_is_not_in_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """mission: 209"""
    monkeypatch.setenv("NANO_BANANA_TOKEN", "canary-token")
    monkeypatch.setenv("PERUSE_FAL_KEY", "canary-token")

    settings = ProviderSettings.load()

    assert "canary-token" not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PERUSE_OPENROUTER_URL", "ftp://x"),
        ("PERUSE_FAL_URL", "https://x/?key=1"),
        ("PERUSE_WORKERS_AI_ACCOUNT", "../a"),
        ("PERUSE_PROVIDER_LOOK_S", "0"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """mission: 66"""
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingError, match=name):
        ProviderSettings.load()


async def test_without_any_setting_only_builtin_has_a_key() -> None:
    """The others are there all the same: a user may bring a key."""
    async with open_providers(ProviderSettings.load(), Models()) as providers:
        assert providers.keys() == MODEL_OF.keys()
        assert [name for name, provider in providers.items() if provider.has_key] == ["builtin"]
        assert all(provider.name == name for name, provider in providers.items())
