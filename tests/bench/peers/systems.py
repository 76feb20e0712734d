"""The peers: what each is called, how it is started, and which processes its CPU is counted of."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.peers.handlers import PRIMARY_VARIABLE
from tests.bench.peers.needs import peers_python, tool
from tests.bench.process import Process
from tests.bench.result import BenchError

__all__ = ["PEERS", "RAY_PEERS", "Bed", "Peer", "System", "check_same_images"]

_PATH: Final = "/api/images"
_HERE: Final = Path(__file__).parent


class System(NamedTuple):
    """Something that answers the page. `roots` are pids: they and their descendants do the work. `one_user_pid` is a
    process that stands for one user, where there is one; else 0."""

    url: str
    roots: Sequence[int]
    one_user_pid: int = 0


class Bed(NamedTuple):
    """What a peer is given: the page's file, its owner, the primary, a folder, and a stack that ends what it starts."""

    page: Path
    user: str
    primary_url: str
    postmaster_pid: int
    stack: ExitStack

    def process(self, name: str, command: Sequence[str], *, environment: dict[str, str] | None = None) -> Process:
        log = self.page.parent / "peers.log"
        process = Process(f"peer {name}", command, log=log, environment=environment)
        self.stack.callback(process.stop)
        return process


class Peer(NamedTuple):
    """`start` raises BenchError when a tool is missing."""

    key: str
    label: str
    start: Callable[[Bed], System]


def _on_aiohttp(kind: str) -> Callable[[Bed], System]:
    def start(bed: Bed) -> System:
        if kind == "redis":
            tool("redis-server")
        python = peers_python("redis") if kind == "redis" else sys.executable
        argument = bed.user if kind == "postgres" else str(bed.page)
        command = [python, "-m", "tests.bench.peers.handlers", kind, argument]
        process = bed.process(kind, command, environment={PRIMARY_VARIABLE: bed.primary_url})
        roots = [process.pid, bed.postmaster_pid] if kind == "postgres" else [process.pid]
        return System(process.wait_line("ready ", timeout_s=30) + _PATH, roots)

    return start


def _nginx(bed: Bed) -> System:
    """Two workers, which is what two cores deserve; the file stays open, and sendfile is on."""
    folder, port = bed.page.parent / "nginx", _free_port()
    (folder / "api").mkdir(parents=True)
    (folder / "api" / "images").write_bytes(bed.page.read_bytes())
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; worker_processes auto; user root;\n"
        "events { worker_connections 1024; }\n"
        "http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; open_file_cache max=100;\n"
        f"  default_type application/json; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;\n"
        f"  fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    process = bed.process("nginx", [tool("nginx"), "-p", str(folder), "-c", str(config)])
    process.wait_until(lambda: _listens(port), what=f"listen on port {port}")
    return System(f"http://127.0.0.1:{port}{_PATH}", [process.pid])


def _durable_object(kind: str) -> Callable[[Bed], System]:
    def start(bed: Bed) -> System:
        folder, port = bed.page.parent / f"workerd-{kind}", _free_port()
        (folder / "objects").mkdir(parents=True)
        script = "durable_object.js"
        (folder / script).write_bytes((_HERE / script).read_bytes())
        config = (_HERE / "durable_object.capnp").read_text()
        (folder / "config.capnp").write_text(
            config.replace("FOLDER", str(folder / "objects")).replace("PORT", str(port))
        )
        process = bed.process(f"workerd {kind}", [tool("workerd"), "serve", str(folder / "config.capnp")])
        process.wait_until(lambda: _listens(port), what=f"listen on port {port}")
        url = f"http://127.0.0.1:{port}/{kind}{_PATH}"
        urllib.request.urlopen(urllib.request.Request(url, bed.page.read_bytes(), method="PUT"), timeout=30).close()
        return System(url, [process.pid])

    return start


def _on_ray(kind: str) -> Callable[[Bed], System]:
    def start(bed: Bed) -> System:
        python = peers_python("ray.serve") if kind == "serve" else sys.executable
        # Ray refuses long paths: sockets are in there.
        folder = bed.page.parent / f"ray-{kind}"
        process = bed.process(kind, [python, "-m", "tests.bench.peers.on_ray", kind, str(bed.page), str(folder)])
        pid = int(process.wait_line("actor ", timeout_s=90)) if kind == "actor" else 0
        return System(process.wait_line("ready ", timeout_s=90) + _PATH, [process.pid], pid)

    return start


#: In the order in which they are measured.
PEERS: Final = (
    Peer("bare", "bare aiohttp handler", _on_aiohttp("bare")),
    Peer("nginx", "nginx, static file", _nginx),
    Peer("postgres", "aiohttp + Postgres, one json_agg", _on_aiohttp("postgres")),
    Peer("redis", "aiohttp + Redis (hiredis)", _on_aiohttp("redis")),
    Peer("do_sql", "Durable Object (workerd), SQL", _durable_object("sql")),
    Peer("do_memory", "Durable Object (workerd), kept", _durable_object("memory")),
)
#: Started one after the other when the others have ended: an idle Ray cluster takes CPU of everybody.
RAY_PEERS: Final = (
    Peer("actor", "aiohttp + one Ray actor per user", _on_ray("actor")),
    Peer("serve", "Ray Serve, constant body", _on_ray("serve")),
)


def check_same_images(ours: bytes, theirs: bytes) -> None:
    """Raises BenchError when two pages do not hold the same documents."""
    mine, other = (json.loads(body)["images"] for body in (ours, theirs))
    if mine != other:
        differing = sum(a != b for a, b in zip(mine, other, strict=False))
        raise BenchError(f"the peer's page differs: {len(other)} images for {len(mine)}, {differing} of them not equal")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
