"""A gateway: what it is made of, and how it starts and stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import structlog
from aiohttp import web

from actors import ReplicaClient, user_version
from gateway.admission import UploadRoom
from gateway.auth import Authenticator
from gateway.config import GatewaySettings
from gateway.events import Streams
from gateway.following import Following
from gateway.freshness import Reads
from gateway.housekeeping import Housekeeping
from gateway.metrics import GatewayMetrics
from gateway.middleware import RequestLog, make_middleware
from gateway.operators import Operators
from gateway.queues import QueueWatch
from gateway.routes import add_routes
from gateway.routes.context import GATEWAY
from store import hosts
from store.config import StoreSettings
from store.documents import Documents
from store.epoch import Bookmark
from store.errors import ObjectError, ObjectsUnavailable, SettingError
from store.generation.callbacks import open_callbacks
from store.generation.catalog import open_catalog
from store.generation.config import ProviderSettings
from store.objects import open_objects
from store.objects.picture_process import PictureProcess
from store.objects.signing import open_signed_urls
from store.primary import Connection, Primary
from store.reads import PrimaryReads
from store.storage import Limits

__all__ = ["Gateway", "make_app"]

log = structlog.get_logger()
T = TypeVar("T")

#: A temporary object this old is a killed writer's.
_ABANDONED_S = 3600.0
#: A gateway answers reads without the object store, so it does not wait longer for it.
_CHECK_S = 5.0


class Gateway:
    """Everything that the routes of one gateway process share."""

    def __init__(
        self,
        data: Path,
        *,
        primary_url: str,
        store: StoreSettings,
        settings: GatewaySettings,
        providers: ProviderSettings,
        wire_secret: bytes | None = None,
        index: int = 0,
    ) -> None:
        self.data = data
        self.settings = settings
        self.index = index
        self.metrics = GatewayMetrics()
        self.requests = RequestLog(self.metrics, access_log=settings.access_log)
        self.documents = Documents(store.files_base)
        self.objects = open_objects(data, store)
        self.urls = open_signed_urls(data, store, self.objects)
        self.storage_limits = Limits(store.storage_free_bytes, store.storage_pro_bytes, store.storage_enterprise_bytes)
        self.upload_room = UploadRoom(settings.upload_max_bytes)
        self.webhook_allow = store.webhook_allow
        self.started_at = time.monotonic()
        self._url = primary_url
        self._store = store
        self._providers = providers
        self._opened = AsyncExitStack()
        self.callbacks = open_callbacks(data, store.files_base)
        self._wire_secret = wire_secret

    async def start(self) -> None:
        """Open the pools and learn the hosts. Needs neither the primary, nor a host, nor the bucket to be there.

        Raises:
            SettingError: the object store refuses us, or cannot be written to; the catalog cannot be made.
        """
        await self._check_objects()
        await self.objects.sweep_temporary(_ABANDONED_S)
        store = self._store
        self.primary = await Primary.open(self._url, name=f"gateway {self.index}", size=store.gateway_connections)
        self.fallback = await Primary.open(
            self._url, name=f"gateway {self.index} reads", size=store.gateway_read_connections, statement_timeout_s=2.0
        )
        # Before anything runs that would have to be stopped: a wrong key ends the start here.
        self.auth = Authenticator(self.data, self.settings, self.primary)
        opened = open_catalog(self._providers)
        self.catalog, self.providers = await self._opened.enter_async_context(opened)
        self.client = ReplicaClient(
            lambda: hosts.list_hosts(self.primary),
            secret=self._wire_secret,
            max_page_bytes=self.settings.kept_page_bytes,
            zero_hop=self.settings.zero_hop,
        )
        await self.client.start()
        self.reads = Reads(
            self.client,
            PrimaryReads(self.fallback, self.documents),
            version=user_version(self.documents),
            timeout_s=self.settings.read_timeout_ms / 1000,
            on_refused=self.metrics.saw_refusal,
        )
        await self.auth.start()
        self.streams = Streams(
            self.client, self.reads.floors, self.primary, self.auth, self.metrics, most=self.settings.max_streams
        )
        await self.streams.start()
        self.following = Following(self.fallback, self.metrics, most=self.settings.max_streams)
        self.operators = Operators(self.primary, self.client, self.documents)
        self.housekeeping = Housekeeping(self.primary, self.objects, self.metrics, trash_s=store.trash_days * 86_400)
        self.housekeeping.start()
        self.queues = QueueWatch(self.primary, self.metrics)
        self.queues.start()
        self.pictures = PictureProcess(
            max_bytes=self.settings.upload_max_bytes, max_pixels=self.settings.upload_max_pixels
        )

    async def close(self) -> None:
        await self.housekeeping.stop()
        await self.following.close()
        await self.queues.stop()
        await self.auth.close()
        await self.client.close()
        await self.primary.close()
        await self.fallback.close()
        await self.pictures.close()
        await self.objects.close()
        await self._opened.aclose()

    async def _check_objects(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_S):
                await self.objects.check()
        except (ObjectsUnavailable, TimeoutError) as error:
            log.warning("objects.unavailable", error=str(error) or f"no answer within {_CHECK_S:.0f} s")
        except ObjectError as error:
            await self.objects.close()
            raise SettingError(str(error)) from error

    async def write(self, user: str, work: Callable[[Connection], Awaitable[T]]) -> tuple[T, Bookmark]:
        """`Primary.write`, and then readers and the user's host hear of it."""
        result, bookmark = await self.primary.write(user, work)
        self.reads.wrote(user, bookmark)
        return result, bookmark


def make_app(gateway: Gateway) -> web.Application:
    """The aiohttp application of a gateway."""
    settings = gateway.settings
    middleware = make_middleware(gateway.requests, origins=settings.cors_origins)
    app = web.Application(middlewares=[middleware], client_max_size=2**20)
    app[GATEWAY] = gateway
    add_routes(app)

    async def life(_: web.Application) -> AsyncIterator[None]:
        await gateway.start()
        yield
        await gateway.close()

    app.cleanup_ctx.append(life)

    async def end_streams(_: web.Application) -> None:
        await gateway.following.close()
        await gateway.streams.close()  # before the server waits for its handlers to end

    app.on_shutdown.append(end_streams)
    return app


def handler_options() -> dict[str, Any]:
    """What aiohttp's server is told per connection."""
    # The default keeps an idle connection for an hour.
    return {"keepalive_timeout": 30.0, "access_log": None}
