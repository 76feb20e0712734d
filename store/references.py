"""Reference images in the primary: pictures that a user shows to a model. Always private, and kept once per content.

Each function works inside a transaction of `Primary.write` and names the owner in its WHERE, so that another user's
row is simply not there.
"""

from __future__ import annotations

import uuid
from typing import Final

import msgspec

from store import storage
from store.documents import Documents, projection
from store.errors import NotFound
from store.images import FileInfo
from store.objects.keys import named_key
from store.primary import Connection, Primary

__all__ = ["NewReference", "delete", "document", "file_of", "insert", "same_content", "tidy_filename"]

MAX_FILENAME_CHARS: Final = 200
_NOT_FOUND: Final = "Reference image not found"


class NewReference(msgspec.Struct, kw_only=True):
    """A row to insert; `sha256` is that of the bytes."""

    id: uuid.UUID
    object_key: str
    content_type: str
    size_bytes: int
    width: int
    height: int
    thumb_key: str
    thumbhash: str
    filename: str
    sha256: bytes


_COLUMNS: Final = NewReference.__struct_fields__
_INSERT: Final = (
    f"insert into reference_images (owner_id, {', '.join(_COLUMNS)}) values ($1, "
    + ", ".join(f"${n}" for n, _ in enumerate(_COLUMNS, start=2))
    + ") on conflict (owner_id, sha256) do nothing returning true"
)
_DOCUMENT: Final = (
    f"select row_to_json(d) from (select {projection('reference_images')} from reference_images t "
    "where t.id = $1 and t.owner_id = $2) d"
)
_DELETE: Final = "delete from reference_images where id = $1 and owner_id = $2 returning size_bytes"


def tidy_filename(name: str | None) -> str:
    """The name of a user's file as it is shown again: without folders and signs that nobody sees. It names nothing of
    ours."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    shown = "".join(sign for sign in last if sign.isprintable()).strip()
    return shown[:MAX_FILENAME_CHARS] or "reference"


async def same_content(connection: Connection, owner: str, sha256: bytes) -> uuid.UUID | None:
    """The reference of `owner` that has these bytes."""
    sql = "select id from reference_images where owner_id = $1 and sha256 = $2"
    found: uuid.UUID | None = await connection.fetchval(sql, owner, sha256)
    return found


async def insert(connection: Connection, owner: str, reference: NewReference) -> bool:
    """Insert one reference; False when the owner has the same bytes already."""
    values = [getattr(reference, name) for name in _COLUMNS]
    return await connection.fetchval(_INSERT, owner, *values) is True


async def document(connection: Connection, owner: str, row_id: uuid.UUID, documents: Documents) -> bytes:
    """The reference's document as this transaction sees it.

    Raises:
        NotFound: the owner has no such reference.
    """
    source = await connection.fetchval(_DOCUMENT, row_id, owner)
    if source is None:
        raise NotFound(_NOT_FOUND)
    return documents.row("reference_images", source).document


async def delete(connection: Connection, owner: str, row_id: uuid.UUID) -> None:
    """Delete a reference for good and count its bytes no more. Its objects go after the commit, see `deletions`.

    Raises:
        NotFound: the owner has no such reference.
    """
    size_bytes = await connection.fetchval(_DELETE, row_id, owner)
    if size_bytes is None:
        raise NotFound(_NOT_FOUND)
    await storage.free(connection, owner, size_bytes)


async def file_of(primary: Primary, key: str) -> FileInfo | None:
    """The reference that a file or a thumbnail of it belongs to; open to nobody but its owner."""
    sql = "select owner_id, false, false from reference_images where object_key = $1 or thumb_key = $1"
    rows = await primary.fetch(sql, named_key(key))
    return FileInfo(*rows[0]) if rows else None
