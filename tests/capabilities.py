"""Which capabilities of CAPABILITIES.md the tests show, and which none shows yet: `python -m tests.capabilities`."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["LIST", "TESTS", "MalformedMark", "Section", "numbers_in", "report", "sections_in", "shown_by"]

TESTS: Final = Path(__file__).parent
LIST: Final = TESTS / "CAPABILITIES.md"

_HEADING: Final = re.compile(r"## ([A-N]\. .+)")
_CAPABILITY: Final = re.compile(r"(\d+)\. \S")
_MARK: Final = re.compile(r"\bmissions?\s*:.*", re.IGNORECASE)
_WELL_FORMED: Final = re.compile(r"mission: [1-9]\d*(, [1-9]\d*)*")


class MalformedMark(ValueError):
    """Raised when a docstring means to name capabilities and does it in another form than `mission: 43, 44`."""


@dataclass(frozen=True)
class Section:
    """One lettered part of the list; numbers in file order, repeated ones kept."""

    title: str
    numbers: tuple[int, ...]


def sections_in(text: str) -> list[Section]:
    """The list's sections. The decisions at its end have no numbers and are none."""
    sections: list[Section] = []
    for line in text.splitlines():
        if heading := _HEADING.fullmatch(line):
            sections.append(Section(heading[1], ()))
        elif capability := _CAPABILITY.match(line):
            sections[-1] = Section(sections[-1].title, (*sections[-1].numbers, int(capability[1])))
    return sections


def numbers_in(docstring: str) -> Iterator[int]:
    """Every number that a test's docstring names. Raises: MalformedMark, with the line."""
    for mark in _MARK.findall(docstring):
        if not _WELL_FORMED.fullmatch(mark):
            raise MalformedMark(f"expected a line to end in `mission: 43, 44`, found {mark!r}")
        yield from map(int, mark.removeprefix("mission: ").split(", "))


def shown_by(folder: Path) -> dict[int, list[str]]:
    """Number → the tests that name it, as pytest writes them. Read from the source: nothing is imported or run."""
    tests: dict[int, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for number in numbers_in(ast.get_docstring(node) or ""):
                    tests.setdefault(number, []).append(f"{path.relative_to(folder.parent)}::{node.name}")
    return tests


def report(sections: list[Section], tests: Mapping[int, list[str]]) -> Iterator[str]:
    """Lines: per section how many are shown and by which tests, then the numbers not shown yet."""
    for section in sections:
        shown = [number for number in section.numbers if number in tests]
        yield f"{section.title}: {len(shown)} of {len(section.numbers)} shown"
        yield from (f"  {number:3} {test}" for number in shown for test in tests[number])
    missing = [str(number) for section in sections for number in section.numbers if number not in tests]
    yield textwrap.fill(f"not shown yet, {len(missing)}: {', '.join(missing)}", 120)


if __name__ == "__main__":
    print("\n".join(report(sections_in(LIST.read_text(encoding="utf-8")), shown_by(TESTS))))
