"""The commands about settings: `peruse config set` and `peruse config list`."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import typer

from gateway.options import DATA, Data
from store.errors import SettingError

if TYPE_CHECKING:
    from store.config import Settings

__all__ = ["config"]

config = typer.Typer(help="Settings kept in the data folder.", no_args_is_help=True)


def _settings_classes() -> list[type[Settings]]:
    from actors.config import HostSettings, WorkerSettings
    from gateway.config import GatewaySettings
    from store.config import StoreSettings
    from store.generation.config import ProviderSettings

    return [StoreSettings, HostSettings, GatewaySettings, WorkerSettings, ProviderSettings]


@config.command("set")
def config_set(name: str, value: str, data: Data = DATA) -> None:
    """Keep the setting NAME (PERUSE_… or without) in the data folder. `-` as VALUE reads it from standard input."""
    from gateway.supervisor import prepare_data
    from store.config import read_saved, save

    field = name.lower().removeprefix("peruse_")
    known = {f: cls for cls in _settings_classes() for f in cls.model_fields}
    if field not in known:
        near = get_close_matches(field, known, n=1)
        hint = f"; did you mean PERUSE_{near[0].upper()}?" if near else "; `peruse config list` shows them all"
        raise SettingError(f"there is no setting {name}{hint}")
    prepare_data(data)
    saved = read_saved(data)
    saved[field] = sys.stdin.read().strip() if value == "-" else value
    known[field].check(saved, field)
    save(data, saved)


@config.command("list")
def config_list(data: Data = DATA) -> None:
    """Show every setting, its value, and where the value comes from. Secrets are not shown."""
    from store.config import read_saved

    saved = read_saved(data)
    for cls in _settings_classes():
        values = cls.load(data)
        for field, info in cls.model_fields.items():
            name = f"PERUSE_{field.upper()}"
            source = "environment" if name in os.environ else "data folder" if field in saved else "default"
            print(f"{name}={_shown(getattr(values, field))}    # {source}: {info.description}")


def _shown(value: Any) -> str:
    if hasattr(value, "get_secret_value"):
        return "***" if value.get_secret_value() else ""
    return ",".join(value) if isinstance(value, tuple) else str(value)
