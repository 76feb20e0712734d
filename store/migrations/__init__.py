"""Bringing a primary to today's tables: Alembic steps, then the triggers, in one transaction under one lock."""

from __future__ import annotations

import asyncio
import hashlib
from importlib import resources
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from store.errors import PrimaryUnavailable
from store.primary import asyncpg_url, hide_password
from store.tables import REPLICATED

__all__ = ["migrate"]

#: Any number will do, as long as it is ours: two migrations at once wait for each other.
_LOCK: Final = 0x5045_5255_5345
_ATTEMPTS: Final = 5
#: Tables whose rows have objects.
_OBJECTS: Final = ("images", "reference_images")
#: The triggers of triggers.sql, which are on in every session, and those of jobs.sql and webhooks.sql.
_ALWAYS: Final = (
    "sync_insert_delete", "sync_update", "sync_truncate", "sync_stamp", "account_open", "object_gone", "object_changed",
)  # fmt: skip
_OF_JOBS: Final = (
    "ledger_line", "ledger_applied", "ledger_refuse", "ledger_truncate", "account_refuse", "account_born",
    "account_gone", "job_created", "job_changing", "job_ended", "job_deleting",
    "job_images_gone",
)  # fmt: skip
_OF_WEBHOOKS: Final = ("webhook_job_ended", "webhook_image_trashed", "webhook_images_removed", "webhook_credits_low")
#: Whether the triggers are those of mark $1, and all $2 of them are there and switched on: $3 always, $4 at least.
_IS_COMPLETE: Final = """
select obj_description(to_regproc('sync_note')) = $1 and $2 = (
  select count(*) from pg_trigger t join pg_class c on c.oid = t.tgrelid
  where (t.tgname = any($3) and t.tgenabled = 'A' or t.tgname = any($4) and t.tgenabled in ('A', 'O'))
    and c.relnamespace = (select oid from pg_namespace where nspname = current_schema()))
"""


async def migrate(url: str) -> None:
    """Bring the primary at `url` to the newest tables and triggers. Safe to run at any time, from anywhere.

    Everything happens in one transaction: a killed migration leaves what was there before. When nothing is new,
    nothing is locked but the advisory lock.

    Raises:
        PrimaryUnavailable: it cannot be reached or does not let us; its password is not in the message.
        SettingError: `url` is not one of a Postgres.
    """
    dsn = asyncpg_url(url)

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(dsn)  # not SQLAlchemy's parsing: it knows fewer options

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await _run(engine)
            except (DBAPIError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError) as error:
                # Triggers lock tables that running writers hold in any order: whoever gives way tries again.
                if attempt == _ATTEMPTS or not _gave_way(error):
                    raise
                await asyncio.sleep(0.1 * attempt)
    except (OSError, DBAPIError, asyncpg.PostgresError) as error:
        raise PrimaryUnavailable(f"{hide_password(url)} cannot be brought up to date: {error}") from error
    finally:
        await engine.dispose()


def _gave_way(error: Exception) -> bool:
    code = getattr(error, "sqlstate", None) or getattr(getattr(error, "orig", None), "sqlstate", None)
    return code in ("40P01", "55P03")


async def _run(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("set local lock_timeout = '10s'"))
        await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        await connection.run_sync(_upgrade)
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        schema = await raw.fetchval("select quote_ident(current_schema())")
        source = triggers(schema)
        mark = hashlib.sha256(f"{source}{REPLICATED}".encode()).hexdigest()
        count = 3 * len(REPLICATED) + 2 * len(_OBJECTS) + 2 + len(_OF_JOBS) + len(_OF_WEBHOOKS)
        if await raw.fetchval(_IS_COMPLETE, mark, count, _ALWAYS, _OF_JOBS + _OF_WEBHOOKS):
            return
        await raw.execute(source)
        for kind, columns in REPLICATED.items():
            watched = columns if "owner_id" in columns else ("owner_id", *columns)
            await raw.execute("select sync_attach($1::text::regclass, $1::text, $2::text[])", kind, list(watched))
        for table in _OBJECTS:
            await raw.execute("select object_attach($1::text::regclass)", table)
        # Last: what is marked is complete.
        await raw.execute(f"comment on function sync_note() is '{mark}'")


def triggers(schema: str) -> str:
    """The text of triggers.sql, jobs.sql and webhooks.sql for a schema (its quoted name)."""
    folder = resources.files("store")
    source = "\n".join(folder.joinpath(name).read_text() for name in ("triggers.sql", "jobs.sql", "webhooks.sql"))
    return source.replace("{schema}", schema)


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", "store:migrations")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    command.upgrade(configuration(connection), "head")
