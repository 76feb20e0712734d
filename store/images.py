"""Images in the primary: every write of one, and the look-up of a file.

Each function works inside a transaction of `Primary.write` and names the owner in its WHERE, so that another user's
row is simply not there.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from store.documents import Documents, projection
from store.errors import InvalidValue, NotFound
from store.objects.keys import named_key
from store.primary import Connection, Primary
from store.text import check_text

__all__ = ["FileInfo", "NewImage", "change", "file_of", "insert", "restore", "trash"]

MAX_PROMPT_BYTES: Final = 32_000
MAX_TITLE_CHARS: Final = 200
MAX_MODEL_CHARS: Final = 200


class NewImage(msgspec.Struct, kw_only=True):
    """A row to insert. `created_at` None means now."""

    id: uuid.UUID
    object_key: str
    content_type: str
    size_bytes: int
    width: int
    height: int
    thumb_key: str | None
    thumbhash: str | None
    model: str
    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    generation_params: str = "{}"
    title: str | None = None
    visibility: str = "unlisted"
    job_id: uuid.UUID | None = None
    parent_id: uuid.UUID | None = None
    created_at: datetime | None = None

    def check(self) -> None:
        """Refuse what the primary's constraints would, with the field's name.

        Raises:
            InvalidValue: names the field.
        """
        for name, value in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if value is not None:
                check_text(name, value, max_bytes=MAX_PROMPT_BYTES)
        check_text("model", self.model, max_chars=MAX_MODEL_CHARS)
        if not self.model:
            raise InvalidValue("model", "model must not be empty")
        if self.title is not None:
            check_text("title", self.title, max_chars=MAX_TITLE_CHARS)
        if self.visibility not in ("public", "unlisted"):
            raise InvalidValue("visibility", f"visibility must be public or unlisted, got {self.visibility[:40]!r}")
        if self.seed is not None and not 0 <= self.seed <= 4_294_967_295:
            raise InvalidValue("seed", f"seed must be 0 to 4294967295, got {self.seed}")


_COLUMNS: Final = NewImage.__struct_fields__
_INSERT: Final = (
    f"insert into images (owner_id, {', '.join(_COLUMNS)}) select $1, "
    + ", ".join(
        f"coalesce(${n}::timestamptz, clock_timestamp())" if c == "created_at" else f"${n}"
        for n, c in enumerate(_COLUMNS, start=2)
    )
    + " on conflict (id) do nothing returning true"
)
_DOCUMENT: Final = (
    f"select row_to_json(d) from (select {projection('images')} from images t where t.id = $1 and t.owner_id = $2) d"
)


async def insert(connection: Connection, owner: str, image: NewImage) -> bool:
    """Insert one image; False when its id is already there (the same import again)."""
    image.check()
    values = [getattr(image, name) for name in _COLUMNS]
    return await connection.fetchval(_INSERT, owner, *values) is True


async def document(connection: Connection, owner: str, image_id: uuid.UUID, documents: Documents) -> bytes:
    """The image's document as this transaction sees it.

    Raises:
        NotFound: the owner has no such image.
    """
    source = await connection.fetchval(_DOCUMENT, image_id, owner)
    if source is None:
        raise NotFound("Image not found")
    return documents.row("images", source).document


async def change(connection: Connection, owner: str, image_id: uuid.UUID, values: Mapping[str, Any]) -> None:
    """Set some of `visibility`, `starred`, `title`. Values that are there already make no new version.

    Raises:
        InvalidValue: an unknown column or a value it cannot hold.
        NotFound: the owner has no such image.
    """
    for name, value in values.items():
        _check_change(name, value)
    assignments = ", ".join(f"{name} = ${n}" for n, name in enumerate(values, start=3))
    sql = f"update images set {assignments} where id = $1 and owner_id = $2 returning true"
    if await connection.fetchval(sql, image_id, owner, *values.values()) is None:
        raise NotFound("Image not found")


def _check_change(name: str, value: Any) -> None:
    if name == "visibility" and value in ("public", "unlisted"):
        return
    if name == "starred" and isinstance(value, bool):
        return
    if name == "title" and (value is None or isinstance(value, str)):
        check_text(name, value or "", max_chars=MAX_TITLE_CHARS)
        return
    raise InvalidValue(name, f"{name} cannot be set to {str(value)[:40]!r}")


async def trash(connection: Connection, owner: str, image_id: uuid.UUID) -> None:
    """Move an image to the trash; one that is there already keeps its time.

    Raises:
        NotFound: the owner has no such image.
    """
    await _set_trashed(connection, owner, image_id, "coalesce(trashed_at, clock_timestamp())")


async def restore(connection: Connection, owner: str, image_id: uuid.UUID) -> None:
    """Take an image out of the trash, where it was before.

    Raises:
        NotFound: the owner has no such image.
    """
    await _set_trashed(connection, owner, image_id, "null")


async def _set_trashed(connection: Connection, owner: str, image_id: uuid.UUID, value: str) -> None:
    sql = f"update images set trashed_at = {value} where id = $1 and owner_id = $2 returning true"
    if await connection.fetchval(sql, image_id, owner) is None:
        raise NotFound("Image not found")


class FileInfo(NamedTuple):
    """What decides who may have a file."""

    owner_id: str
    is_public: bool
    is_open: bool  # neither trashed nor waiting for moderation: whoever has the URL may have it


_FILE: Final = """
select owner_id, visibility = 'public', trashed_at is null and moderation = 'approved'
from images where object_key = $1 or thumb_key = $1
"""


async def file_of(primary: Primary, key: str) -> FileInfo | None:
    """The image that a generated file or a thumbnail of it belongs to."""
    rows = await primary.fetch(_FILE, named_key(key))
    return FileInfo(*rows[0]) if rows else None
