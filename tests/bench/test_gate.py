"""The gate sees a ratio that fell, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.gate import falls
from tests.bench.result import Line
from tests.bench.standings import GATED


def _lines(values: list[float], *, missing: str = "") -> list[Line]:
    return [Line("hot read", key, "×", [] if key == missing else values, key=key) for key in GATED]


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The file of a full run that found 2 for every ratio."""
    path = tmp_path / "bench.json"
    report.save(path, _lines([1.9, 2.0, 2.1]), {}, plan="full", took_s=1.0)
    return path


def test_ratio_that_fell_by_a_fifth_in_all_rounds_is_named(committed: Path) -> None:
    """Every gated ratio is named, with what it was and is."""
    found = falls(_lines([1.5, 1.6]), committed)

    assert len(found) == len(GATED)
    assert found[0] == f"{GATED[0]} fell from 2.00 to 1.60 in its best rounds, by more than 15%"


def test_one_slow_round_is_no_fall(committed: Path) -> None:
    """A ratio whose best rounds are near what it was has not fallen; a single one of many says nothing."""
    assert falls(_lines([1.0, 1.5, 1.75]), committed) == []
    assert falls(_lines([1.0, 1.5, 1.5, 1.5, 1.5, 1.75, 1.8]), committed) == []
    assert len(falls(_lines([1.0, 1.5, 1.5, 1.5, 1.5, 1.6, 2.5]), committed)) == len(GATED)


def test_ratio_that_is_not_measured_any_more_has_fallen(committed: Path) -> None:
    """What disappears from the run is named like what fell."""
    found = falls(_lines([2.0], missing="ratio_bare"), committed)

    assert found == ["ratio_bare was not measured, expected about 2.00"]


def test_without_a_full_run_nothing_falls(tmp_path: Path) -> None:
    """A checkout without bench.json passes."""
    assert falls(_lines([0.1]), tmp_path / "none.json") == []
