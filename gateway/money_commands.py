"""The commands about money: `peruse grant`, `peruse plan`, and what `peruse audit --money` does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from gateway.options import DATA, Data, Json
from store.errors import InvalidValue

__all__ = ["add_commands", "audit_money"]

User = Annotated[str, typer.Argument(help="The user's id; an unknown user is made.")]
#: Users that one snapshot is read of.
_BATCH: Final = 200


def add_commands(app: typer.Typer) -> None:
    """Add them to `app`."""
    # An amount to take back begins with a minus, as options do.
    app.command(context_settings={"ignore_unknown_options": True})(grant)
    app.command()(plan)


def grant(
    user: User,
    amount: Annotated[str, typer.Argument(metavar="CREDITS", help="How many; below 0 takes back.")],
    reason: Annotated[str, typer.Option(help="What the user reads beside it.")] = "",
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Add CREDITS to USER's balance, as a line of the ledger that they see with its REASON."""
    from store.credits import tenths_of

    try:
        tenths = tenths_of(Decimal(amount))
    except InvalidOperation:
        raise InvalidValue("credits", f"{amount[:40]!r} is not a number of credits") from None
    line = _ask(data, lambda money: money.grant(user, tenths, reason=reason))[0]
    if json:
        _print_json(line)
    else:
        print(f"{user} has {bytes(line['balance_credits']).decode()} credits")


def plan(
    user: User,
    plan: Annotated[str, typer.Argument(help="free, pro or enterprise.")],
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Set USER's plan: how much they may store, and how soon their generations are drawn."""
    told = _ask(data, lambda money: money.set_plan(user, plan))[0]
    if json:
        _print_json(told)
    else:
        print(f"{user} is on plan {plan}")


def audit_money(data: Path, user: str | None, sample: int | None, *, json: bool) -> bool:
    """Print what does not hold, and how much was looked at; whether all is right."""
    findings, totals = _ask(data, lambda money: _audit_all(money, user, sample))
    if json:
        _print_json({**totals._asdict(), "findings": findings})
    else:
        for finding in findings:
            about = f"{finding['check']} {finding['row']}".strip()
            print(f"{finding['user']}  {about}: {finding['said']}")
        print(f"{totals}: {len(findings) or 'nothing'} wrong")
    return not findings


async def _audit_all(money: Any, user: str | None, sample: int | None) -> tuple[list[dict[str, Any]], Any]:
    from rich.console import Console
    from rich.progress import track

    from store.money_audit import Totals

    chosen = await money.users_to_audit(user, sample)
    starts = range(0, len(chosen), _BATCH)
    findings, totals = [], Totals(0, 0, 0, 0, 0)
    for start in track(starts, "auditing", console=Console(stderr=True), disable=len(starts) < 2):
        found, part = await money.audit(chosen[start : start + _BATCH])
        findings += found
        totals = Totals(*map(sum, zip(totals, part, strict=True)))
    return findings, totals


def _ask(data: Path, question: Callable[[Any], Awaitable[Any]]) -> Any:
    """The answer of the running instance on `data`."""
    import uvloop

    return uvloop.run(_answer(data, question))


async def _answer(data: Path, question: Callable[[Any], Awaitable[Any]]) -> Any:
    from actors import CallError, ReplicaClient
    from actors.config import HostSettings
    from gateway.money import Money
    from store import hosts
    from store.config import StoreSettings
    from store.instance import primary_url
    from store.primary import Primary

    settings = StoreSettings.load(data)
    secret = HostSettings.load(data).wire_secret.get_secret_value().encode() or None
    primary = await Primary.open(primary_url(data, settings), name="money", size=2, statement_timeout_s=300.0)
    client = ReplicaClient(lambda: hosts.list_hosts(primary), secret=secret)

    async def write(user: str, work: Any) -> Any:
        result, bookmark = await primary.write(user, work)
        with suppress(CallError):  # a hint: the host's sweep finds the same
            await client.inspect(user)  # until there is a connection
            client.poke(user, bookmark)
            await asyncio.sleep(0)  # until it is sent
        return result, bookmark

    try:
        await client.start()
        return await question(Money(primary, write))
    finally:
        await client.close()
        await primary.close()


def _print_json(value: Any) -> None:
    print(msgspec.json.encode(value).decode())
