"""Objects in a bucket of S3, R2 or another service that speaks S3.

The service itself refuses a key that is taken (`If-None-Match: *`), so that any number of processes may write. The
SHA-256 is kept beside each object and compared by every read of the whole; Content-MD5 lets the service compare when it
writes. Of our processes only a killed one leaves an object that nobody knows of: `scan` finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Final

import structlog

from store.config import StoreSettings
from store.errors import ObjectExists, ObjectMissing
from store.objects.interface import ObjectInfo, OpenObject, check_range
from store.objects.keys import cache_control_of, content_type_of, is_key
from store.objects.s3_calls import S3Calls
from store.objects.s3_stream import S3Stream, info_of, read_whole
from store.objects.s3_upload import S3Upload

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

__all__ = ["S3Objects"]

_PAGE_KEYS: Final = 1000
_UNDO_S: Final = 10.0
log = structlog.get_logger()


class S3Objects:
    """Objects of one bucket. Any number of processes may share it."""

    def __init__(self, settings: StoreSettings) -> None:
        """Makes no connection; see `check`."""
        self.calls: Final = S3Calls(settings)
        self._bucket: Final = settings.s3_bucket
        at_aws = "off" if settings.s3_endpoint_url else "AES256"
        self._encryption: Final = at_aws if settings.s3_encryption == "auto" else settings.s3_encryption
        # A distribution that has a key pair answers to signed URLs only.
        is_open = settings.cloudfront_domain and not settings.cloudfront_key_pair_id
        cloudfront = f"https://{settings.cloudfront_domain}" if is_open else ""
        self._public: Final = (settings.s3_public_url or cloudfront).rstrip("/")

    async def put(self, key: str, data: bytes) -> None:
        """Writes an object that must not exist yet. Raises: ObjectExists."""
        await self.put_many([(key, data)])

    async def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Writes all of the objects or, on an error, none. Raises: ObjectExists."""
        for key, _ in items:
            _check(key)
        uploads = [S3Upload(self._bucket, key, data, encryption=self._encryption) for key, data in items]
        try:
            async with asyncio.TaskGroup() as group:
                for upload in uploads:
                    group.create_task(self._write(upload))
        except BaseExceptionGroup as failed:
            undone = asyncio.gather(*(asyncio.wrap_future(self._undo(u)) for u in uploads), return_exceptions=True)
            await asyncio.wait([undone], timeout=_UNDO_S)
            raise failed.exceptions[0] from failed
        except asyncio.CancelledError:
            for upload in uploads:
                self._undo(upload)
            raise

    async def get(self, key: str) -> bytes:
        """Returns the bytes. Raises: ObjectMissing."""
        _check(key)
        within_s = self.calls.timeout_s
        return await self.calls.run(
            f"object {key}", lambda client: read_whole(client, self._bucket, key, within_s=within_s)
        )

    @asynccontextmanager
    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[OpenObject]:
        """Reads an object in chunks; holds a thread only while one is read. Raises: ObjectMissing, RangeOutside."""
        _check(key)
        check_range(key, start, end)
        stream = S3Stream(self.calls, key, start, end)
        try:
            yield await stream.open()
        finally:
            stream.close()

    async def head(self, key: str) -> ObjectInfo:
        """Returns what is known of the object. Raises: ObjectMissing, also when the bucket is gone: 404 has no more to
        say to a HEAD request."""
        _check(key)
        answer = await self.calls.run(f"object {key}", lambda client: client.head_object(Bucket=self._bucket, Key=key))
        return info_of(key, answer)

    async def exists(self, key: str) -> bool:
        """Tells whether an object has this key."""
        try:
            await self.head(key)
        except ObjectMissing:
            return False
        return True

    async def delete(self, key: str) -> None:
        """Removes an object for good; in a versioned bucket only its newest version, so use none."""
        if is_key(key):
            await self.calls.run(f"object {key}", lambda client: client.delete_object(Bucket=self._bucket, Key=key))

    async def scan(self, prefix: str = "", *, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with `prefix` and sorts behind `after`, ascending by key."""
        while True:
            page = await self._page(prefix, after, _PAGE_KEYS)
            found = page.get("Contents", [])
            for item in found:
                # What is no object is not ours to list.
                if is_key(key := item["Key"]):
                    modified_at, etag = item["LastModified"].astimezone(UTC), item["ETag"].strip('"')
                    yield ObjectInfo(key, item["Size"], etag, modified_at, content_type_of(key), cache_control_of(key))
            if not page["IsTruncated"] or not found:
                return
            after = found[-1]["Key"]

    def public_url(self, key: str) -> str | None:
        """Where anybody may read the object; None when neither bucket nor distribution is public."""
        return f"{self._public}/{key}" if self._public else None

    async def sweep_temporary(self, older_than_s: float) -> int:
        """Nothing: an upload that does not end leaves nothing in a bucket."""
        return 0

    async def check(self) -> None:
        """Raises: ObjectError when the bucket cannot be listed: the setting at fault, or that it is away."""
        await self._page("", "", 1)

    async def close(self) -> None:
        """Ends the threads, when they are done."""
        await self.calls.close()

    async def _write(self, upload: S3Upload) -> None:
        what = f"object {upload.key}"
        try:
            await self.calls.run(what, upload.write)
        except ObjectExists:
            # Written by us already, when only the answer to it was lost.
            if not await self.calls.run(what, upload.is_ours):
                raise

    def _undo(self, upload: S3Upload) -> Future[None]:
        """An upload without a good answer may have been written, or may yet be."""

        def tell(future: Future[None]) -> None:
            error = future.exception()
            if error is not None and not _is_404(error):
                log.warning("objects.may_be_left_over", key=upload.key, error=type(error).__name__)

        undone = self.calls.submit(upload.undo)
        undone.add_done_callback(tell)
        return undone

    async def _page(self, prefix: str, after: str, keys: int) -> ListObjectsV2OutputTypeDef:
        def page(client: S3Client) -> ListObjectsV2OutputTypeDef:
            return client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, StartAfter=after, MaxKeys=keys)

        return await self.calls.run(f"bucket {self._bucket}", page)


def _check(key: str) -> None:
    if not is_key(key):
        raise ObjectMissing(f"{key!r} is not a key, so no object has it")


def _is_404(error: BaseException) -> bool:
    response = getattr(error, "response", {})
    return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404)
