"""A bucket of a real S3 server, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import Final

import boto3

from store.config import StoreSettings

__all__ = ["S3Server", "bucket_settings"]

_SERVE: Final = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()  # ends with whoever started it
server.stop()
"""


class S3Server:
    """moto's server. `url` is its endpoint."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.url: Final = self._process.stdout.readline().strip()
        assert self.url, "moto did not start"

    def make_bucket(self, name: str) -> None:
        keys = {"aws_access_key_id": "id", "aws_secret_access_key": "secret"}
        with closing(boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)) as client:
            client.create_bucket(Bucket=name)

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def bucket_settings(url: str, bucket: str, **more: object) -> StoreSettings:
    """Settings of a bucket of the server."""
    values: dict[str, object] = {
        "objects": "s3",
        "s3_endpoint_url": url,
        "s3_bucket": bucket,
        "s3_access_key_id": "AKIDFORTESTS",
        "s3_secret_access_key": "secret-for-tests",
    }
    return StoreSettings(**(values | more))  # type: ignore[arg-type]
