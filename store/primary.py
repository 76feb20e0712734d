"""The primary: bounded pools of connections, and the one way to write.

Every write of ours runs in `Primary.write`: READ COMMITTED, a lock timeout, a retry when Postgres asks for one, and
`sync_flush` as its last statement, which gives the bookmark of the write from inside the transaction.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from store.epoch import Bookmark
from store.errors import PrimaryUnavailable, SettingError

__all__ = ["Connection", "Primary", "asyncpg_url", "hide_password"]

log = structlog.get_logger()
T = TypeVar("T")
Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy

#: What asyncpg raises when the primary is away, restarting, or went away in the middle.
AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections: it is being restored
    asyncpg.InvalidCatalogNameError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
)
#: What a connection says that died while it was idle in the pool.
_DEAD: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)
_AGAIN: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_ATTEMPTS: Final = 5


def asyncpg_url(url: str) -> str:
    """`url` as asyncpg takes it, without an SQLAlchemy driver name.

    Raises:
        SettingError: not a Postgres URL. The message never holds the URL: it may hold a password.
    """
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] not in ("postgresql", "postgres") or not rest:
        raise SettingError("PERUSE_PRIMARY_URL must look like postgresql://user@host/database")
    return f"postgresql://{rest}"


def hide_password(url: str) -> str:
    """`url` with its password replaced, for people to read."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


async def _keep_session(connection: Any) -> None:
    """Instead of asyncpg's RESET ALL at every release: our sessions change no setting outside a transaction."""


class Primary:
    """A pool of at most `size` connections that comes and goes with the primary.

    Opening never needs the primary to be there: reads go on from replicas without it.
    """

    def __init__(self, pool: asyncpg.Pool, *, wait_s: float) -> None:
        self._pool = pool
        self._wait_s = wait_s

    @classmethod
    async def open(
        cls, url: str, *, name: str, size: int, wait_s: float = 2.0, statement_timeout_s: float = 10.0
    ) -> Primary:
        """A pool named `name` in pg_stat_activity; a caller waits `wait_s` at most for a connection."""
        pool = await asyncpg.create_pool(
            asyncpg_url(url),
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=300.0,
            timeout=5.0,
            command_timeout=statement_timeout_s + 5.0,
            reset=_keep_session,
            server_settings={
                "application_name": f"peruse {name}"[:63],
                "timezone": "UTC",
                "lock_timeout": "2s",
                "statement_timeout": f"{int(statement_timeout_s * 1000)}ms",
                "idle_in_transaction_session_timeout": "30s",
                "default_transaction_isolation": "read committed",
            },
        )
        return cls(pool, wait_s=wait_s)

    async def close(self) -> None:
        """Close every connection, waiting for statements under way for 3 s at most."""
        try:
            await asyncio.wait_for(self._pool.close(), 3.0)
        except (TimeoutError, *AWAY):
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool.

        Raises:
            PrimaryUnavailable: none within the wait, or the primary went away inside the block.
        """
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        try:
            async with self._pool.acquire(timeout=self._wait_s) as connection:
                yield connection
        except AWAY as error:
            if task.cancelling() > cancelled:
                # What fails while a cancelled statement is cleared away takes the place of the cancellation.
                raise asyncio.CancelledError from error
            if isinstance(error, ValueError):
                raise  # asyncpg refused a value of ours: the primary is fine
            raise PrimaryUnavailable(_reason(error)) from error

    async def fetch(self, sql: str, *parameters: Any) -> list[asyncpg.Record]:
        """Rows of one statement that may run twice: it is tried again when its connection turns out to be dead."""
        try:
            return await self._fetch(sql, parameters)
        except PrimaryUnavailable as error:
            # A restart of the primary leaves dead connections in the pool: the next one is new.
            if not isinstance(error.__cause__, _DEAD):
                raise
            await self._pool.expire_connections()
        return await self._fetch(sql, parameters)

    async def _fetch(self, sql: str, parameters: tuple[Any, ...]) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *parameters)
        return rows

    async def write(self, owner: str, work: Callable[[Connection], Awaitable[T]]) -> tuple[T, Bookmark]:
        """Run `work` in one transaction and commit it; answers its result and `owner`'s bookmark.

        When this returns, the write is durable. `work` may run several times; only its last run counts.

        Raises:
            PrimaryUnavailable: the primary is away or a row stayed locked. When it went away during COMMIT the
                write may have happened or not.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            has_begun = False
            try:
                async with self.connection() as connection, connection.transaction():
                    has_begun = True
                    result = await work(connection)
                    row = await connection.fetchrow("select epoch, version from sync_flush($1)", owner)
                assert row is not None
                return result, Bookmark(row["epoch"], row["version"])
            except _AGAIN as error:
                if attempt == _ATTEMPTS:
                    raise PrimaryUnavailable(f"gave up after {attempt} attempts: {error}") from error
                await asyncio.sleep(0.01 * 2**attempt * random.random())
            except PrimaryUnavailable as error:
                # A connection that had died in the pool: nothing was sent on it, and the next one is new.
                if has_begun or attempt == _ATTEMPTS or not isinstance(error.__cause__, _DEAD):
                    raise
                await self._pool.expire_connections()
        raise AssertionError("unreachable")


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncpg.LockNotAvailableError):
        return "a row of the primary stayed locked"
    if isinstance(error, asyncpg.QueryCanceledError):
        return "a statement of the primary took too long"
    return f"the primary is not answering ({type(error).__name__})"
