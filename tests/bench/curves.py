"""A growth curve, its law, and its knee."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Curve", "as_json"]

#: Between the last two points y may grow with this power of x; beyond, something is wrong.
_STEEP: Final = 1.2
#: y that grows less than this from end to end, for all of x, is flat: noise is as large.
_FLAT: Final = 1.3


@dataclass(frozen=True)
class Curve:
    """y over x, both positive. x ascends."""

    name: str
    x_label: str
    y_label: str
    points: Mapping[float, float]

    @property
    def line(self) -> tuple[float, float]:
        """(a, b) of y = a + b·x, by least squares of relative errors: each point counts alike. Neither is negative."""
        weights = {x: 1 / y**2 for x, y in self.points.items()}
        total = sum(weights.values())
        mean_x = sum(w * x for x, w in weights.items()) / total
        mean_y = sum(w * self.points[x] for x, w in weights.items()) / total
        spread = sum(w * (x - mean_x) ** 2 for x, w in weights.items())
        slope = sum(w * (x - mean_x) * (self.points[x] - mean_y) for x, w in weights.items()) / spread
        slope = max(0.0, slope)
        fixed = mean_y - slope * mean_x
        if fixed >= 0:
            return fixed, slope
        return 0.0, sum(w * x * self.points[x] for x, w in weights.items()) / sum(w * x * x for x, w in weights.items())

    @property
    def last_power(self) -> float:
        """The power of x that y grows with between the last two points."""
        (x0, y0), (x1, y1) = list(self.points.items())[-2:]
        return math.log(y1 / y0) / math.log(x1 / x0)

    @property
    def is_steep(self) -> bool:
        return self.last_power > _STEEP

    @property
    def law(self) -> str:
        """In words: flat, or a fixed part and a part per x; with the knee, where both are alike.

        What falls with x has no slope here and is told by its ends.
        """
        values = list(self.points.values())
        if max(values) < _FLAT * min(values):
            return f"flat at {_number(sum(values) / len(values))}"
        fixed, slope = self.line
        if not slope:
            return f"does not grow: {_number(values[0])} at first, {_number(values[-1])} at last"
        knee = f"; knee at {_number(fixed / slope)}" if fixed else "; no knee"
        steep = f"; STEEPER at the end: power {self.last_power:.2f}" if self.is_steep else ""
        return f"{_number(fixed)} + {_number(slope)} · x{knee}{steep}"


def as_json(curves: list[Curve]) -> list[dict[str, Any]]:
    """With `fixed` and `slope` of the law: y ≈ fixed + slope · x."""
    return [
        {
            "name": curve.name,
            "x": curve.x_label,
            "y": curve.y_label,
            "law": curve.law,
            "fixed": float(f"{curve.line[0]:.4g}"),
            "slope": float(f"{curve.line[1]:.4g}"),
            "points": [[x, float(f"{y:.4g}")] for x, y in curve.points.items()],
        }
        for curve in curves
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
