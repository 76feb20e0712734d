"""What a run leaves: a table to read, and bench.json to compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.result import Line

__all__ = ["save", "table"]


def table(lines: Sequence[Line], machine: Mapping[str, str], *, plan: str, took_s: float) -> str:
    """The run as text: the machine, then a line per measurement, then the verdict."""
    rows = [("", "median", "", "min–max", "goal", "", "")]
    for line in lines:
        goal = "" if line.goal is None else str(line.goal)
        rows.append((line.name, line.value_text, line.unit, line.range_text, goal, line.verdict, line.note))
    widths = [max(len(row[n]) for row in rows) for n in range(6)]
    out = [f"{name + ':':<13}{text}" for name, text in machine.items()]
    section = ""
    for row, of in zip(rows, ["", *(line.section for line in lines)], strict=True):
        if of != section:
            section = of
            out.append(section)
        name, value, unit, span, goal, verdict, note = row
        out.append(
            f"  {name:<{widths[0]}}  {value:>{widths[1]}} {unit:<{widths[2]}}  {span:<{widths[3]}}  "
            f"{goal:<{widths[4]}} {verdict:<{widths[5]}}  {note}".rstrip()
        )
    missed = sum(line.verdict == "FAIL" for line in lines)
    goals = sum(bool(line.verdict) for line in lines)
    out.append(f"{plan} run in {took_s:.0f} s: {goals - missed} of {goals} goals met")
    return "\n".join(out)


def save(path: Path, lines: Sequence[Line], machine: Mapping[str, str], *, plan: str, took_s: float) -> None:
    """Write everything with the values of each round."""
    measured: list[dict[str, Any]] = [
        {
            "key": line.key or None,
            "section": line.section,
            "name": line.name.strip(),
            "unit": line.unit,
            "median": None if line.is_missing else line.median,
            "min": min(line.values, default=None),
            "max": max(line.values, default=None),
            "values": [float(f"{value:.6g}") for value in line.values],
            "goal": None if line.goal is None else str(line.goal),
            "verdict": line.verdict or None,
            "note": line.note or None,
        }
        for line in lines
    ]
    document = {"plan": plan, "took_s": round(took_s, 1), "machine": dict(machine), "lines": measured}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
