"""A line of the table: what was measured, how often, and whether it is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

__all__ = ["BenchError", "Goal", "Line", "at_least", "at_most"]


class BenchError(Exception):
    """Raised when a number cannot be had, or would not be what its name says."""


@dataclass(frozen=True)
class Goal:
    """A limit that the median is held against."""

    sign: Literal["≥", "≤"]
    limit: float

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.sign == "≥" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


def at_least(limit: float) -> Goal:
    return Goal("≥", limit)


def at_most(limit: float) -> Goal:
    return Goal("≤", limit)


@dataclass(frozen=True)
class Line:
    """One measurement; `values` are its rounds, in the order taken. Without any it is missing, and `note` says why."""

    section: str
    name: str
    unit: str
    values: Sequence[float]
    goal: Goal | None = None
    note: str = ""
    key: str = field(default="", kw_only=True)

    @property
    def is_missing(self) -> bool:
        return not self.values

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or empty without a goal or values."""
        if self.goal is None or self.is_missing:
            return ""
        return "PASS" if self.goal.is_met(self.median) else "FAIL"

    @property
    def value_text(self) -> str:
        return "missing" if self.is_missing else short(self.median)

    @property
    def range_text(self) -> str:
        """min–max of several values; empty for a single one."""
        if len(self.values) < 2:
            return ""
        return f"{short(min(self.values))}–{short(max(self.values))}"


def short(value: float) -> str:
    """Three digits that mean something, and thousands in groups."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
