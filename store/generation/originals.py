"""What a request may start from: pictures, references and jobs of the same user. Another's are simply not there."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any, Final, NamedTuple

import msgspec

from store.errors import NotFound
from store.generation.params import JobParams
from store.primary import Connection

__all__ = ["Original", "image_original", "own_pictures", "own_references", "remix_original"]

_JOB: Final = """
select prompt, model, n, watermark, params::text as params from jobs where id = $1 and owner_id = $2
"""
_IMAGE: Final = """
select prompt, model, negative_prompt, width, height, steps, job_id from images where id = $1 and owner_id = $2
"""
#: In the trash or not shown yet, a picture may be a parent and drawn again by its parameters, but not from its pixels.
_PICTURES: Final = """
select count(*) from images
where id = any($1) and owner_id = $2 and (id <> all($3) or (trashed_at is null and moderation = 'approved'))
"""
_REFERENCES: Final = "select count(*) from reference_images where id = any($1) and owner_id = $2"
_STILL_THERE: Final = """
select id from images where id = any($1) and owner_id = $2 and trashed_at is null and moderation = 'approved'
union all select id from reference_images where id = any($1) and owner_id = $2
"""


class Original(NamedTuple):
    """What was drawn: its prompt, its model, and its parameters as fields of a request; `gone` are those fields of
    which something is not there any more."""

    prompt: str
    model: str
    layer: dict[str, Any]
    gone: tuple[str, ...] = ()


async def remix_original(connection: Connection, user: str, row_id: uuid.UUID) -> Original:
    """A job, or a picture and what is known of how it was drawn; without its seed.

    Raises:
        NotFound: the user has neither.
    """
    job = await connection.fetchrow(_JOB, row_id, user)
    if job is not None:
        return await _of_job(connection, user, job)
    image = await _image(connection, user, row_id)
    job = None if image["job_id"] is None else await connection.fetchrow(_JOB, image["job_id"], user)
    made = _of_image(image) if job is None else await _of_job(connection, user, job)
    made.layer["parent"] = row_id
    return made


async def image_original(connection: Connection, user: str, row_id: uuid.UUID) -> Original:
    """A picture by its row.

    Raises:
        NotFound: the user has no such picture.
    """
    return _of_image(await _image(connection, user, row_id))


async def own_pictures(
    connection: Connection, user: str, shown: Collection[uuid.UUID], parents: Collection[uuid.UUID]
) -> None:
    """Raises: NotFound when one of them is not the user's, or is to be shown to a model and cannot be seen itself."""
    ids = {*shown, *parents}
    if ids and await connection.fetchval(_PICTURES, list(ids), user, list(shown)) != len(ids):
        raise NotFound("Image not found")


async def own_references(connection: Connection, user: str, ids: Collection[uuid.UUID]) -> None:
    """Raises: NotFound when one of them is not the user's."""
    if ids and await connection.fetchval(_REFERENCES, list(ids), user) != len(ids):
        raise NotFound("Reference image not found")


async def _image(connection: Connection, user: str, row_id: uuid.UUID) -> Any:
    row = await connection.fetchrow(_IMAGE, row_id, user)
    if row is None:
        raise NotFound("Image not found")
    return row


async def _of_job(connection: Connection, user: str, row: Any) -> Original:
    params = msgspec.json.decode(row["params"], type=JobParams)
    shown = [*params.references, *params.images]
    there = {found["id"] for found in await connection.fetch(_STILL_THERE, shown, user)} if shown else set()
    layer = {
        "width": params.width, "height": params.height, "n": row["n"], "steps": params.steps,
        "negative_prompt": params.negative_prompt, "watermark": row["watermark"], "options": dict(params.options),
        "visibility": params.visibility,
    }  # fmt: skip
    gone = []
    for name, ids in (("references", params.references), ("images", params.images)):
        layer[name] = [row_id for row_id in ids if row_id in there]
        gone += [name] if len(layer[name]) < len(ids) else []
    said = {name: value for name, value in layer.items() if value}
    return Original(row["prompt"], row["model"], said, tuple(gone))


def _of_image(row: Any) -> Original:
    names = ("negative_prompt", "steps", *(("width", "height") if row["width"] and row["height"] else ()))
    return Original(row["prompt"], row["model"], {name: row[name] for name in names if row[name] is not None})
