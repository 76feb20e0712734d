"""Options that every command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = ["DATA", "Data", "Json"]

Data = Annotated[
    Path, typer.Option("--data", help="The data folder; it also names the running instance.", envvar="PERUSE_DATA")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DATA: Final = Path(".peruse")
