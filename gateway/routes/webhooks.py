"""The caller's webhooks: where they are told of what happens, and how each telling went.

A secret is in the reply that made it and in no other. The list is never longer than one page: a user has ten at most.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.errors import BadRequest
from gateway.payloads import delivery_id, read_json, webhook_id
from gateway.routes.context import GATEWAY, caller, only_parameters, written
from store import webhook_log, webhooks
from store.errors import InvalidQuery
from store.sealing import open_sealer

__all__ = [
    "change",
    "create",
    "delete",
    "get_webhook",
    "list_deliveries",
    "list_webhooks",
    "replay",
    "rotate",
    "test",
]

_NO_STORE: Final = {"Cache-Control": "no-store"}


class NewWebhook(msgspec.Struct, forbid_unknown_fields=True):
    """POST: `events` left out or empty are all of them."""

    url: str
    events: list[str] = []


class Changes(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH: what is left out stays."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    events: list[str] | msgspec.UnsetType = msgspec.UNSET
    state: str | msgspec.UnsetType = msgspec.UNSET


async def list_webhooks(request: web.Request) -> web.Response:
    """GET /api/webhooks."""
    user = (await caller(request)).user
    only_parameters(request)
    found = await webhooks.list_webhooks(request.app[GATEWAY].primary, user)
    return _answer(webhooks=found, next_page_token=None)


async def create(request: web.Request) -> web.Response:
    """POST /api/webhooks: 201 with its secret."""
    user = (await caller(request)).user
    only_parameters(request)
    given = await read_json(request, NewWebhook)
    gateway = request.app[GATEWAY]
    sealer, now_ms = open_sealer(gateway.data), int(time.time() * 1000)
    made, bookmark = await gateway.write(
        user,
        lambda c: webhooks.create(
            c, sealer, user, url=given.url, events=given.events, allow=gateway.webhook_allow, now_ms=now_ms
        ),
    )
    response = written(_body(webhook=made.webhook, secret=made.secret), bookmark, status=201)
    response.headers["Location"] = f"/api/webhooks/{made.webhook.id}"
    return response


async def get_webhook(request: web.Request) -> web.Response:
    """GET /api/webhooks/{id}."""
    user = (await caller(request)).user
    only_parameters(request)
    return _answer(webhook=await webhooks.get(request.app[GATEWAY].primary, user, webhook_id(request)))


async def change(request: web.Request) -> web.Response:
    """PATCH /api/webhooks/{id}: another URL, other events, disabled, or active again."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = webhook_id(request)
    changes = await read_json(request, Changes)
    values = {k: v for k, v in msgspec.structs.asdict(changes).items() if v is not msgspec.UNSET}
    if not values:
        raise BadRequest(f"nothing to change: give one of {', '.join(Changes.__struct_fields__)}")
    gateway = request.app[GATEWAY]
    changed, bookmark = await gateway.write(
        user, lambda c: webhooks.change(c, user, row_id, values, allow=gateway.webhook_allow)
    )
    return written(_body(webhook=changed), bookmark)


async def delete(request: web.Request) -> web.Response:
    """DELETE /api/webhooks/{id}: with its log; what waits is not sent any more."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = webhook_id(request)
    _, bookmark = await request.app[GATEWAY].write(user, lambda c: webhooks.delete(c, user, row_id))
    return written(_body(), bookmark)


async def rotate(request: web.Request) -> web.Response:
    """POST /api/webhooks/{id}/secret: a new secret; the old one signs too for a day."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = webhook_id(request)
    gateway = request.app[GATEWAY]
    sealer = open_sealer(gateway.data)
    made, bookmark = await gateway.write(user, lambda c: webhooks.rotate(c, sealer, user, row_id))
    return written(_body(webhook=made.webhook, secret=made.secret), bookmark)


async def test(request: web.Request) -> web.Response:
    """POST /api/webhooks/{id}/test: a `ping` is on its way."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = webhook_id(request)
    delivery, bookmark = await request.app[GATEWAY].write(user, lambda c: webhook_log.ping(c, user, row_id))
    return written(_body(delivery=delivery), bookmark, status=202)


async def list_deliveries(request: web.Request) -> web.Response:
    """GET /api/webhooks/{id}/deliveries?limit=…&page_token=…&state=…: the newest first."""
    user = (await caller(request)).user
    row_id = webhook_id(request)
    try:
        query = webhook_log.parse_log_query(list(request.query.items()))
    except UnicodeEncodeError:
        raise InvalidQuery("query", "the query string is not valid UTF-8") from None
    page = await webhook_log.deliveries(request.app[GATEWAY].primary, user, row_id, query)
    return _answer(deliveries=page.deliveries, next_page_token=page.next_page_token)


async def replay(request: web.Request) -> web.Response:
    """POST /api/webhooks/{id}/deliveries/{delivery}/replay: the same event again, under its old id."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id, replayed = webhook_id(request), delivery_id(request)
    delivery, bookmark = await request.app[GATEWAY].write(user, lambda c: webhook_log.replay(c, user, row_id, replayed))
    return written(_body(delivery=delivery), bookmark, status=202)


def _body(**values: Any) -> bytes:
    return msgspec.json.encode({"success": True, **values})


def _answer(**values: Any) -> web.Response:
    return web.Response(body=_body(**values), content_type="application/json", charset="utf-8", headers=_NO_STORE)
