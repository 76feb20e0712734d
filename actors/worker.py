"""A worker: one process that brings jobs to their end and sends webhooks, beside the hosts and without them.

Plain asyncio: Ray only starts it and keeps it (cluster). Everything that it knows is in the primary, so it may be
killed at any moment; another worker goes on with its jobs as soon as their lease has ended.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from pydantic import SecretStr

from actors.client import ReplicaClient
from actors.config import HostSettings, WorkerSettings
from actors.metrics import resident_bytes
from actors.worker_stats import STATS_S, WorkerStats, remove_worker_stats, write_worker_stats
from store import hosts
from store.config import StoreSettings
from store.errors import ObjectError, SettingError
from store.generation.callbacks import open_callbacks
from store.generation.config import ProviderSettings
from store.generation.moderation import read_moderation
from store.generation.pricing import read_prices
from store.generation.providers.opening import RESULT_HOSTS, open_providers
from store.generation.runner import Rhythm, Runner
from store.objects import open_objects
from store.objects.fetch import Fetcher
from store.objects.picture_process import PictureProcess
from store.objects.prefix import owner_secret
from store.objects.signing import open_signed_urls
from store.own_keys import own_key
from store.primary import Primary
from store.sealing import open_sealer
from store.storage import Limits
from store.webhook_posting import Poster
from store.webhook_sending import WebhookSender

__all__ = ["GenerationWorker"]

log = structlog.get_logger()

#: For jobs that a provider works on when the worker is to stop, in seconds: what is not done then is resumed.
GRACE_S = 2.0


class GenerationWorker:
    """One worker: `start`, then `stop`."""

    def __init__(
        self,
        data: Path,
        *,
        slot: int,
        primary_url: str,
        store: StoreSettings,
        hosts: HostSettings,
        providers: ProviderSettings,
        settings: WorkerSettings,
    ) -> None:
        # Also the start of this very process: what an earlier one of this name has claimed is not ours.
        self._slot, self._place = slot, f"{hosts.node}:{slot}"
        self.id = f"{self._place}:{os.getpid()}:{secrets.token_hex(4)}"
        self._data, self._url, self._store, self._settings = data, primary_url, store, settings
        self._secret = hosts.wire_secret.get_secret_value().encode() or None
        self._providers = providers
        #: What was taken so far, and how to give it back: the last first.
        self._taken = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to claim. Needs neither the primary nor a host to be there.

        Raises:
            SettingError: prices, moderation or the object store are set wrong.
        """
        try:
            await self._start()
        except BaseException:
            await self._taken.aclose()
            raise
        log.info("worker.started", worker=self.id)

    async def _start(self) -> None:
        store, taken = self._store, self._taken
        moderation = read_moderation(self._settings.moderation)
        prices_file = self._providers.prices_file
        models, prices = read_prices(Path(prices_file) if prices_file else None)
        objects = open_objects(self._data, store)
        taken.push_async_callback(objects.close)
        try:
            await objects.check()
        except ObjectError as error:
            raise SettingError(str(error)) from error
        primary = await Primary.open(self._url, name=f"worker {self.id}", size=self._settings.worker_connections)
        taken.push_async_callback(primary.close)
        client = ReplicaClient(lambda: hosts.list_hosts(primary), secret=self._secret)
        taken.push_async_callback(client.close)
        await client.start()
        pictures = PictureProcess(max_workers=self._settings.worker_pictures, max_waiting=2**16)
        taken.push_async_callback(pictures.close)
        fetcher = Fetcher(
            allow=(*RESULT_HOSTS, *store.fetch_allow),
            max_bytes=store.fetch_max_bytes,
            timeout_s=store.fetch_timeout_s,
            at_once=32,
        )
        taken.push_async_callback(fetcher.close)
        providers = await taken.enter_async_context(open_providers(self._providers, models))

        async def fetch(url: str) -> bytes:
            return (await fetcher.fetch(url)).data

        sealer = open_sealer(self._data)

        async def key_of(user: str, provider: str) -> SecretStr | None:
            async with primary.connection() as connection:
                return await own_key(connection, sealer, user, provider)

        self._runner = Runner(
            primary, objects, pictures, providers, models, prices,
            name=self.id,
            fetch=fetch,
            urls=open_signed_urls(self._data, store, objects),
            owner_secret=owner_secret(self._data),
            limits=Limits(store.storage_free_bytes, store.storage_pro_bytes, store.storage_enterprise_bytes),
            on_change=client.poke,
            own_key=key_of,
            moderation=moderation,
            callback_url=open_callbacks(self._data, store.files_base).url,
            rhythm=Rhythm(
                jobs=self._settings.worker_jobs,
                provider_jobs=self._settings.most_jobs(providers),
                lease_s=self._settings.worker_lease_s,
                beat_s=self._settings.worker_lease_s / 6,
            ),
        )  # fmt: skip
        sender = WebhookSender(primary, sealer, Poster(allow=store.webhook_allow))
        self._tasks = [
            asyncio.create_task(self._runner.run(), name="runner"),
            asyncio.create_task(sender.run(), name="webhooks"),
            asyncio.create_task(self._tell(), name="stats"),
        ]

    async def _tell(self) -> None:
        """Ended by `stop`."""
        while True:
            self._write_stats()
            await asyncio.sleep(STATS_S)

    def _write_stats(self) -> None:
        stats = WorkerStats(self._place, os.getpid(), self.running, resident_bytes(), self._runner.tally)
        try:
            write_worker_stats(self._data, self._slot, stats)
        except OSError as error:
            log.warning("worker.stats_not_written", error=str(error))  # a full disk ends no job

    @property
    def running(self) -> int:
        """Jobs in work now."""
        return self._runner.running

    async def stopped(self) -> None:
        """Returns when the worker has nothing more to do; raises what it failed of."""
        await self._tasks[0]

    async def stop(self, *, grace_s: float = GRACE_S) -> None:
        """Give back what is not begun, let the rest come to its end for a while, and close everything."""
        await self._runner.stop(grace_s=grace_s)
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._taken.aclose()
        remove_worker_stats(self._data, self._slot)
        log.info("worker.stopped", worker=self.id)
