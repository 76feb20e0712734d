"""The way from a world to its Postgres, which a test can cut, block and mend."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

__all__ = ["PrimaryLink"]

_NAME = ".s.PGSQL.5432"


class PrimaryLink:
    """A Unix socket whose connections are copied to the real one. `url` is the database's by this way."""

    def __init__(self, database: str) -> None:
        parts = urlsplit(database)
        self._target = Path(parse_qs(parts.query)["host"][0]) / _NAME
        self._folder = Path(tempfile.mkdtemp(prefix="peruse-link-", dir="/tmp"))
        self.url = parts._replace(query=f"host={quote(str(self._folder), safe='')}&port=5432").geturl()
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Accept connections, again after `cut`."""
        self._server = await asyncio.start_unix_server(self._carry, self._folder / _NAME)

    async def cut(self) -> None:
        """End all connections; new ones are refused until `open`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        (self._folder / _NAME).unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def block(self) -> None:
        """Say nothing more on the connections, and end none: what a paused machine looks like."""
        self._flows.clear()

    def unblock(self) -> None:
        self._flows.set()

    async def close(self) -> None:
        await self.cut()
        shutil.rmtree(self._folder)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there_reader, there_writer = await asyncio.open_unix_connection(self._target)
            try:
                copies = (self._copy(reader, there_writer), self._copy(there_reader, writer))
                await asyncio.wait(map(asyncio.ensure_future, copies), return_when=asyncio.FIRST_COMPLETED)
            finally:
                there_writer.close()
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            writer.write(data)
