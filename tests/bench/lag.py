"""A gateway that times its own loop: `python -m tests.bench.lag DATA PORT`, one more beside an instance's.

To SIGUSR1 it answers with a line of JSON: by how many milliseconds each turn of its loop that was due since then came
late. A turn is due every millisecond.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Final

import uvloop

from gateway.config import GatewaySettings
from gateway.server import serve_gateway
from store.config import StoreSettings
from store.generation.config import ProviderSettings
from store.instance import primary_url

_EVERY_S: Final = 0.001


class _Lag:
    """`start`, then `take` what was seen."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGUSR1, self._answer)
        self._wait()

    def _wait(self) -> None:
        # By another clock than the loop's, which stands still within a turn.
        self._loop.call_later(_EVERY_S, self._saw, time.perf_counter() + _EVERY_S)

    def _saw(self, due: float) -> None:
        self._late_ms.append(round((time.perf_counter() - due) * 1000, 3))
        self._wait()

    def _answer(self) -> None:
        late_ms, self._late_ms = self._late_ms, []
        print("late", json.dumps(late_ms), flush=True)


async def _serve(data: Path, port: int) -> None:
    store = StoreSettings.load(data)
    _Lag().start()
    await serve_gateway(
        data, primary_url=primary_url(data, store), store=store, settings=GatewaySettings.load(data),
        providers=ProviderSettings.load(data), wire_secret=None, index=8, listening=None, bind="127.0.0.1", port=port,
    )  # fmt: skip


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
