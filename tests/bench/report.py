"""What a run leaves: a table to read, bench.json to compare, bench.png to show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.result import Line, short

__all__ = ["chart", "save", "table"]

_SYSTEMS: Final = {"bare": "bare aiohttp handler,\nsame bytes", "peruse": "Peruse", "postgres": "aiohttp + Postgres"}
_COLORS: Final = {"bare": "#b8c1cc", "peruse": "#1f77b4", "postgres": "#b8c1cc"}
_INK: Final = "#333333"


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
    goals = sum(line.goal is not None for line in lines)
    out.append(f"{plan} run in {took_s:.0f} s: {goals - missed} of {goals} goals met")
    return "\n".join(out)


def save(path: Path, lines: Sequence[Line], machine: Mapping[str, str], *, plan: str, took_s: float) -> None:
    """Write everything with the values of each round."""
    measured: list[dict[str, Any]] = [
        {
            "section": line.section,
            "name": line.name.strip(),
            "unit": line.unit,
            "median": line.median,
            "min": min(line.values),
            "max": max(line.values),
            "values": list(line.values),
            "goal": None if line.goal is None else str(line.goal),
            "verdict": line.verdict or None,
            "note": line.note or None,
        }
        for line in lines
    ]
    document = {"plan": plan, "took_s": round(took_s, 1), "machine": dict(machine), "lines": measured}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def chart(path: Path, lines: Sequence[Line], machine: Mapping[str, str]) -> None:
    """Draw the hot read against its peers: reads a second, and one read at a time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams.update({"font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "ytick.color": _INK})
    by_key = {line.key: line for line in lines if line.key}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.4), dpi=150, layout="constrained", sharey=True)
    _bars(axes[0], {name: by_key[f"rps_{name}"] for name in _SYSTEMS}, "reads/s, 32 at once (more is better)")
    _bars(axes[1], {name: by_key[f"p50_{name}"] for name in _SYSTEMS}, "µs, p50, one at a time (less is better)")
    figure.suptitle("A page of 50 images: median and min–max of interleaved rounds", x=0.01, ha="left", weight="bold")
    figure.supxlabel(f"{machine['CPU']}; {machine['kernel']}; {machine['Python']}", fontsize=7.5, x=0.01, ha="left")
    figure.savefig(path, facecolor="white")
    pyplot.close(figure)


def _bars(axis: Any, lines: Mapping[str, Line], title: str) -> None:
    medians = [line.median for line in lines.values()]
    least = [line.median - min(line.values) for line in lines.values()]
    most = [max(line.values) - line.median for line in lines.values()]
    labels = [_SYSTEMS[name] for name in lines]
    axis.barh(labels, medians, color=[_COLORS[name] for name in lines], height=0.6)
    axis.errorbar(medians, labels, xerr=[least, most], fmt="none", ecolor=_INK, elinewidth=1, capsize=3)
    far = max(max(line.values) for line in lines.values())
    for label, line in zip(labels, lines.values(), strict=True):
        axis.text(max(line.values) + far * 0.03, label, short(line.median), va="center")
    axis.set_xlim(0, far * 1.2)
    axis.set_title(title, loc="left", fontsize=10)
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()
