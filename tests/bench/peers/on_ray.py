"""Peers on Ray, one driver process each: `python -m tests.bench.peers.on_ray actor|serve FILE FOLDER`.

actor   an actor per user, who holds the page; aiohttp asks the user's actor at every request. Says its pid, `actor PID`
serve   Ray Serve with a deployment that answers the page
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import ray
import uvloop
from aiohttp import web

from tests.bench.peers.handlers import Handler, answer_until_told


@ray.remote(num_cpus=0)
class Gallery:
    """One user's page."""

    def __init__(self, page: bytes) -> None:
        self._page = page

    def pid(self) -> int:
        return os.getpid()

    async def page(self) -> bytes:
        return self._page


def actor_handler(page: bytes) -> Handler:
    galleries = {"ana": Gallery.options(max_concurrency=100).remote(page)}
    print(f"actor {ray.get(galleries['ana'].pid.remote())}", flush=True)

    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=await galleries["ana"].page.remote(), content_type="application/json")

    return handle


def serve(page: bytes) -> None:
    """Serve the page, say `ready URL`, and return with SIGTERM."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
    class Page:
        async def __call__(self, request: Request) -> Response:
            return Response(page, media_type="application/json")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
    serve.run(Page.bind(), route_prefix="/")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print(f"ready http://127.0.0.1:{port}", flush=True)
    stop.wait()
    serve.shutdown()


if __name__ == "__main__":
    kind, file, folder = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    try:
        if kind == "serve":
            serve(file.read_bytes())
        else:
            uvloop.run(answer_until_told(actor_handler(file.read_bytes())))
    finally:
        ray.shutdown()
