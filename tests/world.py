"""A whole instance inside one process, without Ray: a host, a gateway on a real port, and clients."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Self

import aiohttp
from PIL import Image

from actors.config import HostSettings
from actors.host import ReplicaHost
from gateway.app import Gateway, handler_options, make_app
from gateway.auth import Role, Signer
from gateway.config import GatewaySettings
from gateway.hot import HotRunner
from store.config import StoreSettings
from store.generation.config import ProviderSettings
from store.primary import Connection

__all__ = ["World", "add_images", "ended", "png", "until"]


class World:
    """`start`, then `get`, `post` and the like as any user; `stop` at the end."""

    def __init__(self, data: Path, database: str, **settings: Any) -> None:
        self.data = data
        self.database = database
        self.settings = GatewaySettings(**settings)
        self.store = StoreSettings()
        self.providers = ProviderSettings()
        # What a test damages is mended when it says so, not by an audit of the host's own that comes by.
        self.host_settings = HostSettings(node="test", host_audit_s=0)

    async def start(self) -> Self:
        self.data.mkdir(parents=True, exist_ok=True)
        self.host = await self.start_host(0)
        self.gateway = Gateway(
            self.data, primary_url=self.database, store=self.store, settings=self.settings, providers=self.providers
        )
        self._runner = HotRunner(make_app(self.gateway), shutdown_timeout=0.5, **handler_options())
        await self._runner.setup()
        from aiohttp import web

        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.http = aiohttp.ClientSession(base_url=self.url)
        await until(self.gateway.client.probe)
        return self

    async def stop(self) -> None:
        await self.http.close()
        await self._runner.cleanup()
        await self.host.stop()

    async def start_host(self, slot: int) -> ReplicaHost:
        host = ReplicaHost(
            self.data,
            slot=slot,
            primary_url=self.database,
            store=self.store,
            settings=self.host_settings,
            build="test",
        )
        await host.start()
        return host

    def token(self, user: str, role: Role = "user") -> str:
        return Signer(self.data, self.settings).token(user, role=role)

    async def request(
        self, method: str, path: str, *, user: str | None = "ana", role: Role = "user", **options: Any
    ) -> Reply:
        """One request as `user`; None sends no credential."""
        headers = dict(options.pop("headers", {}))
        if user is not None:
            headers.setdefault("Authorization", f"Bearer {self.token(user, role)}")
        async with self.http.request(method, path, headers=headers, **options) as answer:
            return Reply(answer.status, answer.headers.copy(), await answer.read())

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.request("GET", path, **options)

    async def upload(self, *, user: str = "ana", data: bytes | None = None, **fields: str) -> Reply:
        """POST /api/images/upload of a small picture."""
        form = aiohttp.FormData()
        form.add_field("file", data or png(), filename="a.png", content_type="image/png")
        for name, value in fields.items():
            form.add_field(name, value)
        return await self.request("POST", "/api/images/upload", user=user, data=form)

    async def write(self, user: str, work: Callable[[Connection], Awaitable[Any]]) -> Any:
        """A write through the gateway's pool, as a route makes it: with a poke."""
        return (await self.gateway.write(user, work))[0]


class Reply:
    """An answer that was read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        import json

        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<Reply {self.status} {self.body[:300]!r}>"


def png(color: str = "teal", size: tuple[int, int] = (8, 6)) -> bytes:
    """A small real picture."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


async def add_images(connection: Any, user: str, count: int, **columns: Any) -> list[uuid.UUID]:
    """Rows by plain SQL, as another service would write them; the newest last."""
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
    ids = []
    for n in range(count):
        values = {"prompt": f"picture {n} of {user}", "model": "builtin", **columns}
        names = ", ".join(values)
        marks = ", ".join(f"${i}" for i in range(4, 4 + len(values)))
        row = await connection.fetchval(
            f"insert into images (owner_id, object_key, content_type, size_bytes, {names}) "
            f"values ($1, $2, 'image/png', $3, {marks}) returning id",
            user, f"generated/{uuid.uuid4().hex}", 7, *values.values(),
        )  # fmt: skip
        ids.append(row)
    return ids


async def until(check: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
    """What `check` answers, once that is true; fails when it never is within the time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        result = check()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {check}")
        await asyncio.sleep(0.01)


async def ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Returns when all of these have ended; fails, and says which have not, after 10 s. Others that come and go, of
    whatever else runs in the process, are not looked at."""
    _, left = await asyncio.wait(tasks, timeout=10) if tasks else ((), ())
    assert not left
