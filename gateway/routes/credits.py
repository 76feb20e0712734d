"""Credits: the caller's ledger and budgets; for admins, anybody's ledger, grants and plan."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import structlog
from aiohttp import web

from gateway.auth import Identity, need
from gateway.errors import BadRequest
from gateway.money import Money, ledger_page
from gateway.payloads import read_json
from gateway.routes.context import GATEWAY, answered, caller, only_parameters, written
from store import accounts
from store.credits import LedgerPlace, tenths_of
from store.pages import parse_page
from store.primary import Connection

__all__ = ["change_account", "grant", "ledger", "set_plan", "user_ledger"]

log = structlog.get_logger()


class Budgets(msgspec.Struct, forbid_unknown_fields=True):
    """PATCH of an account: what is left out stays, null ends a budget."""

    day_budget_credits: Decimal | msgspec.UnsetType | None = msgspec.UNSET
    month_budget_credits: Decimal | msgspec.UnsetType | None = msgspec.UNSET


class Grant(msgspec.Struct, forbid_unknown_fields=True):
    """Credits to add, or to take back when below 0."""

    credits: Decimal
    reason: str = ""


class PlanWish(msgspec.Struct, forbid_unknown_fields=True):
    """The plan to be on."""

    plan: str


async def change_account(request: web.Request) -> web.Response:
    """PATCH /api/account: the caller's budgets."""
    user = (await caller(request)).user
    only_parameters(request)
    given = msgspec.structs.asdict(await read_json(request, Budgets))
    budgets = {
        name: None if amount is None else tenths_of(amount, field=name)
        for name, amount in given.items()
        if amount is not msgspec.UNSET
    }
    if not budgets:
        raise BadRequest(f"nothing to change: give one of {', '.join(accounts.BUDGETS)}")
    gateway = request.app[GATEWAY]

    async def transaction(connection: Connection) -> bytes:
        await accounts.set_budgets(connection, user, budgets)
        return await accounts.document(connection, user, gateway.documents)

    document, bookmark = await gateway.write(user, transaction)
    return written(b'{"success":true,"account":%s}' % document, bookmark)


async def ledger(request: web.Request) -> web.Response:
    """GET /api/account/ledger: the caller's lines, newest first."""
    user = (await caller(request)).user
    page = parse_page(list(request.query.items()), LedgerPlace)
    return answered(await ledger_page(request.app[GATEWAY].fallback, user, page))


async def grant(request: web.Request) -> web.Response:
    """POST /admin/users/{user}/credits: add credits, or take them back; an unknown user is made."""
    admin = await _admin(request)
    only_parameters(request)
    user, given = request.match_info["user"], await read_json(request, Grant)
    tenths = tenths_of(given.credits)
    line, bookmark = await _money(request).grant(user, tenths, reason=given.reason)
    log.info("credits.granted", user=user, tenths=tenths, line=line["id"], by=admin.user)
    return written(_body(line=line), bookmark, status=201)


async def set_plan(request: web.Request) -> web.Response:
    """PUT /admin/users/{user}/plan; an unknown user is made."""
    admin = await _admin(request)
    only_parameters(request)
    user, given = request.match_info["user"], await read_json(request, PlanWish)
    told, bookmark = await _money(request).set_plan(user, given.plan)
    log.info("plan.set", user=user, plan=given.plan, by=admin.user)
    return written(_body(**told), bookmark)


async def user_ledger(request: web.Request) -> web.Response:
    """GET /admin/users/{user}/ledger."""
    await _admin(request)
    page = parse_page(list(request.query.items()), LedgerPlace)
    return answered(await _money(request).ledger(request.match_info["user"], page))


async def _admin(request: web.Request) -> Identity:
    return need(await request.app[GATEWAY].auth.identify(request.headers.get("Authorization")), "admin")


def _money(request: web.Request) -> Money:
    gateway = request.app[GATEWAY]
    return Money(gateway.primary, gateway.write)


def _body(**members: Any) -> bytes:
    return msgspec.json.encode({"success": True, **members})
