"""Bringing a primary to today's tables: Alembic steps, then the triggers, in one transaction under one lock."""

from __future__ import annotations

from importlib import resources
from typing import Final

from alembic import command
from alembic.config import Config
from asyncpg import PostgresError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from store.errors import PrimaryUnavailable
from store.primary import asyncpg_url, hide_password
from store.tables import REPLICATED

__all__ = ["migrate"]

#: Any number will do, as long as it is ours: two migrations at once wait for each other.
_LOCK: Final = 0x5045_5255_5345


async def migrate(url: str) -> None:
    """Bring the primary at `url` to the newest tables and triggers. Safe to run at any time, from anywhere.

    Everything happens in one transaction: a killed migration leaves what was there before.

    Raises:
        PrimaryUnavailable: it cannot be reached; its password is not in the message.
        SettingError: `url` is not one of a Postgres.
    """
    engine = create_async_engine(asyncpg_url(url).replace("postgresql://", "postgresql+asyncpg://", 1))
    try:
        await _run(engine)
    except (OSError, DBAPIError, PostgresError) as error:
        raise PrimaryUnavailable(f"{hide_password(url)} cannot be brought up to date: {error}") from error
    finally:
        await engine.dispose()


async def _run(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("set local lock_timeout = '30s'"))
        await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        await connection.run_sync(_upgrade)
        schema = (await connection.execute(text("select quote_ident(current_schema())"))).scalar_one()
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.execute(triggers(schema))
        for kind, columns in REPLICATED.items():
            watched = columns if "owner_id" in columns else ("owner_id", *columns)
            await raw.execute("select sync_attach($1::text::regclass, $1::text, $2::text[])", kind, list(watched))


def triggers(schema: str) -> str:
    """The text of triggers.sql for a schema (its quoted name)."""
    source = resources.files("store").joinpath("triggers.sql").read_text()
    return source.replace("{schema}", schema)


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", "store:migrations")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    command.upgrade(configuration(connection), "head")
