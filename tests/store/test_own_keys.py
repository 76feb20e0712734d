"""Keys that users bring: sealed at rest, one per provider, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from store import own_keys
from store.errors import InvalidValue, NotFound, SettingError
from store.generation.config import ProviderSettings
from store.generation.models import Models
from store.generation.providers.opening import open_providers
from store.own_keys import OwnKey
from store.primary import Primary
from store.sealing import Sealer, open_sealer

KEY = "sk-canary-5d1f0c7a9b3e-4242"


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    return open_sealer(tmp_path)


async def keep(primary: Primary, sealer: Sealer, provider: str, key: str, user: str = "ana") -> OwnKey:
    kept, _ = await primary.write(user, lambda c: own_keys.keep(c, sealer, user, provider, key))
    return kept


async def test_providers_with_keys_are_all_but_the_builtin_one() -> None:
    """Those that are opened, whoever adds one. mission: 4"""
    async with open_providers(ProviderSettings(), Models()) as providers:
        assert set(own_keys.PROVIDERS) == set(providers) - {"builtin"}


async def test_a_key_is_kept_sealed_and_comes_back_whole(primary: Primary, sealer: Sealer) -> None:
    """Nothing of it is in the primary but its end. mission: 4"""
    kept = await keep(primary, sealer, "openai", KEY)

    assert (kept.provider, kept.hint) == ("openai", "4242")
    async with primary.connection() as connection:
        assert await own_keys.has_own_key(connection, "ana", "openai") is True
        secret = await own_keys.own_key(connection, sealer, "ana", "openai")
        assert secret is not None
        assert secret.get_secret_value() == KEY
        assert KEY not in repr(secret)
        assert await own_keys.keys_of(connection, "ana") == [kept]
        dump = await connection.fetchval("select t::text || encode(sealed, 'escape') from provider_keys t")
        assert "canary" not in dump


async def test_a_new_key_takes_the_place_of_the_old_one(primary: Primary, sealer: Sealer) -> None:
    """And a key that is forgotten is gone."""
    first = await keep(primary, sealer, "openai", KEY)
    second = await keep(primary, sealer, "openai", "sk-another-00000000000-7777")
    await keep(primary, sealer, "fal", "f" * 16)

    assert second.created_at > first.created_at
    async with primary.connection() as connection:
        assert [(key.provider, key.hint) for key in await own_keys.keys_of(connection, "ana")] == [
            ("fal", "ffff"), ("openai", "7777"),
        ]  # fmt: skip
        secret = await own_keys.own_key(connection, sealer, "ana", "openai")
        assert secret is not None
        assert secret.get_secret_value() == "sk-another-00000000000-7777"
        await own_keys.forget(connection, "ana", "openai")
        assert await own_keys.own_key(connection, sealer, "ana", "openai") is None
        assert await own_keys.has_own_key(connection, "ana", "openai") is False
        with pytest.raises(NotFound, match="you have no key at 'openai'"):
            await own_keys.forget(connection, "ana", "openai")


async def test_a_key_moved_to_another_row_does_not_open(primary: Primary, sealer: Sealer, tmp_path: Path) -> None:
    """Neither for another user, nor at another provider, nor with another folder's key; the error shows none of it."""
    await keep(primary, sealer, "openai", KEY)
    await keep(primary, sealer, "fal", "f" * 20)
    await keep(primary, sealer, "openai", "b" * 20, "bob")
    async with primary.connection() as connection:
        assert await own_keys.own_key(connection, sealer, "cyd", "openai") is None
        with pytest.raises(SettingError) as other_folder:
            await own_keys.own_key(connection, open_sealer(tmp_path / "other"), "ana", "openai")
        await connection.execute(
            "update provider_keys set sealed = (select sealed from provider_keys where owner_id = 'ana' "
            "and provider = 'openai')"
        )
        for user, provider in (("bob", "openai"), ("ana", "fal")):
            with pytest.raises(SettingError) as moved:
                await own_keys.own_key(connection, sealer, user, provider)
            assert "canary" not in f"{moved.value!r} {other_folder.value!r}"


@pytest.mark.parametrize(
    ("provider", "key"),
    [
        ("openai", ""), ("openai", "x" * 15), ("openai", "x" * 513), ("openai", "sk-canary 0123456789"),
        ("openai", "sk-canary-0123456789\n"), ("openai", "sk-canary-ä0123456789"),
        ("openai", "sk-canary-0123\x00456789"),
        ("workers_ai", "canary-without-account"), ("workers_ai", ":canary-0123456789"),
        ("workers_ai", "a/b:canary-0123456789"), ("workers_ai", "account:canary:0123456789"),
    ],
)  # fmt: skip
async def test_what_cannot_be_a_key_is_refused_without_showing_it(
    primary: Primary, sealer: Sealer, provider: str, key: str
) -> None:
    """And makes no user."""
    with pytest.raises(InvalidValue) as error:
        await keep(primary, sealer, provider, key)

    assert error.value.field == "key"
    assert "canary" not in str(error.value)
    assert await primary.fetch("select from users where id = 'ana'") == []


async def test_a_key_of_workers_ai_names_its_account(primary: Primary, sealer: Sealer) -> None:
    """As the provider takes it."""
    kept = await keep(primary, sealer, "workers_ai", "0123abcd-ef:token_0123456789-abcd")

    assert kept.hint == "abcd"


@pytest.mark.parametrize("provider", ["builtin", "nobody", "", "OpenAI", "openai\0"])
async def test_only_providers_that_take_keys_get_one(primary: Primary, sealer: Sealer, provider: str) -> None:
    """Those are named."""
    with pytest.raises(NotFound, match="fal, nanobanana, openai, openrouter, replicate, workers_ai"):
        await keep(primary, sealer, provider, KEY)


async def test_an_erased_user_leaves_no_key(primary: Primary, sealer: Sealer) -> None:
    """It goes with the row of its user."""
    await keep(primary, sealer, "openai", KEY)
    await primary.fetch("delete from users where id = 'ana'")

    assert await primary.fetch("select from provider_keys") == []
