"""The bytes of an object in a bucket, as they come: too slow, cut short and damaged bytes are noticed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from store.errors import ObjectsUnavailable
from store.objects.interface import ObjectInfo, OpenObject
from store.objects.keys import cache_control_of, content_type_of
from store.objects.s3_calls import SILENT_S, Damaged, S3Calls

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

__all__ = ["S3Stream", "info_of", "read_whole"]

_CHUNK_BYTES: Final = 256 * 1024
_REOPENED: Final = 4  # times in a row without a byte in between
_FIRST_WAIT_S: Final = 0.2


class S3Stream:
    """A range of an object, read once. A connection that breaks is replaced by one that goes on at the same byte."""

    def __init__(self, calls: S3Calls, key: str, start: int, end: int | None) -> None:
        self._calls: Final = calls
        self._key: Final = key
        self._what: Final = f"object {key}"
        self._start: Final = start
        self._wanted_end: Final = end
        self._position = start
        self._digest = hashlib.sha256()
        self._body: StreamingBody | None = None
        self._reading: Future[bytes] | None = None

    async def open(self) -> OpenObject:
        """Asks for the range. Raises: ObjectMissing, RangeOutside."""
        answer = await self._calls.run(self._what, self._ask)
        self._body = answer["Body"]
        info = info_of(self._key, answer)
        wanted, size = self._wanted_end, info.size_bytes
        end = size if wanted is None else min(wanted, size)
        sha256 = answer["Metadata"].get("sha256") if (self._start, end) == (0, size) else None
        return OpenObject(info, self._start, end, self._chunks(info.etag, end, sha256))

    def close(self) -> None:
        """Gives the connection up, when the read under way is over."""
        if self._reading is not None:
            self._reading.add_done_callback(lambda _: self._close_body())
        else:
            self._close_body()

    async def _chunks(self, etag: str, end: int, sha256: str | None) -> AsyncIterator[bytes]:
        failures = 0
        while self._position < end:
            try:
                self._reading = self._calls.submit(lambda _: self._read(end, sha256))
                chunk = await asyncio.wrap_future(self._reading)
            except Exception as error:
                self._calls.raise_unless_passing(self._what, error)
                failures += 1
                if failures > _REOPENED:
                    raise ObjectsUnavailable(f"{self._what}: broke off {failures} times at {self._position}") from error
                await asyncio.sleep(_FIRST_WAIT_S * (2 ** (failures - 1) - 1))
                self._close_body()
                self._body = (await self._calls.run(self._what, lambda client: self._ask(client, etag)))["Body"]
                continue
            failures = 0
            self._position += len(chunk)
            yield chunk

    def _ask(self, client: S3Client, etag: str | None = None) -> GetObjectOutputTypeDef:
        extra: dict[str, Any] = {}
        end = self._wanted_end
        if self._position or end is not None:
            extra["Range"] = f"bytes={self._position}-{'' if end is None else end - 1}"
        if etag is not None:
            extra["IfMatch"] = f'"{etag}"'
        return client.get_object(Bucket=self._calls.bucket, Key=self._key, **extra)

    def _read(self, end: int, sha256: str | None) -> bytes:
        """One chunk. A whole object's last one is given out only when all of them are what was once written."""
        assert self._body is not None
        chunk = _read_up_to(self._body, min(_CHUNK_BYTES, end - self._position), time.monotonic() + SILENT_S)
        if not chunk:
            raise Damaged(f"ended at {self._position} of {end} bytes")
        self._digest.update(chunk)
        if sha256 and self._position + len(chunk) == end and self._digest.hexdigest() != sha256:
            raise ObjectsUnavailable(f"{self._what} arrived damaged: its SHA-256 is not {sha256}")
        return chunk

    def _close_body(self) -> None:
        if self._body is not None:
            self._body.close()


def read_whole(client: S3Client, bucket: str, key: str, *, within_s: float) -> bytes:
    """All bytes of an object, on a thread. Raises: Damaged when they come too slowly, end early, or are not its own."""
    until = time.monotonic() + within_s
    answer = client.get_object(Bucket=bucket, Key=key)
    size = answer["ContentLength"]
    with closing(answer["Body"]) as body:
        data = _read_up_to(body, size, until)
    if len(data) != size:
        raise Damaged(f"ended at {len(data)} of {size} bytes")
    sha256 = answer["Metadata"].get("sha256")
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged(f"arrived damaged: its SHA-256 is not {sha256}")
    return data


def info_of(key: str, answer: GetObjectOutputTypeDef | HeadObjectOutputTypeDef) -> ObjectInfo:
    """What an answer's headers tell of the object."""
    _, _, size = answer.get("ContentRange", "").partition("/")
    return ObjectInfo(
        key,
        int(size or answer["ContentLength"]),
        answer["ETag"].strip('"'),
        answer["LastModified"].astimezone(UTC),
        answer.get("ContentType") or content_type_of(key),
        answer.get("CacheControl") or cache_control_of(key),
    )


def _read_up_to(body: StreamingBody, size: int, until: float) -> bytes:
    """`size` bytes, fewer where the body ends. Raises: Damaged after `until`, in seconds of the monotonic clock."""
    parts: list[bytes] = []
    while size > 0:
        # What is there, at once: body.read() waits for all of them, for ever when one comes every few seconds.
        part = body._raw_stream.read1(size)  # type: ignore[attr-defined]
        if not part:
            break
        parts.append(part)
        size -= len(part)
        if size and time.monotonic() > until:
            raise Damaged("bytes come too slowly")
    return b"".join(parts)
