"""The command `peruse`. Each command finds the running instance through `--data`."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Callable, Coroutine
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer

from gateway import money_commands
from gateway.objects_commands import objects
from gateway.operating import add_commands
from gateway.options import DATA, Data
from gateway.settings_commands import config
from store.errors import (
    EmbeddedPostgresError,
    InsufficientCredits,
    InvalidValue,
    NotFound,
    PrimaryUnavailable,
    SettingError,
)

__all__ = ["main"]

T = TypeVar("T")

app = typer.Typer(
    help="Galleries that stay fast: one private SQLite replica per user, in front of Postgres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_BIND: Final = "127.0.0.1"


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 it failed, 2 something must be set right first, 130 interrupted."""
    try:
        app()
    except (SettingError, EmbeddedPostgresError, InvalidValue, InsufficientCredits, NotFound) as error:
        _fail(str(error), 2)
    except PrimaryUnavailable as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"peruse: {message}", file=sys.stderr)
    sys.exit(code)


def _run(work: Coroutine[Any, Any, T]) -> T:
    import uvloop

    return uvloop.run(work)


# --- running --------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    data: Data = DATA,
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.", min=0, max=65535)] = 8000,
    bind: Annotated[str, typer.Option("--bind", help="Address to listen on.")] = _BIND,
    hosts: Annotated[
        int | None, typer.Option(help="Replica hosts (processes); half of the cores if left out.", min=0)
    ] = None,
    gateways: Annotated[int, typer.Option(help="Gateway processes on the one port.", min=1, max=64)] = 1,
    workers: Annotated[int, typer.Option(help="Workers (processes) that make pictures.", min=0, max=256)] = 1,
) -> None:
    """Run everything on this machine: Postgres, Ray with its hosts and workers, gateways."""
    from gateway.config import GatewaySettings
    from gateway.supervisor import Supervisor
    from store.config import StoreSettings
    from store.logs import configure

    data = data.resolve()
    settings = StoreSettings.load(data)
    GatewaySettings.load(data)
    _check_generation(data)
    _host_settings(data)
    configure(process="serve", level=settings.log_level)
    console = _Starting()
    supervisor = Supervisor(
        data, host=bind, port=port, hosts=hosts if hosts is not None else max(1, (os.cpu_count() or 2) // 2),
        gateways=gateways, workers=workers, settings=settings, say=console.say,
    )  # fmt: skip

    def ready(url: str) -> None:
        console.done()
        print(f"ready {url}", flush=True)
        option = "" if data == DATA.resolve() else f" --data {data}"
        me = "peruse" if sys.argv[0].endswith(".py") else sys.argv[0]
        print(f"a token: {me} token USER{option}    a gallery: {me} import FILE.tsv --user USER{option}", flush=True)

    # The default loop: Postgres is spawned from this very thread, whose end it follows.
    asyncio.run(supervisor.run(ready))


def _check_generation(data: Path) -> None:
    """Before anything is started: who cannot read the prices, or find the moderation, would end again and again."""
    from actors.config import WorkerSettings
    from store.generation.catalog import Catalog
    from store.generation.config import ProviderSettings
    from store.generation.moderation import read_moderation
    from store.generation.pricing import read_prices

    settings = ProviderSettings.load(data)
    models, prices = read_prices(Path(settings.prices_file) if settings.prices_file else None)
    Catalog(models, prices, with_keys=(), wished=settings.default_model)
    read_moderation(WorkerSettings.load(data).moderation)


class _Starting:
    """One line that says what is being waited for: rewritten on a terminal, printed once each elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, what: str) -> None:
        if self._terminal:
            print(f"\r\x1b[2Kperuse: {what} …", end="", file=sys.stderr, flush=True)
        else:
            print(f"peruse: {what}", file=sys.stderr, flush=True)

    def done(self) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


@app.command()
def gateway(
    data: Data = DATA,
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    bind: Annotated[str, typer.Option("--bind", help="Address to listen on.")] = _BIND,
    fd: Annotated[int, typer.Option(help="A listening socket that was inherited.", hidden=True)] = -1,
    index: Annotated[int, typer.Option(help="Which of several gateways this is.", min=0)] = 0,
) -> None:
    """Run one gateway process, for a cluster. Several may share a port."""
    from gateway.config import GatewaySettings
    from gateway.server import serve_gateway
    from store.config import StoreSettings
    from store.generation.config import ProviderSettings
    from store.instance import primary_url
    from store.logs import configure

    store = StoreSettings.load(data)
    configure(process=f"gateway-{index}", level=store.log_level)
    listening = socket.socket(fileno=fd) if fd >= 0 else None
    secret = _host_settings(data).wire_secret.get_secret_value().encode() or None
    _run(
        serve_gateway(
            data, primary_url=primary_url(data, store), store=store, settings=GatewaySettings.load(data),
            providers=ProviderSettings.load(data), wire_secret=secret, index=index, listening=listening, bind=bind,
            port=port,
        )
    )  # fmt: skip


@app.command()
def hosts(
    data: Data = DATA,
    count: Annotated[int, typer.Option(help="How many replica hosts.", min=1, max=256)] = 1,
    workers: Annotated[int, typer.Option(help="How many workers beside them.", min=0, max=256)] = 0,
) -> None:
    """Run replica hosts under Ray, for a cluster."""
    _keep_cluster(data, "hosts", hosts=count, workers=workers)


@app.command()
def workers(
    data: Data = DATA,
    count: Annotated[int, typer.Option(help="How many workers.", min=1, max=256)] = 1,
) -> None:
    """Run workers, which make pictures, under Ray, for a cluster."""
    _keep_cluster(data, "workers", hosts=0, workers=count)


def _keep_cluster(data: Path, process: str, *, hosts: int, workers: int) -> None:
    from store.config import StoreSettings
    from store.instance import primary_url
    from store.logs import configure

    store = StoreSettings.load(data)
    configure(process=process, level=store.log_level)
    primary_url(data, store)  # without a primary there is nothing to hold
    _check_generation(data)
    from actors.cluster import keep_cluster

    settings = _host_settings(data)
    asyncio.run(keep_cluster(data.resolve(), hosts=hosts, workers=workers, settings=settings, build=_build()))


def _host_settings(data: Path) -> Any:
    from actors.config import HostSettings

    return HostSettings.load(data)


def _build() -> str:
    return package_version("peruse")


@app.command()
def migrate(data: Data = DATA) -> None:
    """Bring the primary's tables and triggers up to date."""
    from store.config import StoreSettings
    from store.instance import primary_url
    from store.migrations import migrate as run

    _run(run(primary_url(data, StoreSettings.load(data))))


@app.command()
def primary(data: Data = DATA) -> None:
    """Print the primary's URL, for psql and other writers."""
    from store.config import StoreSettings
    from store.instance import primary_url

    print(primary_url(data, StoreSettings.load(data)))


# --- credentials ----------------------------------------------------------------------------------------------------


@app.command()
def token(
    user: str,
    data: Data = DATA,
    admin: Annotated[bool, typer.Option("--admin", help="A token for /admin.")] = False,
    service: Annotated[bool, typer.Option("--service", help="A token for /internal: it may act for any user.")] = False,
    ttl: Annotated[str, typer.Option(help="How long it is good for: 90s, 30m, 12h, 1d (the most).")] = "1d",
) -> None:
    """Print a bearer token for USER, and nothing else."""
    from gateway.auth import Signer
    from gateway.config import GatewaySettings

    if admin and service:
        raise SettingError("a token is --admin or --service, not both")
    _existing(data)
    role = "admin" if admin else "service" if service else "user"
    print(Signer(data, GatewaySettings.load(data)).token(user, role=role, ttl_s=_seconds(ttl)))  # type: ignore[arg-type]


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if match is None:
        raise SettingError(f"--ttl {text!r} is not a time like 90s, 30m, 12h or 1d")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def _existing(data: Path) -> None:
    if not data.is_dir():
        raise SettingError(f"there is no data folder {data}: start `peruse serve --data {data}` first")


@app.command()
def key(
    user: str,
    data: Data = DATA,
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="Show the user's keys instead.")] = False,
    revoke: Annotated[str, typer.Option(help="End the key with this id instead.")] = "",
) -> None:
    """Print a new API key for USER, and nothing else. It is shown this once."""
    import uuid

    from store import api_keys

    async def work(primary: Any) -> None:
        if list_:
            for info in await api_keys.list_keys(primary, user):
                state = f"revoked {info.revoked_at:%Y-%m-%d %H:%M}" if info.revoked_at else "valid"
                print(f"{info.id}  {info.hint}…  {info.created_at:%Y-%m-%d %H:%M}  {state}  {info.name}")
        elif revoke:
            try:
                key_id = uuid.UUID(revoke)
            except ValueError:
                raise SettingError(f"{revoke!r} is not a key's id: `peruse key {user} --list` shows them") from None
            await api_keys.revoke_key(primary, user, key_id)
        else:
            print((await api_keys.create_key(primary, user, name=name)).secret)

    _run(_with_primary(data, work))


async def _with_primary(data: Path, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    from store.config import StoreSettings
    from store.instance import primary_url
    from store.primary import Primary

    opened = await Primary.open(primary_url(data, StoreSettings.load(data)), name="command", size=2)
    try:
        return await work(opened)
    finally:
        await opened.close()


# --- content --------------------------------------------------------------------------------------------------------


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Tab-separated, with a column named Prompt.")],
    user: Annotated[str, typer.Option(help="Whose gallery.")],
    data: Data = DATA,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.", min=1)] = None,
    size: Annotated[int, typer.Option(help="Width and height in pixels.", min=64, max=2048)] = 512,
) -> None:
    """Render an image for each prompt of FILE and put it into USER's gallery.

    Run again, it goes on where it stopped and makes nothing twice.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gateway.importing import import_lines, read_lines
    from store.config import StoreSettings
    from store.ids import is_user_id

    if not is_user_id(user):
        raise SettingError(f"--user {user[:40]!r} is not 1 to 128 of A-Z a-z 0-9 . _ @ | : -")
    lines = read_lines(file, user, limit=limit)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr()) as bar:
        task = bar.add_task("importing", total=len(lines))
        try:
            done = asyncio.run(
                import_lines(
                    data.resolve(), user, lines, size=size, settings=StoreSettings.load(data),
                    progress=lambda n: bar.advance(task, n),
                )
            )  # fmt: skip
        except KeyboardInterrupt:
            kept = int(bar.tasks[0].completed)
            bar.stop()
            _fail(f"interrupted: {kept} of {len(lines)} images are in; the same command goes on from there", 130)
    rate = (
        f", {done.made / done.took_s:.1f} images/s, {done.cpu_s / done.made * 1000:.0f} ms CPU each"
        if done.made
        else ""
    )
    there = f" ({done.present} were there already)" if done.present else ""
    print(f"imported {done.made} images for {user}{there} in {done.took_s:.1f} s{rate}")


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


add_commands(app)
money_commands.add_commands(app)
app.add_typer(objects, name="objects")
app.add_typer(config, name="config")

if __name__ == "__main__":
    main()
