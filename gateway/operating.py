"""The commands of operators: what runs where, and what to do about it. Each prints a table, or JSON with `--json`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.money_commands import audit_money
from gateway.options import DATA, Data, Json

__all__ = ["add_commands"]

User = Annotated[str, typer.Argument(help="The user's id.")]

epoch = typer.Typer(help="The identity of the primary's history.", no_args_is_help=True)
users = typer.Typer(help="The users: a list, and how to erase one.", invoke_without_command=True)


def add_commands(app: typer.Typer) -> None:
    """Add them to `app`."""
    for command in (replicas, locate, inspect, passivate, reseed, export, audit):
        app.command()(command)
    app.add_typer(users, name="users")
    app.add_typer(epoch, name="epoch")


def replicas(data: Data = DATA, json: Json = False) -> None:
    """The open replicas of every host, the one read last first."""
    _show(
        _ask(data, lambda o: o.replicas()),
        json,
        ("host", "user", "version", "age_s", "idle_s", "kept_bytes", "file_bytes"),
    )


def locate(user: User, data: Data = DATA, json: Json = False) -> None:
    """Which host serves USER, and whether the replica is open there."""
    found = _ask(data, lambda o: o.inspect(user))
    _show(
        [{name: found[name] for name in ("user", "host", "address", "state")}],
        json,
        ("user", "host", "address", "state"),
    )


def inspect(user: User, data: Data = DATA, json: Json = False) -> None:
    """Everything that is known of USER's replica: state, version, age, and how far behind the primary it is."""
    _show_one(_ask(data, lambda o: o.inspect(user)), json)


def passivate(user: User, data: Data = DATA, json: Json = False) -> None:
    """Close USER's replica; its file stays, and the next read opens it."""
    _show_one(_ask(data, lambda o: o.passivate(user)), json)


def reseed(user: User, data: Data = DATA, json: Json = False) -> None:
    """Make USER's replica again from the primary."""
    _show_one(_ask(data, lambda o: o.reseed(user)), json)


def export(
    user: User,
    out: Annotated[Path, typer.Argument(help="A new SQLite file.")],
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Write USER's replica, fresh from the primary at one version, to the file OUT."""
    _show_one(_ask(data, lambda o: o.export(user, out)), json)


def audit(
    user: Annotated[str | None, typer.Option(help="Only this user.")] = None,
    sample: Annotated[int | None, typer.Option(help="Only so many users, taken at random.", min=1)] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make right what differs.")] = False,
    money: Annotated[bool, typer.Option("--money", help="Instead: whether credits and jobs add up.")] = False,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Compare replicas with the primary, row by row, each at one version; with --money, what the primary says of
    credits, jobs and usage with itself. Exit code 1: something is wrong, and was not repaired."""
    if user is not None and sample is not None:
        raise typer.BadParameter("give --user or --sample, not both")
    if money:
        if repair:
            raise typer.BadParameter("--money reports only: a person decides what is right")
        if not audit_money(data, user, sample, json=json):
            raise typer.Exit(1)
        return
    reports = _ask(data, lambda o: _audit_all(o, user, sample, repair=repair))
    if json:
        print(msgspec.json.encode(reports).decode())
    else:
        _show([_audit_row(report) for report in reports], json, ("user", "outcome", "version", "rows", "differ"))
    if any(report["outcome"] in ("differs", "failed") for report in reports):
        raise typer.Exit(1)


async def _audit_all(operators: Any, user: str | None, sample: int | None, *, repair: bool) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    from actors import CallError

    chosen = [user] if user is not None else await operators.users_to_audit(sample)
    reports = []
    for one in track(chosen, "auditing", console=Console(stderr=True), disable=len(chosen) < 2):
        try:
            reports.append(await operators.audit(one, repair=repair))
        except CallError as error:
            reports.append({"user": one, "outcome": "failed", "error": str(error), "kinds": []})
    return reports


def _audit_row(report: dict[str, Any]) -> dict[str, Any]:
    found = []
    for kind in report["kinds"]:
        if kind["differences"]:
            named = (f"{how} {', '.join(kind[how][:3])}" for how in ("missing", "extra", "different") if kind[how])
            found.append(f"{kind['kind']}: {kind['differences']} rows ({'; '.join(named)})")
    rows = sum(kind["primary_rows"] for kind in report["kinds"])
    return {**report, "rows": rows, "differ": "; ".join(found) or report.get("error", "")}


@users.callback()
def list_users(
    context: typer.Context,
    data: Data = DATA,
    json: Json = False,
    after: Annotated[str, typer.Option(help="Start behind this id.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 100,
) -> None:
    """The users, in the order of their ids, with their versions, number of images, plan and balance."""
    if context.invoked_subcommand is not None:
        return
    names = ("user", "version", "images", "plan", "balance_credits", "storage_used_bytes", "created_at")
    _show(_ask(data, lambda o: o.users(after, limit)), json, names)


@users.command("delete")
def delete_user(
    user: User,
    data: Data = DATA,
    json: Json = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase USER for good: rows, image files, keys, replicas. Their tokens end within two seconds, and for a day nobody
    can come under this id again."""
    if not yes:
        typer.confirm(f"erase {user} and all their images, for good?", abort=True, err=True)
    _show_one(_ask(data, lambda o: o.erase(user)), json)


@epoch.command("rotate")
def epoch_rotate(data: Data = DATA, json: Json = False) -> None:
    """Begin a new epoch: after a restore, or after anything that the triggers could not see. Replicas are then made
    again, each when it is next needed."""
    _show_one({"epoch": _ask(data, lambda o: o.rotate_epoch())}, json)


def _ask(data: Path, question: Callable[[Any], Awaitable[Any]]) -> Any:
    """The answer of the running instance on `data`."""
    import uvloop

    async def work() -> Any:
        from actors import CallError, ReplicaClient
        from actors.config import HostSettings
        from gateway.operators import Operators
        from store import hosts
        from store.config import StoreSettings
        from store.documents import Documents
        from store.instance import primary_url
        from store.primary import Primary

        settings = StoreSettings.load(data)
        secret = HostSettings.load(data).wire_secret.get_secret_value().encode() or None
        primary = await Primary.open(primary_url(data, settings), name="operator", size=2, statement_timeout_s=300.0)
        client = ReplicaClient(lambda: hosts.list_hosts(primary), secret=secret)
        try:
            await client.start()
            return await question(Operators(primary, client, Documents(settings.files_base)))
        except CallError as error:
            print(f"peruse: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        finally:
            await client.close()
            await primary.close()

    return uvloop.run(work())


def _show(rows: list[dict[str, Any]], json: bool, names: tuple[str, ...]) -> None:
    if json:
        print(msgspec.json.encode(rows).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in names))
    # As wide as it has to be when it goes into a file: a name that is cut is no name.
    console = Console(width=None if Console().is_terminal else 10_000)
    console.print(table)


def _show_one(row: dict[str, Any], json: bool) -> None:
    if json:
        print(msgspec.json.encode(row).decode())
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        print(f"{name:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    if isinstance(value, float):
        return f"{value:.1f}"
    return "" if value is None else str(value)
