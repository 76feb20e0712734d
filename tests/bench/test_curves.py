"""Growth curves state their own law."""

from __future__ import annotations

import pytest

from tests.bench.curves import Curve


def _curve(points: dict[float, float]) -> Curve:
    return Curve("host", "users", "MB", points)


def test_fixed_part_and_slope_are_found_with_their_knee() -> None:
    """60 + 0.2 · x is recognised; the knee is where both parts are alike."""
    curve = _curve({x: 60 + 0.2 * x for x in (10, 100, 1000, 10_000)})

    assert curve.line == pytest.approx((60, 0.2))
    assert curve.law == "60 + 0.2 · x; knee at 300"


def test_quadratic_growth_is_called_steep() -> None:
    """More than linear at the end is said aloud."""
    curve = _curve({x: x * x for x in (10.0, 100.0, 1000.0)})

    assert curve.is_steep
    assert "STEEPER at the end: power 2.00" in curve.law


def test_what_hardly_changes_is_flat() -> None:
    """A tenth more over a thousandfold is no growth."""
    assert _curve({1: 10.0, 1000: 11.0}).law == "flat at 10.5"
