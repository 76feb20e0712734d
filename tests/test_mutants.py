"""The mutants fit the product as it is today."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, NotThere, mutate


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_names_tests_that_there_are(mutant: Mutant, tmp_path: Path) -> None:
    (tmp_path / mutant.file).parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.file, tmp_path / mutant.file)

    mutate(tmp_path, mutant)

    assert mutant.new in (tmp_path / mutant.file).read_text(encoding="utf-8")
    assert mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        defined = {
            node.name
            for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name.partition("[")[0] in defined


@pytest.mark.parametrize("text", ["", "twice twice"])
def test_a_mutant_that_no_longer_fits_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)

    with pytest.raises(NotThere, match=f"mutant 'm': its text is {text.count('twice')} times in a.py, expected once"):
        mutate(tmp_path, Mutant("m", "a.py", "twice", "", ("tests/test_a.py::test_a",)))
