"""Backups of a primary as a restore brings them back: every row and every counter, and nobody is told."""

from __future__ import annotations

import asyncpg

__all__ = ["restore", "save"]

_TABLES = "select tablename from pg_tables where schemaname = 'public' and tablename <> 'alembic_version'"
_TRIGGERS = """
select t.tgname, c.relname from pg_trigger t join pg_class c on c.oid = t.tgrelid
where t.tgenabled = 'A' and c.relnamespace = 'public'::regnamespace
"""


async def save(connection: asyncpg.Connection, name: str) -> None:
    """Keep all rows as they are now, as the backup `name`; an older one of that name goes."""
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute(f"drop schema if exists {name} cascade; create schema {name}")
        for (table,) in await connection.fetch(_TABLES):
            await connection.execute(f"create table {name}.{table} as table public.{table}")


async def restore(connection: asyncpg.Connection, name: str) -> None:
    """Make all rows what they were. Nobody may be writing."""
    async with connection.transaction():
        await connection.execute("set local lock_timeout = '5s'; set local session_replication_role = replica")
        captures = await connection.fetch(_TRIGGERS)
        tables = [table for (table,) in await connection.fetch(_TABLES)]
        for trigger, table in captures:
            await connection.execute(f"alter table {table} disable trigger {trigger}")
        for table in tables:
            await connection.execute(f"delete from {table}; insert into {table} table {name}.{table}")
        for trigger, table in captures:
            await connection.execute(f"alter table {table} enable always trigger {trigger}")
