"""The tools of the peers. Nothing is installed by a run: what is missing is named, with the way to get it.

`python -m tests.bench.peers.needs`, or `make bench-peers`, puts into bench-out/peers what needs no root.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distributions
from typing import Final

from tests.bench.process import ROOT
from tests.bench.result import BenchError

__all__ = ["peers_python", "tool"]

_PEERS: Final = ROOT / "bench-out" / "peers"
_MAKE: Final = "make bench-peers"
#: Program → how to get it.
_TOOLS: Final = {
    "nginx": "apt-get install nginx-light",
    "redis-server": "apt-get install redis-server",
    "workerd": _MAKE,
}
#: The programs' folders that are not on everybody's PATH.
_FOLDERS: Final = ("/usr/sbin", str(_PEERS / "node_modules" / ".bin"))
_WORKERD: Final = "workerd@1"


def tool(name: str) -> str:
    """The path of a program.

    Raises:
        BenchError: it is not installed; says how to get it.
    """
    for path in (None, *_FOLDERS):
        found = shutil.which(name, path=path)
        if found:
            return found
    raise BenchError(f"{name} is not installed: {_TOOLS[name]}")


@cache
def peers_python(module: str) -> str:
    """An interpreter that has `module`: this one, or that of bench-out/peers.

    Raises:
        BenchError: neither has; says how to get it.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is not None and _has(sys.executable, module):
        return sys.executable
    other = _PEERS / "venv" / "bin" / "python"
    if other.exists() and _has(str(other), module):
        return str(other)
    raise BenchError(f"the Python module {module} is not installed: {_MAKE}")


def _has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def install() -> None:
    """The extra `bench` into a venv, in the versions that Peruse itself runs with, and workerd beside it."""
    _PEERS.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = _PEERS / "constraints.txt"
    installed = sorted((found.name, found.version) for found in distributions() if found.name != project["name"])
    pins.write_text("".join(f"{name}=={version}\n" for name, version in installed))
    python = _PEERS / "venv" / "bin" / "python"
    _run(sys.executable, "-m", "venv", str(_PEERS / "venv"))
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(pins))
    _run(*pip, *project["optional-dependencies"]["bench"])
    if shutil.which("npm"):
        _run("npm", "install", "--prefix", str(_PEERS), "--no-audit", "--no-fund", "--loglevel=error", _WORKERD)
    for name, how in _TOOLS.items():
        try:
            print(f"{name}: {tool(name)}")
        except BenchError:
            print(f"{name}: missing ({'needs npm, then ' + how if how == _MAKE else how})")


def _run(*command: str) -> None:
    subprocess.run(command, cwd=_PEERS, check=True)


if __name__ == "__main__":
    install()
