"""One gateway process: its socket, its loop, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
from pathlib import Path

import structlog
from aiohttp import web

from gateway.app import Gateway, handler_options, make_app
from gateway.config import GatewaySettings
from gateway.hot import HotRunner
from store.config import StoreSettings
from store.errors import SettingError
from store.generation.config import ProviderSettings
from store.priority import run_first

__all__ = ["serve_gateway"]

log = structlog.get_logger()

_SHUTDOWN_S = 2.0


async def serve_gateway(
    data: Path,
    *,
    primary_url: str,
    store: StoreSettings,
    settings: GatewaySettings,
    providers: ProviderSettings,
    wire_secret: bytes | None,
    index: int,
    listening: socket.socket | None,
    bind: str,
    port: int,
) -> None:
    """Serve on `listening`, or on a socket of its own that others may share, until SIGTERM or SIGINT.

    Raises:
        SettingError: the port cannot be had.
    """
    _raise_file_limit()
    run_first()
    gateway = Gateway(
        data, primary_url=primary_url, store=store, settings=settings, providers=providers,
        wire_secret=wire_secret, index=index,
    )  # fmt: skip
    runner = HotRunner(make_app(gateway), shutdown_timeout=_SHUTDOWN_S, **handler_options())
    await runner.setup()
    site: web.BaseSite
    if listening is not None:
        site = web.SockSite(runner, listening)
    else:
        site = web.TCPSite(runner, bind, port, reuse_port=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise SettingError(f"cannot listen on {bind}:{port}: {error.strerror}") from None
    gc.collect()
    gc.freeze()  # code is never garbage: to look through it stops the loop for 40 ms, and all readers with it
    log.info("gateway.started", address=site.name)
    await stop.wait()
    await runner.cleanup()
    log.info("gateway.stopped")


def _raise_file_limit() -> None:
    """Each event stream is an open file, and a shell's usual 1,024 are too few of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1_048_576
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
