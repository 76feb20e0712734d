"""A process that uploads: the same picture again and again, at a pace or as fast as it is taken.

    python -m tests.bench.uploader URL TOKEN FILE SECONDS CONNECTIONS PER_SECOND

With 0 per second each connection sends the next one at once. At its end it prints a line of JSON: milliseconds of each
upload that was kept, the seconds until the last answer, and how many were refused because others waited.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

__all__ = ["PATH"]

PATH: Final = "/api/images/upload"
_BOUNDARY: Final = b"----bench-boundary-7f3a"


class _Uploads:
    """What all connections share."""

    def __init__(self, url: str, token: str, data: bytes, *, per_s: float, until: float) -> None:
        self._where = urlsplit(url)
        self._body = self._request(token, data)
        self._pause_s = 1 / per_s if per_s else 0.0
        self._until = until
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self.took_ms: list[float] = []
        self.refused = 0

    def _request(self, token: str, data: bytes) -> bytes:
        head = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        body = b"--" + _BOUNDARY + b"\r\n" + head + data + b"\r\n--" + _BOUNDARY + b"--\r\n"
        lines = [
            f"POST {PATH} HTTP/1.1",
            f"Host: {self._where.netloc}",
            f"Authorization: Bearer {token}",
            f"Content-Type: multipart/form-data; boundary={_BOUNDARY.decode()}",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def work(self) -> None:
        """One connection's uploads."""
        while (due := self._turn()) < self._until:
            time.sleep(max(0.0, due - time.monotonic()))
            # A new connection each: one that was refused early is closed by the server.
            with socket.create_connection((self._where.hostname, self._where.port), timeout=60) as connection:
                started = time.monotonic()
                status = self._send(connection)
                took_ms = (time.monotonic() - started) * 1000
            with self._lock:
                if status == 201:
                    self.took_ms.append(took_ms)
                elif status == 503:
                    self.refused += 1
                else:
                    raise SystemExit(f"POST {PATH} answered {status}, expected 201")

    def _send(self, connection: socket.socket) -> int:
        try:
            connection.sendall(self._body)
        except OSError:
            pass  # it answered before it had read all
        try:
            return int(connection.recv(65_536).split(b" ", 2)[1])
        except (OSError, IndexError):
            return 503

    def _turn(self) -> float:
        with self._lock:
            due = self._next if self._pause_s else time.monotonic()
            self._next += self._pause_s
            return due


def main(url: str, token: str, file: str, seconds: str, connections: str, per_s: str) -> None:
    started = time.monotonic()
    uploads = _Uploads(url, token, Path(file).read_bytes(), per_s=float(per_s), until=started + float(seconds))
    threads = [threading.Thread(target=uploads.work) for _ in range(int(connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - started
    print("uploaded", json.dumps({"took_ms": uploads.took_ms, "seconds": took_s, "refused": uploads.refused}))


if __name__ == "__main__":
    main(*sys.argv[1:])
