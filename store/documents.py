"""Documents: what clients are given for a row, as JSON bytes.

One function makes them, from one shape of row (`row_to_json` of the projection below), for replicas and for the
fallback to the primary alike. So the bytes are the same, and a client cannot tell where an answer came from.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from store.credits import as_json
from store.tables import REPLICATED, TIME_COLUMNS
from store.text import exact

__all__ = ["FILTERS", "Documents", "Row", "projection"]

_EPOCH_START: Final = datetime(1970, 1, 1)  # of UTC; naive, as its text is made several times as fast

#: kind → columns that a replica keeps beside the document, named as in the primary. Times are microseconds.
FILTERS: Final[dict[str, tuple[str, ...]]] = {
    "images": ("visibility", "model", "starred", "trashed_at", "created_at"),
    "reference_images": ("created_at",),
    "jobs": ("state", "model", "kind", "batch_id", "hidden_at", "created_at"),
    "accounts": (),
    "usage_daily": ("day",),
}


def projection(kind: str, table: str = "t") -> str:
    """SQL that selects the replicated columns of one row of `kind`, times as whole microseconds."""
    return ", ".join(
        f"(extract(epoch from {table}.{c}) * 1000000)::bigint as {c}" if c in TIME_COLUMNS else f"{table}.{c}"
        for c in REPLICATED[kind]
    )


class Row(NamedTuple):
    """A row as a replica keeps it: key, filter columns in the order of `FILTERS`, document."""

    id: str
    filters: tuple[Any, ...]
    document: bytes


class _ImageRow(msgspec.Struct):
    id: str
    object_key: str
    thumb_key: str | None
    thumbhash: str | None
    content_type: str
    size_bytes: int
    width: int | None
    height: int | None
    prompt: str
    negative_prompt: str | None
    model: str
    seed: int | None
    steps: int | None
    generation_params: msgspec.Raw
    job_id: str | None
    parent_id: str | None
    visibility: str
    starred: bool
    title: str | None
    moderation: str
    trashed_at: int | None
    created_at: int


class _ImageDocument(msgspec.Struct):
    id: str
    url: str
    thumb_url: str | None
    thumbhash: str | None
    filename: str
    content_type: str
    size_bytes: int
    width: int | None
    height: int | None
    prompt: str
    negative_prompt: str | None
    model: str
    seed: int | None
    steps: int | None
    generation_params: msgspec.Raw
    job_id: str | None
    parent_id: str | None
    visibility: str
    starred: bool
    title: str | None
    moderation: str
    trashed_at: str | None
    created_at: str


class _ReferenceRow(msgspec.Struct):
    id: str
    object_key: str
    thumb_key: str | None
    thumbhash: str | None
    content_type: str
    size_bytes: int
    width: int | None
    height: int | None
    filename: str
    created_at: int


class _ReferenceDocument(msgspec.Struct):
    id: str
    url: str
    thumb_url: str | None
    thumbhash: str | None
    filename: str
    content_type: str
    size_bytes: int
    width: int | None
    height: int | None
    created_at: str


class _JobRow(msgspec.Struct):
    id: str
    kind: str
    prompt: str
    params: msgspec.Raw
    image_size: str
    watermark: str | None
    n: int
    provider: str
    model: str
    own_key: bool
    state: str
    price_tenths: int
    refunded_tenths: int
    cost_usd: Decimal
    duration_ms: int | None
    error_code: str | None
    error_message: str | None
    image_ids: list[str]
    batch_id: str | None
    hidden_at: int | None
    created_at: int
    updated_at: int


class _JobError(msgspec.Struct):
    code: str
    message: str


class _JobDocument(msgspec.Struct):
    id: str
    kind: str
    prompt: str
    params: msgspec.Raw
    image_size: str
    watermark: str | None
    n: int
    provider: str
    model: str
    own_key: bool
    state: str
    cost_credits: msgspec.Raw
    refunded_credits: msgspec.Raw
    cost_usd: msgspec.Raw
    duration_ms: int | None
    error: _JobError | None
    image_ids: list[str]
    batch_id: str | None
    hidden_at: str | None
    created_at: str
    updated_at: str


class _AccountRow(msgspec.Struct):
    owner_id: str
    plan: str
    balance_tenths: int
    held_tenths: int
    storage_used_bytes: int
    day_budget_tenths: int | None
    month_budget_tenths: int | None
    updated_at: int


class _AccountDocument(msgspec.Struct):
    plan: str
    balance_credits: msgspec.Raw
    held_credits: msgspec.Raw
    storage_used_bytes: int
    day_budget_credits: msgspec.Raw | None
    month_budget_credits: msgspec.Raw | None
    updated_at: str


class _UsageRow(msgspec.Struct):
    id: str
    day: str
    generations_count: int
    generations_success: int
    generations_failed: int
    generations_canceled: int
    images_count: int
    credits_used_tenths: int
    cost_usd: Decimal
    duration_ms: int
    model_usage: dict[str, int]
    storage_used_bytes: int


class _UsageDocument(msgspec.Struct):
    day: str
    generations_count: int
    generations_success: int
    generations_failed: int
    generations_canceled: int
    images_count: int
    credits_used: msgspec.Raw
    cost_usd: msgspec.Raw
    duration_ms: int
    model_usage: dict[str, int]
    storage_used_bytes: int


_decode_image = msgspec.json.Decoder(_ImageRow).decode
_decode_reference = msgspec.json.Decoder(_ReferenceRow).decode
_decode_job = msgspec.json.Decoder(_JobRow).decode
_decode_account = msgspec.json.Decoder(_AccountRow).decode
_decode_usage = msgspec.json.Decoder(_UsageRow).decode
_encode = msgspec.json.Encoder().encode


class Documents:
    """Turns rows into documents for one deployment.

    `files_base` goes before `/files/{key}` in URLs: empty for the gateway's own, or an absolute URL without a
    trailing slash when a public or CDN base is set.
    """

    def __init__(self, files_base: str = "") -> None:
        self._files = f"{files_base.rstrip('/')}/files/"
        self._makers = {
            "images": self._image,
            "reference_images": self._reference,
            "jobs": _job,
            "accounts": _account,
            "usage_daily": _usage,
        }
        #: 31 bits that differ when the documents of the same rows would: a replica made under another is rebuilt.
        self.fingerprint = _fingerprint(self._files)

    def row(self, kind: str, source: str | bytes) -> Row:
        """The replica's row for `source`, the `row_to_json` text of the kind's projection.

        Raises:
            KeyError: `kind` is not replicated.
            msgspec.ValidationError: `source` is not such a row.
        """
        return self._makers[kind](source)

    def _image(self, source: str | bytes) -> Row:
        r = _decode_image(source)
        document = _ImageDocument(
            r.id, self._files + r.object_key, self._url(r.thumb_key), r.thumbhash, _filename(r.object_key),
            r.content_type, r.size_bytes, r.width, r.height, r.prompt, r.negative_prompt, r.model, r.seed, r.steps,
            r.generation_params, r.job_id, r.parent_id, r.visibility, r.starred, r.title, r.moderation,
            _time(r.trashed_at), _time_of(r.created_at),
        )  # fmt: skip
        filters = (r.visibility, r.model, r.starred, r.trashed_at, r.created_at)
        return Row(r.id, filters, _encode(document))

    def _reference(self, source: str | bytes) -> Row:
        r = _decode_reference(source)
        document = _ReferenceDocument(
            r.id, self._files + r.object_key, self._url(r.thumb_key), r.thumbhash, r.filename, r.content_type,
            r.size_bytes, r.width, r.height, _time_of(r.created_at),
        )  # fmt: skip
        return Row(r.id, (r.created_at,), _encode(document))

    def _url(self, key: str | None) -> str | None:
        return None if key is None else self._files + key


def _job(source: str | bytes) -> Row:
    r = _decode_job(source)
    error = None if r.error_code is None else _JobError(r.error_code, r.error_message or "")
    document = _JobDocument(
        r.id, r.kind, r.prompt, r.params, r.image_size, r.watermark, r.n, r.provider, r.model, r.own_key, r.state,
        as_json(r.price_tenths - r.refunded_tenths), as_json(r.refunded_tenths), exact(r.cost_usd),
        r.duration_ms, error, r.image_ids, r.batch_id, _time(r.hidden_at), _time_of(r.created_at),
        _time_of(r.updated_at),
    )  # fmt: skip
    filters = (r.state, r.model, r.kind, r.batch_id, r.hidden_at, r.created_at)
    return Row(r.id, filters, _encode(document))


def _account(source: str | bytes) -> Row:
    r = _decode_account(source)
    document = _AccountDocument(
        r.plan,
        as_json(r.balance_tenths),
        as_json(r.held_tenths),
        r.storage_used_bytes,
        None if r.day_budget_tenths is None else as_json(r.day_budget_tenths),
        None if r.month_budget_tenths is None else as_json(r.month_budget_tenths),
        _time_of(r.updated_at),
    )
    return Row(r.owner_id, (), _encode(document))


def _usage(source: str | bytes) -> Row:
    r = _decode_usage(source)
    document = _UsageDocument(
        r.day, r.generations_count, r.generations_success, r.generations_failed, r.generations_canceled,
        r.images_count, as_json(r.credits_used_tenths), exact(r.cost_usd), r.duration_ms, r.model_usage,
        r.storage_used_bytes,
    )  # fmt: skip
    return Row(r.id, (r.day,), _encode(document))


def _filename(key: str) -> str:
    return key.rpartition("/")[2]


def _time_of(microseconds: int) -> str:
    """RFC 3339 in UTC with six digits."""
    return (_EPOCH_START + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds") + "Z"


def _time(microseconds: int | None) -> str | None:
    return None if microseconds is None else _time_of(microseconds)


def _fingerprint(files: str) -> int:
    documents = (_ImageDocument, _ReferenceDocument, _JobDocument, _AccountDocument, _UsageDocument)
    shapes = [struct.__struct_fields__ for struct in documents]
    text = repr((files, shapes, REPLICATED, FILTERS))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
