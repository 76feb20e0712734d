"""What the kernel is told about who runs first."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Prints slice (ns), policy and niceness of the calling thread, of a new one, and of a new process.
ASK = """
import ctypes, struct, subprocess, sys, threading
from store.priority import {way}

def told():
    buffer = ctypes.create_string_buffer(56)
    ctypes.CDLL(None).syscall({number}, 0, buffer, 56, 0)
    _, policy, _, nice, _, slice_ns, _, _ = struct.unpack_from("=IIQiIQQQ", buffer)
    print(slice_ns, policy, nice, flush=True)

if len(sys.argv) == 1:
    {way}()
    told()
    thread = threading.Thread(target=told)
    thread.start()
    thread.join()
    subprocess.run([sys.executable, __file__, "child"], check=True)
else:
    told()
"""
_GETATTR = {"x86_64": 315, "aarch64": 275}


def _asked(way: str, tmp_path: os.PathLike[str]) -> list[list[int]]:
    script = os.path.join(tmp_path, "ask.py")
    with open(script, "w") as file:
        file.write(ASK.format(way=way, number=_GETATTR[platform.machine()]))
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": os.getcwd()}, start_new_session=True,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def _has_slices() -> bool:
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    return (major, minor) >= (6, 12)


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _GETATTR, reason="of Linux, on these processors"
)


@pytest.mark.parametrize(
    ("way", "slice_ns", "policy", "nice"),
    [("run_first", 100_000, 0, 0), ("run_last", 100_000_000, 3, 10)],
)
def test_kernel_is_told_and_all_that_is_started_afterwards_inherits_it(
    way: str, slice_ns: int, policy: int, nice: int, tmp_path: os.PathLike[str]
) -> None:
    """The policy and the niceness everywhere; the slice where the kernel knows of it."""
    nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)

    told = _asked(way, tmp_path)

    assert len(told) == 3
    assert all(line[1:] == [policy, nice] for line in told)
    if _has_slices():
        assert all(line[0] == slice_ns for line in told)


def test_refusal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a processor whose numbers nobody wrote down: the call is not made."""
    from store import priority

    monkeypatch.setattr(platform, "machine", lambda: "sparc64")
    monkeypatch.setattr(priority.ctypes, "CDLL", lambda _: pytest.fail("a call by a number of another processor"))

    priority.run_first()
