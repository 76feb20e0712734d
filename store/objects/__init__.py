"""Objects: the bytes of pictures, kept beside Postgres and named by generated keys.

keys.py            generated keys; nothing a user typed ever becomes part of a path
prefix.py          the secret behind the owner tags in keys
interface.py       what every object store does
local.py           objects as files in one folder, written once and durably
s3.py              objects in a bucket of S3 or R2
s3_calls.py        boto3 from asyncio: threads, deadline, retries, errors
s3_upload.py       one upload, and how to take it back; s3_stream.py: bytes as they come
s3_names.py        settings under the names of S3's and R2's own tools
signing.py         URLs that end: of CloudFront, of the bucket, of the gateway
fetch.py           bytes from a URL that somebody else chose; addresses.py, allowed.py: which ones
pictures.py        what bytes are: format, size, thumbnail and placeholder
stored.py          what a row says about its picture
finishing.py       what a provider sent becomes what is kept; watermark.py, provenance.py: what is put into it
picture_process.py pictures read in processes of their own; picture_worker.py: one of them, within limits;
                   picture_child.py: what runs in it
reconcile.py       do rows and objects agree
copying.py         every object of one store into another
thumbs.py          thumbnails and placeholders of decoded pictures
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store.config import StoreSettings
    from store.objects.interface import Objects

__all__ = ["open_objects"]


def open_objects(data: Path, settings: StoreSettings) -> Objects:
    """The object store of the settings; `data` is the data folder. It connects with its first call."""
    if settings.objects == "s3":
        from store.objects.s3 import S3Objects

        return S3Objects(settings)
    from store.objects.local import LocalObjects

    return LocalObjects(data / "objects", files_base=settings.files_base)
