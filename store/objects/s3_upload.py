"""One upload to a bucket, and how to take it back."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final

from store.objects.keys import cache_control_of, content_type_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

__all__ = ["S3Upload"]


class S3Upload:
    """An object on its way. The metadata `put` names the upload: it tells our bytes from those of somebody else."""

    def __init__(self, bucket: str, key: str, data: bytes, *, encryption: str) -> None:
        """`encryption` is what the service is asked for, "off" for nothing."""
        self.key: Final = key
        self._bucket: Final = bucket
        self._data: Final = data
        self._encryption: Final = encryption
        self._token: Final = secrets.token_hex(16)
        # An attempt that nobody waits for any longer still runs: it must end before it is undone, and be the last.
        self._attempt: Final = threading.Lock()
        self._undone = False

    def write(self, client: S3Client) -> None:
        """Takes the key, or fails with 412 when it is taken, by another or by an attempt of ours (see `is_ours`)."""
        extra: dict[str, Any] = {} if self._encryption == "off" else {"ServerSideEncryption": self._encryption}
        with self._attempt:
            if self._undone:
                return
            client.put_object(
                Bucket=self._bucket,
                Key=self.key,
                Body=self._data,
                IfNoneMatch="*",
                ContentType=content_type_of(self.key),
                CacheControl=cache_control_of(self.key),
                ContentMD5=base64.b64encode(hashlib.md5(self._data, usedforsecurity=False).digest()).decode(),
                Metadata={"sha256": hashlib.sha256(self._data).hexdigest(), "put": self._token},
                **extra,
            )

    def is_ours(self, client: S3Client) -> bool:
        """Tells whether this upload wrote what has the key."""
        return client.head_object(Bucket=self._bucket, Key=self.key)["Metadata"].get("put") == self._token

    def undo(self, client: S3Client) -> None:
        """Removes what this upload wrote, and nothing else. No attempt writes afterwards."""
        with self._attempt:
            self._undone = True
            if self.is_ours(client):
                client.delete_object(Bucket=self._bucket, Key=self.key)
