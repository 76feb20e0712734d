"""`python -m tests.settings_table`: README's table of settings, as the classes say it; `--write` puts it there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from actors.config import HostSettings, WorkerSettings
from gateway.config import GatewaySettings
from store.config import Settings, StoreSettings
from store.generation.config import ProviderSettings

__all__ = ["README", "in_readme", "settings_table"]

README: Final = Path(__file__).parent.parent / "README.md"
_HEAD: Final = "| setting | default | what |\n|---|---|---|\n"
_CLASSES: Final[tuple[type[Settings], ...]] = (
    StoreSettings,
    HostSettings,
    GatewaySettings,
    WorkerSettings,
    ProviderSettings,
)


def settings_table() -> str:
    """All rows, in the order of the classes."""
    rows = [
        f"| `PERUSE_{name.upper()}` | {_default(name, field)} | {(field.description or '').replace('|', '¦')} |\n"
        for settings in _CLASSES
        for name, field in settings.model_fields.items()
    ]
    return _HEAD + "".join(rows)


def in_readme(text: str) -> str:
    """The table as `text` has it."""
    start = text.index(_HEAD)
    return text[start : text.index("\n\n", start) + 1]


def _default(name: str, field: FieldInfo) -> str:
    if name == "node":
        return "the machine's name"
    value: Any = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return "(empty)" if value in ("", ()) else str(value)


if __name__ == "__main__":
    if "--write" in sys.argv:
        old = README.read_text()
        README.write_text(old.replace(in_readme(old), settings_table()))
    else:
        print(settings_table(), end="")
