"""Templates: prompts with variables, and the parameters that go with them.

`{{name}}` stands for what a request gives. A value is put in as it is: braces in it are no variables.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from store.errors import InvalidValue, LimitReached, NameTaken, NotFound
from store.generation.defaults import check_for, encode_defaults, read_defaults
from store.generation.models import Models
from store.pages import Page
from store.primary import Connection
from store.text import check_text
from store.users import ensure_user

__all__ = [
    "Filled",
    "Template",
    "TemplatePlace",
    "change",
    "create",
    "delete",
    "filled",
    "one",
    "templates_of",
    "variables_of",
]

MAX_TEMPLATES: Final = 200
_MAX_PROMPT_BYTES: Final = 32_000
_MAX_NAME_CHARS: Final = 200
_VARIABLE: Final = re.compile(r"\{\{ *([A-Za-z_][A-Za-z0-9_]{0,63}) *\}\}")
_NOT_FOUND: Final = "Template not found"
_COLUMNS: Final = "id, name, prompt, params, created_at, updated_at"

# $1 owner, $2 the id or null, $3 the name. An id comes before a name that looks like one.
_FIND: Final = """
select id, prompt, params from templates where owner_id = $1 and (id = $2 or name = $3)
order by id = $2 desc nulls last limit 1
"""
# $2 the name that the last page ended with.
_LIST: Final = f"""
select {_COLUMNS} from templates where owner_id = $1 and ($2::text is null or name > $2) order by name limit $3
"""
_INSERT: Final = f"""
insert into templates (owner_id, name, prompt, params) values ($1, $2, $3, $4)
on conflict (owner_id, name) do nothing returning {_COLUMNS}
"""
# Coalesced: what is not said stays.
_CHANGE: Final = f"""
update templates set name = coalesce($3, name), prompt = coalesce($4, prompt), params = coalesce($5::jsonb, params),
  updated_at = clock_timestamp()
where id = $1 and owner_id = $2 returning {_COLUMNS}
"""


class TemplatePlace(msgspec.Struct, frozen=True, array_like=True, tag="templates"):
    """Where a page ended."""

    name: str


class Template(NamedTuple):
    """A template as its owner sees it; `variables` in the order of their first places."""

    id: uuid.UUID
    name: str
    prompt: str
    params: dict[str, Any]
    variables: list[str]
    created_at: datetime
    updated_at: datetime


class Filled(NamedTuple):
    """A template with its variables put in; `params` are fields of a request that the request may override."""

    id: uuid.UUID
    prompt: str
    params: dict[str, Any]


def variables_of(prompt: str) -> list[str]:
    """The variables of a prompt, each once, in the order of their first places."""
    return list(dict.fromkeys(_VARIABLE.findall(prompt)))


async def filled(connection: Connection, user: str, template: str, variables: Mapping[str, str]) -> Filled:
    """The user's template of this id or name, with `variables` put in.

    Raises:
        NotFound: the user has no such template.
        InvalidValue: names the variable that is missing, unknown, or makes the prompt too long.
    """
    check_text("template", template, max_chars=_MAX_NAME_CHARS)
    row = await connection.fetchrow(_FIND, user, _as_id(template), template)
    if row is None:
        raise NotFound(_NOT_FOUND)
    prompt = _fill(row["prompt"], variables)
    return Filled(row["id"], prompt, msgspec.json.decode(row["params"], type=dict[str, Any]))


def _fill(prompt: str, variables: Mapping[str, str]) -> str:
    used = variables_of(prompt)
    for name in used:
        if name not in variables:
            raise InvalidValue(f"variables.{name}", f"the template's variable {name!r} has no value")
    for name, value in variables.items():
        if name not in used:
            known = f"it has {', '.join(used)}" if used else "it has none"
            raise InvalidValue(f"variables.{name[:64]}", f"the template has no variable {name[:64]!r}: {known}")
        check_text(f"variables.{name}", value, max_bytes=_MAX_PROMPT_BYTES)
    # Counted first: a short template can name a long value ten thousand times.
    places = list(_VARIABLE.finditer(prompt))
    rest = len(prompt.encode()) - sum(len(place[0]) for place in places)
    size = rest + sum(len(variables[place[1]].encode()) for place in places)
    if size > _MAX_PROMPT_BYTES:
        raise InvalidValue("variables", f"the prompt would have {size} bytes, the most is {_MAX_PROMPT_BYTES}")
    return _VARIABLE.sub(lambda place: variables[place[1]], prompt)


async def templates_of(connection: Connection, user: str, page: Page[TemplatePlace]) -> tuple[list[Template], bool]:
    """One page of the user's templates, by name, and whether another follows."""
    after = None if page.after is None else page.after.name
    rows = await connection.fetch(_LIST, user, after, page.limit + 1)
    return [_read(row) for row in rows[: page.limit]], len(rows) > page.limit


async def one(connection: Connection, user: str, template_id: uuid.UUID) -> Template:
    """Raises: NotFound when the user has no such template."""
    sql = f"select {_COLUMNS} from templates where id = $1 and owner_id = $2"
    return _read(await connection.fetchrow(sql, template_id, user))


async def create(
    connection: Connection, user: str, models: Models, *, name: str, prompt: str, params: Mapping[str, Any]
) -> Template:
    """A new template.

    Raises:
        InvalidValue: names the field.
        NameTaken: the user has another one of this name.
        LimitReached: the user has as many as may be.
    """
    _check(name, prompt)
    kept = _checked_params(params, models)
    await ensure_user(connection, user)
    # Held until the end: two that come together must not both be the last one.
    await connection.execute("select from accounts where owner_id = $1 for no key update", user)
    if await connection.fetchval("select count(*) from templates where owner_id = $1", user) >= MAX_TEMPLATES:
        raise LimitReached(f"you have {MAX_TEMPLATES} templates, which is the most")
    row = await connection.fetchrow(_INSERT, user, name, prompt, kept)
    if row is None:
        raise NameTaken(_taken(name))
    return _read(row)


async def change(
    connection: Connection, user: str, template_id: uuid.UUID, models: Models, *, name: str | None = None,
    prompt: str | None = None, params: Mapping[str, Any] | None = None,
) -> Template:  # fmt: skip
    """Set what is not None; `params` as a whole.

    Raises:
        InvalidValue: names the field.
        NameTaken: the user has another one of this name.
        NotFound: the user has no such template.
    """
    _check(name, prompt)
    kept = None if params is None else _checked_params(params, models)
    try:
        return _read(await connection.fetchrow(_CHANGE, template_id, user, name, prompt, kept))
    except asyncpg.UniqueViolationError:
        raise NameTaken(_taken(name or "")) from None


async def delete(connection: Connection, user: str, template_id: uuid.UUID) -> None:
    """Raises: NotFound when the user has no such template."""
    sql = "delete from templates where id = $1 and owner_id = $2 returning true"
    if await connection.fetchval(sql, template_id, user) is None:
        raise NotFound(_NOT_FOUND)


def _check(name: str | None, prompt: str | None) -> None:
    if name is not None:
        check_text("name", name, max_chars=_MAX_NAME_CHARS)
        if not name.strip():
            raise InvalidValue("name", "name must not be empty")
    if prompt is not None:
        check_text("prompt", prompt, max_bytes=_MAX_PROMPT_BYTES)
        if not prompt.strip():
            raise InvalidValue("prompt", "prompt must not be empty")
        for piece in _VARIABLE.split(prompt)[::2]:
            _, opened, rest = piece.partition("{{")
            if opened:
                shown = f"{{{{{rest[:20]}"
                raise InvalidValue("prompt", f"{shown!r} is no variable: those are letters, digits and _ in {{{{ }}}}")


def _checked_params(params: Mapping[str, Any], models: Models) -> str:
    defaults = read_defaults(params)
    if defaults.model is not None:
        if defaults.model not in models:
            raise InvalidValue("model", f"there is no model {defaults.model[:80]!r}")
        check_for(models[defaults.model], defaults)
    return encode_defaults(defaults)


def _read(row: Any) -> Template:
    if row is None:
        raise NotFound(_NOT_FOUND)
    params = msgspec.json.decode(row["params"], type=dict[str, Any])
    return Template(
        row["id"], row["name"], row["prompt"], params, variables_of(row["prompt"]), row["created_at"], row["updated_at"]
    )


def _taken(name: str) -> str:
    return f"you have another template named {name[:80]!r}"


def _as_id(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text) if len(text) == 36 else None
    except ValueError:
        return None
