"""The list of capabilities is whole, and the tests name it in one form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.capabilities import LIST, TESTS, MalformedMark, Section, numbers_in, report, sections_in, shown_by

SECTIONS = sections_in(LIST.read_text(encoding="utf-8"))


def test_the_list_has_every_number_once_and_in_order() -> None:
    assert [number for section in SECTIONS for number in section.numbers] == list(range(1, 242))
    assert "".join(section.title[0] for section in SECTIONS) == "ABCDEFGHIJKLMN"


def test_every_number_that_a_test_names_is_in_the_list() -> None:
    known = {number for section in SECTIONS for number in section.numbers}

    named = shown_by(TESTS)

    assert named
    assert {number: tests for number, tests in named.items() if number not in known} == {}


@pytest.mark.parametrize(
    ("docstring", "numbers"),
    [
        ("", []),
        ("A permission: granted.", []),
        ("mission: 43", [43]),
        ("mission: 43, 44", [43, 44]),
        ("A claim of its own. mission: 43, 44", [43, 44]),
        ("A claim.\n\nmission: 43, 44\nmission: 5", [43, 44, 5]),
    ],
)
def test_a_mark_ends_its_line(docstring: str, numbers: list[int]) -> None:
    assert list(numbers_in(docstring)) == numbers


@pytest.mark.parametrize(
    "mark",
    [
        "mission:",
        "mission:43",
        "mission : 43",
        "Mission: 43",
        "missions: 43",
        "mission: 43 44",
        "mission: 43,44",
        "mission: 43, 44.",
        "mission: 43,\n44",
        "mission: 040",
        "mission: C8",
        "mission: 43 mission: 44",
    ],
)
def test_a_malformed_mark_fails(mark: str) -> None:
    with pytest.raises(MalformedMark, match="expected a line to end in `mission: 43, 44`, found "):
        list(numbers_in(f"A claim. {mark}"))


def test_only_tests_show_a_capability(tmp_path: Path) -> None:
    """Functions and methods, async or not; a helper or another file counts for nothing."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text(
        'def test_one():\n    """mission: 1, 2"""\n'
        'def helper():\n    """mission: 3"""\n'
        'class TestB:\n    async def test_two(self):\n        """mission: 2"""\n'
    )
    (folder / "world.py").write_text('def test_three():\n    """mission: 4"""\n')

    named = shown_by(folder)

    assert named == {1: ["tests/test_a.py::test_one"], 2: ["tests/test_a.py::test_one", "tests/test_a.py::test_two"]}


def test_the_report_ends_with_what_is_not_shown_yet() -> None:
    lines = list(report([Section("A. Words", (1, 2)), Section("B. Deeds", (3,))], {2: ["tests/test_a.py::test_one"]}))

    assert lines == [
        "A. Words: 1 of 2 shown",
        "    2 tests/test_a.py::test_one",
        "B. Deeds: 0 of 1 shown",
        "not shown yet, 2: 1, 3",
    ]
