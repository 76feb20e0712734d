"""`peruse objects`: do rows and objects agree, and moving objects from one store to another."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.options import DATA, Data, Json
from store.errors import ObjectError, SettingError

if TYPE_CHECKING:
    from rich.progress import Progress

    from store.config import StoreSettings
    from store.objects.copying import Copied
    from store.objects.interface import Objects
    from store.objects.reconcile import Finding, Report

__all__ = ["objects", "open_place"]

_PLACE: Final = re.compile(r"local:(?P<path>.+)|s3:(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(@(?P<endpoint>.+))?")
#: Keys that are told one by one; of more only how many there are.
_MAX_TOLD: Final = 1000

objects = typer.Typer(help="The bytes of images: check them, move them.", no_args_is_help=True)


@objects.command()
def check(
    repair: Annotated[bool, typer.Option("--repair", help="Make right what can be.")] = False,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Compare all rows with all objects. Exit code 1: something is wrong, and was not repaired.

    --repair deletes objects that no row refers to and that are older than an hour, and makes missing thumbnails again.
    A missing picture is not repaired: bring it back from a backup, or delete the image.
    """
    told: list[Finding] = []

    def found(finding: Finding) -> None:
        if len(told) < _MAX_TOLD:
            told.append(finding)

    with _bar() as bar:
        task = bar.add_task("checking", total=None)
        report = _run(_check(data, repair=repair, found=found, progress=lambda n, total: _advance(bar, task, n, total)))
    if json:
        _print_json({"good": report.is_good, **_fields(report), "findings": told})
    else:
        for finding in told:
            print(f"{finding.kind:<8} {finding.key}  {finding.repaired}".rstrip())
        if report.orphans + report.missing > len(told):
            print(f"… and {report.orphans + report.missing - len(told)} more")
        print(
            f"{report.rows} keys in rows, {report.objects} objects: {report.orphans} orphans "
            f"({report.orphan_bytes} bytes), {report.missing} missing, {report.repaired} repaired; "
            f"{report.waiting} wait to be deleted"
        )
    if not report.is_good:
        raise typer.Exit(1)


async def _check(data: Path, *, repair: bool, found: Any, progress: Any) -> Report:
    from gateway.config import GatewaySettings
    from store.config import StoreSettings
    from store.deletions import delete_due
    from store.instance import primary_url
    from store.objects import open_objects
    from store.objects.picture_process import PictureProcess
    from store.objects.reconcile import ORPHAN_AGE, reconcile
    from store.primary import Primary

    settings, limits = StoreSettings.load(data), GatewaySettings.load(data)
    primary = await Primary.open(primary_url(data, settings), name="objects check", size=2, statement_timeout_s=3600.0)
    store = open_objects(data, settings)
    pictures = PictureProcess(max_bytes=limits.upload_max_bytes, max_pixels=limits.upload_max_pixels)
    try:
        await store.check()
        report = await reconcile(
            primary,
            store,
            now=datetime.now(UTC),
            prepare=pictures.prepare if repair else None,
            found=found,
            progress=progress,
        )
        if repair:
            await delete_due(primary, store)
            await store.sweep_temporary(ORPHAN_AGE.total_seconds())
        return report
    finally:
        await pictures.close()
        await store.close()
        await primary.close()


@objects.command()
def copy(
    source: Annotated[str, typer.Option("--from", help="local:PATH or s3:BUCKET[@ENDPOINT]")],
    destination: Annotated[str, typer.Option("--to", help="local:PATH or s3:BUCKET[@ENDPOINT]")],
    verify: Annotated[bool, typer.Option("--verify", help="Read what is there already, too.")] = False,
    data: Data = DATA,
    json: Json = False,
) -> None:
    """Copy every object from one store to another, and read each back. Exit code 1: some are not the same.

    Keys and secrets are those of the settings. Run again, it goes on where it stopped. To move a running instance:
    copy, stop it, copy what came meanwhile, set PERUSE_OBJECTS, start it.
    """
    from store.config import StoreSettings

    StoreSettings.load(data)
    if source == destination:
        raise SettingError("--from and --to are the same place")
    with _bar() as bar:
        done = _run(_copy(data, source, destination, bar, verify=verify))
    if json:
        _print_json(done)
    else:
        for key in done.differ[:_MAX_TOLD]:
            print(f"differs  {key}")
        print(
            f"copied {done.copied} objects ({done.copied_bytes} bytes), {done.present} were there, "
            f"{len(done.differ)} differ, {done.extra} only at the destination"
        )
    if done.differ:
        raise typer.Exit(1)


async def _copy(data: Path, source: str, destination: str, bar: Progress, *, verify: bool) -> Copied:
    from store.objects.copying import copy as copy_all
    from store.objects.copying import measure

    origin = open_place(source, data, is_source=True)
    target = open_place(destination, data)
    try:
        await origin.check()
        await target.check()
        task = bar.add_task("counting", total=None)
        count, _ = await measure(origin)
        bar.update(task, description="copying", total=count)
        return await copy_all(origin, target, verify=verify, progress=lambda _: bar.advance(task))
    finally:
        await origin.close()
        await target.close()


def open_place(place: str, data: Path, *, is_source: bool = False) -> Objects:
    """The store at `local:PATH` or `s3:BUCKET[@ENDPOINT]`; without ENDPOINT that of the settings.

    Raises:
        SettingError: it is neither, or the settings lack what the bucket needs.
    """
    from store.config import StoreSettings
    from store.objects import open_objects
    from store.objects.local import LocalObjects

    match = _PLACE.fullmatch(place)
    if match is None:
        raise SettingError(f"{place!r} is neither local:PATH nor s3:BUCKET[@ENDPOINT]")
    if match["path"]:
        path = Path(match["path"])
        if is_source and not path.is_dir():
            raise SettingError(f"there is no folder {path}")
        return LocalObjects(path)
    given: dict[str, Any] = {"objects": "s3", "s3_bucket": match["bucket"]}
    if match["endpoint"]:
        given["s3_endpoint_url"] = match["endpoint"]
    settings: StoreSettings = StoreSettings.load(data, **given)
    return open_objects(data, settings)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _advance(bar: Progress, task: Any, completed: int, total: int) -> None:
    bar.update(task, completed=completed, total=total)


def _run(work: Any) -> Any:
    import uvloop

    try:
        return uvloop.run(work)
    except ObjectError as error:
        print(f"peruse: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _fields(report: Report) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(report)


def _print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode())
