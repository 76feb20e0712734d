"""A running instance, as its data folder tells: one lock, one file, and the primary's address.

Every command finds the instance through the folder, so nothing has to be repeated on its command line, and no
address with a password is ever an argument.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Final

import msgspec

from store.config import StoreSettings
from store.errors import SettingError

__all__ = ["Instance", "InstanceLock", "primary_url", "read_instance"]

_FILE: Final = "instance.json"


class Instance(msgspec.Struct):
    """What a running `peruse serve` says about itself."""

    pid: int
    url: str
    primary_url: str


class AlreadyRunning(SettingError):
    """Raised when another instance has the data folder."""


class InstanceLock:
    """Held by `peruse serve` for its whole life: one instance per data folder."""

    def __init__(self, data: Path) -> None:
        self._path = data / "run" / "lock"
        self._folder = data
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Raises AlreadyRunning when somebody else has it."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            running = _read(self._folder)
            who = f" (process {running.pid}, {running.url})" if running else ""
            raise AlreadyRunning(
                f"another Peruse runs on {self._folder}{who}: stop it, or choose another folder with --data"
            ) from None
        self._file = file

    def write(self, instance: Instance) -> None:
        """Tell the other commands; readable by the owner only, for the primary's URL may hold a password."""
        path = self._folder / "run" / _FILE
        temporary = path.with_suffix(".new")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(instance))
        temporary.replace(path)

    def release(self) -> None:
        """Give it back; what somebody else wrote, who has it, stays."""
        if self._file is not None:
            (self._folder / "run" / _FILE).unlink(missing_ok=True)
            self._file.close()
            self._file = None


def _read(data: Path) -> Instance | None:
    try:
        return msgspec.json.decode((data / "run" / _FILE).read_bytes(), type=Instance)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def is_running(data: Path) -> bool:
    """Whether an instance holds the folder's lock."""
    try:
        with (data / "run" / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_instance(data: Path) -> Instance:
    """The instance that runs on `data`.

    Raises:
        SettingError: there is none; says how to start one.
    """
    instance = _read(data) if is_running(data) else None
    if instance is None:
        raise SettingError(f"no Peruse runs on {data}: start one with `peruse serve --data {data}`")
    return instance


def primary_url(data: Path, settings: StoreSettings) -> str:
    """The primary's address: the setting's, or the running instance's embedded one.

    Raises:
        SettingError: neither is there.
    """
    return settings.primary_url.get_secret_value() or read_instance(data).primary_url
