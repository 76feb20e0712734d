"""The rule of every list, held once: filters, order, page tokens and the body of a page.

A list is a `ListQuery` of its own, which says what it filters by. A query is compiled once per shape to Postgres text
and to SQLite text from the same SQLAlchemy statement, so the replica and the fallback to the primary cannot disagree
about what is on a page.
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
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Select, Text, bindparam, literal_column, select, tuple_
from sqlalchemy.dialects.postgresql.asyncpg import dialect as postgres_dialect
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.engine import Dialect

from store.documents import projection
from store.errors import InvalidQuery
from store.parameters import DEFAULT_LIMIT
from store.tables import metadata

__all__ = [
    "Compiled",
    "Condition",
    "ListQuery",
    "OneQuery",
    "Position",
    "for_postgres",
    "for_sqlite",
    "one_body",
    "one_from_postgres",
    "page_body",
    "page_token",
    "with_page_token",
]

_EPOCH_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Position(NamedTuple):
    """Where a page ended: creation time in microseconds and the row's id."""

    created_at: int
    id: str


class Condition(NamedTuple):
    """What a row of a list must be like: `column` compared with `value` (None: with null). Times are microseconds."""

    column: str
    operator: Literal["=", "<>", ">=", "<"]
    value: Any


class ListQuery(msgspec.Struct, frozen=True, array_like=True):
    """One page of a user's rows of `kind`. Every other field of a subclass is a filter: it is part of page tokens."""

    kind: ClassVar[str]
    limit: int = DEFAULT_LIMIT
    sort: Literal["newest", "oldest"] = "newest"
    after: Position | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds whose changes make another page of it."""
        return (self.kind,)

    @property
    def name(self) -> str:
        """What replies call the rows."""
        raise NotImplementedError

    def conditions(self) -> list[Condition]:
        """What the rows must be like, besides their place."""
        raise NotImplementedError


class OneQuery(msgspec.Struct, frozen=True, array_like=True):
    """One row of `kind` by its id. `noun` is what it is called when it is not there."""

    kind: ClassVar[str]
    noun: ClassVar[str]
    id: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """As a list's."""
        return (self.kind,)


List = TypeVar("List", bound=ListQuery)

# --- page tokens: base64url of [sort, filter hash, created_at µs, id]; unsigned, for the owner filter always applies


def _filter_hash(query: ListQuery) -> str:
    filters = msgspec.structs.replace(query, limit=DEFAULT_LIMIT, after=None)
    return hashlib.blake2b(msgspec.msgpack.encode(filters), digest_size=6).hexdigest()


def page_token(query: ListQuery, last: Position) -> str:
    """The token of the page after the one that ended at `last`."""
    raw = json.dumps([query.sort, _filter_hash(query), last.created_at, last.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(raw.encode()).rstrip(b"=").decode()


def with_page_token(query: List, token: str | None) -> List:
    """The page of `query` that `token` leads to; None: its first.

    Raises:
        InvalidQuery: not a token, or one of another list.
    """
    return query if token is None else msgspec.structs.replace(query, after=_read_token(token, query))


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


class _Test(NamedTuple):
    """A condition without its value, which is a parameter: `(column, operator, whether it is compared with null)`."""

    column: str
    operator: str
    is_null: bool

    @property
    def parameter(self) -> str:
        return f"{self.column}_{_WORDS[self.operator]}"


class _Shape(NamedTuple):
    """What of a query changes its SQL; the rest are parameters."""

    kind: str
    newest: bool
    after: bool
    tests: tuple[_Test, ...]


class Compiled(NamedTuple):
    """A statement of one dialect, the names of its parameters in order, and the values SQLAlchemy filled in."""

    sql: str
    names: tuple[str, ...]
    filled: Mapping[str, Any]


_WORDS: Final = {"=": "is", "<>": "not", ">=": "from", "<": "below"}


def _test(condition: Condition) -> _Test:
    return _Test(condition.column, condition.operator, condition.value is None)


def _shape(query: ListQuery) -> _Shape:
    tests = tuple(_test(condition) for condition in query.conditions())
    return _Shape(query.kind, query.sort == "newest", query.after is not None, tests)


def _where(column: Any, test: _Test) -> ColumnElement[bool]:
    if test.is_null:
        found: ColumnElement[bool] = column.is_(None) if test.operator == "=" else column.is_not(None)
    else:
        found = column.op(test.operator)(bindparam(test.parameter, type_=column.type))
    return found


def _page(shape: _Shape, source: Any, owner: bool) -> Select[Any]:
    """The statement both dialects share: one row more than the limit, which tells whether a page follows."""
    columns = metadata.tables[shape.kind].c
    created_at, row_id = columns.created_at, columns.id
    statement = select(source.label("source"), created_at, row_id)
    if owner:
        statement = statement.where(columns.owner_id == bindparam("owner"))
    for test in shape.tests:
        statement = statement.where(_where(columns[test.column], test))
    if shape.after:
        here = tuple_(created_at, row_id)
        there = tuple_(bindparam("created_at", type_=created_at.type), bindparam("id", type_=row_id.type))
        statement = statement.where(here < there if shape.newest else here > there)
    order = (created_at.desc(), row_id.desc()) if shape.newest else (created_at, row_id)
    return statement.order_by(*order).limit(bindparam("rows"))


def _compile(statement: Select[Any], dialect: Dialect) -> Compiled:
    compiled = statement.compile(dialect=dialect)
    return Compiled(str(compiled), tuple(compiled.positiontup or ()), compiled.params)


@lru_cache(maxsize=512)
def _sqlite(shape: _Shape) -> Compiled:
    return _compile(_page(shape, literal_column("doc", Text), owner=False), sqlite_dialect())


@lru_cache(maxsize=512)
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
    values = {**compiled.filled, **_values(query), "rows": query.limit + 1}
    return compiled.sql, [values[name] for name in compiled.names]


def for_postgres(query: ListQuery, owner: str) -> tuple[str, list[Any]]:
    """Postgres text and parameters: rows of (epoch, version, source, created_at µs, id).

    There is always a first row; its source is null when the page is empty.
    """
    compiled = _postgres(_shape(query))
    columns = metadata.tables[query.kind].c
    # A parameter is called as its column, or as a test of it.
    given = {name: _for_postgres(columns[column], value) for name, (column, value) in _named(query).items()}
    values = {**compiled.filled, **given, "owner": owner, "rows": query.limit + 1}
    return compiled.sql, [values[name] for name in compiled.names]


def _named(query: ListQuery) -> dict[str, tuple[str, Any]]:
    """Parameter → its column, and its value as a replica has it."""
    named = {_test(c).parameter: (c.column, c.value) for c in query.conditions() if c.value is not None}
    if query.after is not None:
        named["created_at"], named["id"] = ("created_at", query.after.created_at), ("id", query.after.id)
    return named


def _values(query: ListQuery) -> dict[str, Any]:
    return {name: value for name, (_, value) in _named(query).items()}


def _for_postgres(column: Any, value: Any) -> Any:
    """What a replica keeps as microseconds or as text, in the type that the primary's column has."""
    python_type = column.type.python_type
    if python_type is datetime:
        return _EPOCH_START + timedelta(microseconds=value)
    return uuid.UUID(value) if python_type is uuid.UUID else value


@lru_cache
def one_from_postgres(kind: str) -> str:
    """Postgres text for one row with its version, in one snapshot. $1 user, $2 id."""
    return (
        "select sync_epoch_now(), coalesce((select s.version from sync_user s where s.user_id = $1), 0), "
        f"(select row_to_json(d) from (select {projection(kind)} from {kind} t "
        "where t.id = $2 and t.owner_id = $1) d)"
    )


# --- bodies -----------------------------------------------------------------------------------------------------

#: kind → what replies call one of it.
_ONE: Final = {"images": b"image", "reference_images": b"reference", "jobs": b"prompt"}


def page_body(query: ListQuery, rows: Sequence[tuple[bytes, int, str]]) -> bytes:
    """The JSON of a page. `rows` are (document, created_at µs, id) in order, up to one more than the limit."""
    documents = [row[0] for row in rows[: query.limit]]
    if len(rows) > query.limit:
        last = rows[query.limit - 1]
        token = b'"%s"' % page_token(query, Position(last[1], last[2])).encode()
    else:
        token = b"null"
    return b'{"success":true,"%s":[%s],"next_page_token":%s}' % (query.name.encode(), b",".join(documents), token)


def one_body(kind: str, document: bytes) -> bytes:
    """The JSON of one row."""
    return b'{"success":true,"%s":%s}' % (_ONE[kind], document)
