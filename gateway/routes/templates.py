"""The caller's templates: prompts with variables, and the parameters that go with them."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from aiohttp import web

from gateway.errors import BadRequest
from gateway.payloads import read_json, template_id
from gateway.routes.context import GATEWAY, answered, caller, only_parameters, written
from store import templates
from store.epoch import Bookmark
from store.pages import page_token, parse_page
from store.templates import Template, TemplatePlace
from store.text import time_text

__all__ = ["change_template", "create_template", "delete_template", "get_template", "list_templates"]


class NewTemplate(msgspec.Struct, forbid_unknown_fields=True):
    """POST; `params` are fields of a request for a generation."""

    name: str
    prompt: str
    params: dict[str, Any] = {}


class Changes(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH: what is left out stays; `params` are replaced as a whole."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    prompt: str | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


async def list_templates(request: web.Request) -> web.Response:
    """GET /api/templates: by name."""
    user = (await caller(request)).user
    page = parse_page(list(request.query.items()), TemplatePlace)
    async with request.app[GATEWAY].fallback.connection() as connection:
        found, has_more = await templates.templates_of(connection, user, page)
    token = page_token(TemplatePlace(found[-1].name)) if has_more else None
    return answered({"templates": [_told(template) for template in found], "next_page_token": token})


async def create_template(request: web.Request) -> web.Response:
    """POST /api/templates."""
    user = (await caller(request)).user
    only_parameters(request)
    given = await read_json(request, NewTemplate)
    gateway = request.app[GATEWAY]
    made, bookmark = await gateway.write(
        user,
        lambda c: templates.create(
            c, user, gateway.catalog.models, name=given.name, prompt=given.prompt, params=given.params
        ),
    )
    response = _written(made, bookmark, status=201)
    response.headers["Location"] = f"/api/templates/{made.id}"
    return response


async def get_template(request: web.Request) -> web.Response:
    """GET /api/templates/{id}."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = template_id(request)
    async with request.app[GATEWAY].fallback.connection() as connection:
        return answered({"template": _told(await templates.one(connection, user, row_id))})


async def change_template(request: web.Request) -> web.Response:
    """PATCH /api/templates/{id}: name, prompt, params."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = template_id(request)
    given = msgspec.structs.asdict(await read_json(request, Changes))
    values = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    if not values:
        raise BadRequest(f"nothing to change: give one of {', '.join(Changes.__struct_fields__)}")
    gateway = request.app[GATEWAY]
    changed, bookmark = await gateway.write(
        user, lambda c: templates.change(c, user, row_id, gateway.catalog.models, **values)
    )
    return _written(changed, bookmark)


async def delete_template(request: web.Request) -> web.Response:
    """DELETE /api/templates/{id}. Generations that were made with it stay as they are."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id: uuid.UUID = template_id(request)
    _, bookmark = await request.app[GATEWAY].write(user, lambda c: templates.delete(c, user, row_id))
    return written(b'{"success":true}', bookmark)


def _told(template: Template) -> dict[str, Any]:
    times = {"created_at": time_text(template.created_at), "updated_at": time_text(template.updated_at)}
    return {**template._asdict(), **times}


def _written(template: Template, bookmark: Bookmark, *, status: int = 200) -> web.Response:
    return written(msgspec.json.encode({"success": True, "template": _told(template)}), bookmark, status=status)
