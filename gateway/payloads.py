"""Bodies of requests: what may be in them, and how much of it.

Unknown fields are refused by name: a misspelt one must not be taken for a wish to leave things as they are.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import BadRequest, TooLarge

__all__ = [
    "ImageChanges",
    "NoFields",
    "PromptChanges",
    "Upload",
    "UploadFields",
    "batch_id",
    "decode_json",
    "delivery_id",
    "generation_id",
    "image_id",
    "prompt_id",
    "read_body",
    "read_json",
    "read_upload",
    "reference_id",
    "template_id",
    "webhook_id",
]

T = TypeVar("T")
MAX_JSON_BYTES: Final = 64 * 1024
_MAX_FIELD_BYTES: Final = 64 * 1024
_BODY_S: Final = 60.0  # longest time for a body to arrive
_PIECE_BYTES: Final = 64 * 1024  # of a file, taken in one turn of the loop
_COPIED_BYTES: Final = 2**20  # in such a turn, in 0.1 ms; a thread costs as much, and 20 MB would take several ms


class ImageChanges(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH of an image: what is left out stays."""

    visibility: str | msgspec.UnsetType = msgspec.UNSET
    starred: bool | msgspec.UnsetType = msgspec.UNSET
    title: str | msgspec.UnsetType | None = msgspec.UNSET


class PromptChanges(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH of a job in the prompt history."""

    hidden: bool


class UploadFields(msgspec.Struct):
    """The text fields beside an uploaded file."""

    prompt: str = ""
    negative_prompt: str | None = None
    model: str = "upload"
    seed: int | None = None
    title: str | None = None
    visibility: str = "unlisted"


class NoFields(msgspec.Struct):
    """Beside a file that comes alone."""


class Upload(NamedTuple, Generic[T]):
    """What came: the bytes, the name that their sender gave them, and the text fields."""

    data: bytes
    filename: str | None
    fields: T


async def read_json(request: web.Request, shape: type[T]) -> T:
    """The request's JSON body as `shape`.

    Raises:
        BadRequest: not JSON, an unknown field, a value of the wrong type; names the field.
        TooLarge: over 64 KiB.
    """
    return decode_json(await read_body(request), shape)


async def read_body(request: web.Request, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of the request's JSON body.

    Raises:
        BadRequest: it does not say that it is JSON, or does not arrive.
        TooLarge: over `max_bytes`.
    """
    if request.content_type != "application/json":
        raise BadRequest("the body must be JSON, with Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise TooLarge(f"the body is over {max_bytes} bytes")
    except web.RequestPayloadError as error:
        raise BadRequest(f"the body cannot be read: {error}") from None
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {_BODY_S:.0f} s") from None
    return bytes(body)


def decode_json(body: bytes, shape: type[T]) -> T:
    """`body` as `shape`.

    Raises:
        BadRequest: not JSON, an unknown field, a value of the wrong type; names the field.
    """
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body is not valid: {error}", field=_field(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _field(message: str) -> str | None:
    """The field that a validation error of msgspec is about: `… unknown field `x`` or `… at `$.x``."""
    _, _, rest = message.partition("`$.")
    if not rest:
        _, _, rest = message.partition("unknown field `")
    return rest.partition("`")[0] or None


async def read_upload(request: web.Request, shape: type[T], *, max_bytes: int) -> Upload[T]:
    """The `file` of a multipart upload and its text fields, as `shape`.

    Raises:
        BadRequest: not multipart, no file, an unknown, repeated or malformed field; names it.
        TooLarge: the file is over `max_bytes`.
    """
    if request.content_type != "multipart/form-data":
        raise BadRequest("the body must be multipart/form-data with a part named `file`")
    if (request.content_length or 0) > max_bytes + 2**20:
        raise TooLarge(f"the body is over the limit of {max_bytes} bytes for a picture")
    try:
        async with asyncio.timeout(_BODY_S):
            file, filename, fields = await _read_parts(request, shape, max_bytes)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {_BODY_S:.0f} s") from None
    if file is None:
        raise BadRequest("there is no part named `file`", field="file")
    return Upload(file, filename, shape(**_values(fields)))


async def _read_parts(
    request: web.Request, shape: type[Any], max_bytes: int
) -> tuple[bytes | None, str | None, dict[str, str]]:
    file: bytes | None = None
    filename: str | None = None
    fields: dict[str, str] = {}
    known = ("file", *shape.__struct_fields__)
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            name: Any = getattr(part, "name", None)
            if name not in known or not isinstance(part, BodyPartReader):
                raise BadRequest(f"unknown field {str(name)[:40]!r}; known are {', '.join(known)}", field=name)
            if name in fields or (name == "file" and file is not None):
                raise BadRequest(f"field {name!r} is given twice", field=name)
            content = await _read_part(part, max_bytes if name == "file" else _MAX_FIELD_BYTES, name)
            if name == "file":
                file, filename = content, part.filename
            else:
                fields[name] = content.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"field {name!r} is not UTF-8", field=name) from None
    except (ValueError, AssertionError, HttpProcessingError, web.HTTPBadRequest, web.RequestPayloadError) as error:
        raise BadRequest(f"the multipart body is malformed: {error}") from None
    return file, filename, fields


async def _read_part(part: BodyPartReader, limit: int, name: str) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await part.read_chunk(_PIECE_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"{name} is over the limit of {limit} bytes", field=name)
        await asyncio.sleep(0)  # what has arrived already would be taken in one turn, and others wait for it
    return await asyncio.to_thread(b"".join, chunks) if size > _COPIED_BYTES else b"".join(chunks)


def _values(fields: dict[str, str]) -> dict[str, Any]:
    values: dict[str, str | int | None] = dict(fields)
    seed = fields.get("seed")
    if seed is not None:
        if not (seed.isascii() and seed.isdigit() and len(seed) <= 10):
            raise BadRequest("seed must be a whole number from 0 to 4294967295", field="seed")
        values["seed"] = int(seed)
    return values


def image_id(request: web.Request) -> uuid.UUID:
    """The `{id}` of the path.

    Raises:
        BadRequest: it is not a UUID.
    """
    return _row_id(request, "an image id")


def reference_id(request: web.Request) -> uuid.UUID:
    """The same of a reference image."""
    return _row_id(request, "a reference's id")


def template_id(request: web.Request) -> uuid.UUID:
    """The same of a template."""
    return _row_id(request, "a template's id")


def generation_id(request: web.Request) -> uuid.UUID:
    """The same of a generation."""
    return _row_id(request, "a generation's id")


def batch_id(request: web.Request) -> uuid.UUID:
    """The same of a batch."""
    return _row_id(request, "a batch's id")


def prompt_id(request: web.Request) -> uuid.UUID:
    """The same of a job in the prompt history."""
    return _row_id(request, "a prompt's id")


def webhook_id(request: web.Request) -> uuid.UUID:
    """The same of a webhook."""
    return _row_id(request, "a webhook's id")


def delivery_id(request: web.Request) -> uuid.UUID:
    """The same of one of its deliveries: the path's `{delivery}`."""
    return _row_id(request, "a delivery's id", "delivery")


def _row_id(request: web.Request, what: str, name: str = "id") -> uuid.UUID:
    text = request.match_info[name]
    try:
        if len(text) != 36:
            raise ValueError
        return uuid.UUID(text)
    except ValueError:
        raise BadRequest(f"{text[:40]!r} is not {what} (a UUID)", field=name) from None
