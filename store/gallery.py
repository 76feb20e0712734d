"""The rule of the lists, held once, for images and references: filters, order, page tokens and the body of a page.

A query is compiled once per shape to Postgres text and to SQLite text from the same SQLAlchemy statement, so the
replica and the fallback to the primary cannot disagree about what is on a page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal, NamedTuple

import msgspec
from sqlalchemy import Select, Text, bindparam, literal_column, select, tuple_
from sqlalchemy.dialects.postgresql.asyncpg import dialect as postgres_dialect
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.engine import Dialect

from store.documents import projection
from store.errors import InvalidQuery
from store.tables import metadata

__all__ = [
    "Compiled",
    "GalleryQuery",
    "ImageQuery",
    "ListQuery",
    "Position",
    "Query",
    "ReferenceQuery",
    "ReferencesQuery",
    "decode_query",
    "encode_query",
    "for_postgres",
    "for_sqlite",
    "one_body",
    "one_from_postgres",
    "page_body",
    "parse_gallery_query",
    "parse_references_query",
    "query_hash",
]

MAX_LIMIT: Final = 200
DEFAULT_LIMIT: Final = 50
MAX_FILTER_CHARS: Final = 200

_EPOCH_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Position(NamedTuple):
    """Where a page ended: creation time in microseconds and the row's id."""

    created_at: int
    id: str


class GalleryQuery(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One page of a user's images."""

    kind: ClassVar[str] = "images"
    limit: int = DEFAULT_LIMIT
    sort: Literal["newest", "oldest"] = "newest"
    after: Position | None = None
    model: str | None = None
    visibility: Literal["public", "unlisted"] | None = None
    starred: bool | None = None
    trashed: bool = False


class ImageQuery(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """One image by its id, in the trash or not."""

    kind: ClassVar[str] = "images"
    id: str


class ReferencesQuery(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """One page of a user's reference images."""

    kind: ClassVar[str] = "reference_images"
    limit: int = DEFAULT_LIMIT
    sort: Literal["newest", "oldest"] = "newest"
    after: Position | None = None


class ReferenceQuery(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """One reference image by its id."""

    kind: ClassVar[str] = "reference_images"
    id: str


ListQuery = GalleryQuery | ReferencesQuery
Query = ListQuery | ImageQuery | ReferenceQuery

#: kind → what replies call a page of it, and one of it.
_NAMES: Final = {"images": (b"images", b"image"), "reference_images": (b"references", b"reference")}

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Query] = msgspec.msgpack.Decoder(Query)


def encode_query(query: Query) -> bytes:
    """The query's canonical bytes: equal queries have equal bytes, on every host."""
    return _encoder.encode(query)


@lru_cache(maxsize=4096)
def decode_query(encoded: bytes) -> Query:
    """The query that `encode_query` made bytes of.

    Raises:
        msgspec.ValidationError: not such bytes.
    """
    return _decoder.decode(encoded)


def query_hash(encoded: bytes, fingerprint: int) -> str:
    """12 hex digits for ETags: the query, and what its documents look like."""
    return hashlib.blake2b(encoded, digest_size=6, salt=fingerprint.to_bytes(8, "big")).hexdigest()


# --- from a URL -------------------------------------------------------------------------------------------------


def parse_gallery_query(parameters: Mapping[str, str] | Sequence[tuple[str, str]]) -> GalleryQuery:
    """The query that a URL's parameters ask for.

    Raises:
        InvalidQuery: an unknown or repeated parameter, or a value out of its range; names the parameter.
    """
    values = _known(parameters, _PARAMETERS)
    query = GalleryQuery(
        limit=_limit(values.get("limit")),
        sort=_choice(values, "sort", ("newest", "oldest")) or "newest",  # type: ignore[arg-type]
        model=_text(values, "model"),
        visibility=_choice(values, "visibility", ("public", "unlisted")),  # type: ignore[arg-type]
        starred=_flag(values, "starred"),
        trashed=_flag(values, "trashed") or False,
    )
    token = values.get("page_token")
    return query if token is None else msgspec.structs.replace(query, after=_read_token(token, query))


def parse_references_query(parameters: Mapping[str, str] | Sequence[tuple[str, str]]) -> ReferencesQuery:
    """As `parse_gallery_query`, of references.

    Raises:
        InvalidQuery: names the parameter.
    """
    values = _known(parameters, ("limit", "page_token", "sort"))
    query = ReferencesQuery(
        limit=_limit(values.get("limit")),
        sort=_choice(values, "sort", ("newest", "oldest")) or "newest",  # type: ignore[arg-type]
    )
    token = values.get("page_token")
    return query if token is None else msgspec.structs.replace(query, after=_read_token(token, query))


_PARAMETERS: Final = ("limit", "page_token", "sort", "model", "visibility", "starred", "trashed")


def _known(parameters: Mapping[str, str] | Sequence[tuple[str, str]], names: tuple[str, ...]) -> dict[str, str]:
    pairs = list(parameters.items()) if isinstance(parameters, Mapping) else list(parameters)
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            raise InvalidQuery(name, f"unknown query parameter {name!r}; known are {', '.join(names)}")
        if name in values:
            raise InvalidQuery(name, f"query parameter {name!r} is given twice")
        values[name] = value
    return values


def _limit(value: str | None) -> int:
    if value is None:
        return DEFAULT_LIMIT
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= MAX_LIMIT):
        raise InvalidQuery("limit", f"limit must be a whole number from 1 to {MAX_LIMIT}, got {value[:20]!r}")
    return int(value)


def _choice(values: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    value = values.get(name)
    if value is not None and value not in choices:
        raise InvalidQuery(name, f"{name} must be one of {', '.join(choices)}, got {value[:40]!r}")
    return value


def _text(values: Mapping[str, str], name: str) -> str | None:
    value = values.get(name)
    if value is not None and not (0 < len(value) <= MAX_FILTER_CHARS and "\0" not in value):
        raise InvalidQuery(name, f"{name} must have 1 to {MAX_FILTER_CHARS} characters and no NUL")
    if value is not None and any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidQuery(name, f"{name} is not valid Unicode")
    return value


def _flag(values: Mapping[str, str], name: str) -> bool | None:
    value = _choice(values, name, ("true", "false", "1", "0"))
    return None if value is None else value in ("true", "1")


# --- page tokens: base64url of [sort, filter hash, created_at µs, id]; unsigned, for the owner filter always applies


def _filter_hash(query: ListQuery) -> str:
    filters = msgspec.structs.replace(query, limit=DEFAULT_LIMIT, after=None)
    return hashlib.blake2b(encode_query(filters), digest_size=6).hexdigest()


def page_token(query: ListQuery, last: Position) -> str:
    """The token of the page after the one that ended at `last`."""
    raw = json.dumps([query.sort, _filter_hash(query), last.created_at, last.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(raw.encode()).rstrip(b"=").decode()


def _read_token(token: str, query: ListQuery) -> Position:
    wrong = InvalidQuery("page_token", "page_token is not one that a list of ours gave out")
    if len(token) > 256 or not token.isascii():
        raise wrong
    try:
        parts = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        sort, filters, created_at, row_id = parts
        row_id = str(uuid.UUID(row_id))
    except (binascii.Error, ValueError, TypeError, AttributeError, RecursionError):
        raise wrong from None
    if type(created_at) is not int or not 0 <= created_at < 253_402_300_800_000_000:
        raise wrong
    if sort != query.sort or filters != _filter_hash(query):
        raise InvalidQuery("page_token", "page_token belongs to a list with another sort or other filters")
    return Position(created_at, row_id)


# --- SQL --------------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """What of a query changes its SQL; the rest are parameters. `trashed` None: the kind knows no trash."""

    kind: str
    newest: bool
    after: bool
    filters: tuple[str, ...] = ()
    trashed: bool | None = None


class Compiled(NamedTuple):
    """A statement of one dialect, the names of its parameters in order, and the values SQLAlchemy filled in."""

    sql: str
    names: tuple[str, ...]
    filled: Mapping[str, Any]


_FILTERS: Final = ("model", "visibility", "starred")


def _shape(query: ListQuery) -> _Shape:
    newest, after = query.sort == "newest", query.after is not None
    if isinstance(query, ReferencesQuery):
        return _Shape(query.kind, newest, after)
    given = tuple(name for name in _FILTERS if getattr(query, name) is not None)
    return _Shape(query.kind, newest, after, given, query.trashed)


def _page(shape: _Shape, source: Any, owner: bool) -> Select[Any]:
    """The statement both dialects share: one row more than the limit, which tells whether a page follows."""
    columns = metadata.tables[shape.kind].c
    created_at, row_id = columns.created_at, columns.id
    statement = select(source.label("source"), created_at, row_id)
    if owner:
        statement = statement.where(columns.owner_id == bindparam("owner"))
    if shape.trashed is not None:
        trashed_at = columns.trashed_at
        statement = statement.where(trashed_at.is_not(None) if shape.trashed else trashed_at.is_(None))
    for name in shape.filters:
        statement = statement.where(columns[name] == bindparam(name))
    if shape.after:
        here = tuple_(created_at, row_id)
        there = tuple_(bindparam("created_at", type_=created_at.type), bindparam("id", type_=row_id.type))
        statement = statement.where(here < there if shape.newest else here > there)
    order = (created_at.desc(), row_id.desc()) if shape.newest else (created_at, row_id)
    return statement.order_by(*order).limit(bindparam("rows"))


def _compile(statement: Select[Any], dialect: Dialect) -> Compiled:
    compiled = statement.compile(dialect=dialect)
    return Compiled(str(compiled), tuple(compiled.positiontup or ()), compiled.params)


@lru_cache(maxsize=128)
def _sqlite(shape: _Shape) -> Compiled:
    return _compile(_page(shape, literal_column("doc", Text), owner=False), sqlite_dialect())


@lru_cache(maxsize=128)
def _postgres(shape: _Shape) -> Compiled:
    source = literal_column(f"(select row_to_json(d) from (select {projection(shape.kind, shape.kind)}) d)", Text)
    page = _compile(_page(shape, source, owner=True), postgres_dialect())  # type: ignore[no-untyped-call]
    direction = " desc" if shape.newest else ""
    owner = f"${page.names.index('owner') + 1}"
    # The head and the page in one statement: one snapshot, so the version named is exactly the page's.
    sql = (
        "select h.epoch, h.version, p.source, (extract(epoch from p.created_at) * 1000000)::bigint, p.id::text "
        "from (select sync_epoch_now() as epoch, coalesce("
        f"(select s.version from sync_user s where s.user_id = {owner}), 0) as version) h "
        f"left join lateral ({page.sql}) p on true order by p.created_at{direction}, p.id{direction}"
    )
    return page._replace(sql=sql)


def for_sqlite(query: ListQuery) -> tuple[str, list[Any]]:
    """SQLite text and parameters: rows of (doc, created_at µs, id), one more than the limit."""
    compiled = _sqlite(_shape(query))
    values = {**compiled.filled, **_values(query)}
    return compiled.sql, [values[name] for name in compiled.names]


def for_postgres(query: ListQuery, owner: str) -> tuple[str, list[Any]]:
    """Postgres text and parameters: rows of (epoch, version, source, created_at µs, id).

    There is always a first row; its source is null when the page is empty.
    """
    compiled = _postgres(_shape(query))
    values = {**compiled.filled, **_values(query), "owner": owner}
    if query.after is not None:
        values["created_at"] = _EPOCH_START + timedelta(microseconds=query.after.created_at)
        values["id"] = uuid.UUID(query.after.id)
    return compiled.sql, [values[name] for name in compiled.names]


def _values(query: ListQuery) -> dict[str, Any]:
    values: dict[str, Any] = {"rows": query.limit + 1}
    if isinstance(query, GalleryQuery):
        values |= {name: getattr(query, name) for name in _FILTERS}
    if query.after is not None:
        values["created_at"], values["id"] = query.after
    return values


@lru_cache
def one_from_postgres(kind: str) -> str:
    """Postgres text for one row with its version, in one snapshot. $1 user, $2 id."""
    return (
        "select sync_epoch_now(), coalesce((select s.version from sync_user s where s.user_id = $1), 0), "
        f"(select row_to_json(d) from (select {projection(kind)} from {kind} t "
        "where t.id = $2 and t.owner_id = $1) d)"
    )


# --- bodies -----------------------------------------------------------------------------------------------------


def page_body(query: ListQuery, rows: Sequence[tuple[bytes, int, str]]) -> bytes:
    """The JSON of a page. `rows` are (document, created_at µs, id) in order, up to one more than the limit."""
    documents = [row[0] for row in rows[: query.limit]]
    if len(rows) > query.limit:
        last = rows[query.limit - 1]
        token = b'"%s"' % page_token(query, Position(last[1], last[2])).encode()
    else:
        token = b"null"
    return b'{"success":true,"%s":[%s],"next_page_token":%s}' % (_NAMES[query.kind][0], b",".join(documents), token)


def one_body(kind: str, document: bytes) -> bytes:
    """The JSON of one row."""
    return b'{"success":true,"%s":%s}' % (_NAMES[kind][1], document)
