"""Keys that users bring: their own at a provider, who then bills them. Sealed at rest; nothing here shows one.

Each function works inside a transaction and names the owner, so that another user's key is simply not there.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, NamedTuple

from pydantic import SecretStr

from store.errors import InvalidValue, NotFound
from store.generation.models import TABLE
from store.primary import Connection
from store.sealing import Sealer
from store.users import ensure_user

__all__ = ["PROVIDERS", "OwnKey", "check_provider", "forget", "has_own_key", "keep", "keys_of", "own_key"]

#: The providers that take a key of the user. `builtin` takes none: there is nobody to bill.
PROVIDERS: Final = tuple(sorted({model.provider for model in TABLE} - {"builtin"}))

_KEY: Final = re.compile(r"[!-~]{16,512}")
_WORKERS_AI_KEY: Final = re.compile(r"[0-9A-Za-z-]{1,64}:[^:]+")
_HINT_CHARS: Final = 4

_KEEP: Final = """
insert into provider_keys (owner_id, provider, sealed, hint) values ($1, $2, $3, $4)
on conflict (owner_id, provider) do update
set sealed = excluded.sealed, hint = excluded.hint, created_at = clock_timestamp()
returning provider, hint, created_at
"""


class OwnKey(NamedTuple):
    """A key as its owner may see it: `hint` is its end."""

    provider: str
    hint: str
    created_at: datetime


def check_provider(provider: str) -> None:
    """Raises: NotFound when there is no such provider, or it takes no key."""
    if provider not in PROVIDERS:
        raise NotFound(f"there is no provider {provider[:40]!r} that takes a key; those are {', '.join(PROVIDERS)}")


async def has_own_key(connection: Connection, user: str, provider: str) -> bool:
    """Whether the user has a key of their own at the provider."""
    sql = "select true from provider_keys where owner_id = $1 and provider = $2"
    return await connection.fetchval(sql, user, provider) is True


async def own_key(connection: Connection, sealer: Sealer, user: str, provider: str) -> SecretStr | None:
    """The user's key at the provider, to call it with.

    Raises:
        SettingError: it was sealed with another data folder's key.
    """
    sql = "select sealed from provider_keys where owner_id = $1 and provider = $2"
    sealed = await connection.fetchval(sql, user, provider)
    return None if sealed is None else SecretStr(sealer.open(sealed, _context(user, provider)).decode())


async def keys_of(connection: Connection, user: str) -> list[OwnKey]:
    """What keys the user has, by provider."""
    sql = "select provider, hint, created_at from provider_keys where owner_id = $1 order by provider"
    return [OwnKey(*row) for row in await connection.fetch(sql, user)]


async def keep(connection: Connection, sealer: Sealer, user: str, provider: str, key: str) -> OwnKey:
    """Keep `key`, in place of an older one.

    Raises:
        NotFound: there is no such provider, or it takes no key.
        InvalidValue: it cannot be a key. The message does not hold it.
    """
    check_provider(provider)
    if _KEY.fullmatch(key) is None:
        raise InvalidValue("key", "key must be 16 to 512 printable ASCII characters without spaces")
    if provider == "workers_ai" and _WORKERS_AI_KEY.fullmatch(key) is None:
        raise InvalidValue("key", "a key of workers_ai is written account:token")
    await ensure_user(connection, user)
    sealed = sealer.seal(key.encode(), _context(user, provider))
    return OwnKey(*await connection.fetchrow(_KEEP, user, provider, sealed, key[-_HINT_CHARS:]))


async def forget(connection: Connection, user: str, provider: str) -> None:
    """Raises: NotFound when the user has no key there."""
    sql = "delete from provider_keys where owner_id = $1 and provider = $2 returning true"
    if await connection.fetchval(sql, user, provider) is None:
        raise NotFound(f"you have no key at {provider[:40]!r}")


def _context(user: str, provider: str) -> str:
    return f"{user}/{provider}"
