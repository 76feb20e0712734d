"""Charts: light, readable, without a legend where labels will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.result import Line, short

__all__ = ["curves", "reads"]

_INK: Final = "#333333"
_OURS: Final = "#1f77b4"
_THEIRS: Final = "#b8c1cc"
#: Of the hot read, from top to bottom.
_SYSTEMS: Final = {
    "nginx": "nginx, static file",
    "peruse": "Peruse",
    "traced": "Peruse, requests with a trace",
    "varied": "Peruse, requests that vary",
    "wire": "Peruse, without shared memory",
    "bare": "bare aiohttp handler",
    "do_memory": "Durable Object, page in memory",
    "do_sql": "Durable Object, SQL per read",
    "redis": "aiohttp + Redis",
    "postgres": "aiohttp + Postgres",
    "actor": "aiohttp + Ray actor per user",
    "serve": "Ray Serve, constant body",
}
_MOST_COLUMNS: Final = 3


def reads(path: Path, lines: Sequence[Line], machine: Mapping[str, str]) -> None:
    """Draw the hot read against its peers: reads a second, and CPU per read where it is one figure."""
    pyplot = _pyplot()
    by_key = {line.key: line for line in lines if line.key and not line.is_missing}
    names = [name for name in _SYSTEMS if f"rps_{name}" in by_key]
    figure, axis = pyplot.subplots(figsize=(9, 0.42 * len(names) + 1.3), dpi=130, layout="constrained")
    of = [by_key[f"rps_{name}"] for name in names]
    labels, medians = [_SYSTEMS[name] for name in names], [line.median for line in of]
    colors = [_OURS if _SYSTEMS[name].startswith("Peruse") else _THEIRS for name in names]
    axis.barh(labels, medians, color=colors, height=0.62)
    spans = [[line.median - min(line.values) for line in of], [max(line.values) - line.median for line in of]]
    axis.errorbar(medians, labels, xerr=spans, fmt="none", ecolor=_INK, elinewidth=0.8, capsize=2)
    far = max(max(line.values) for line in of)
    for label, line in zip(labels, of, strict=True):
        axis.text(max(line.values) + far * 0.015, label, short(line.median), va="center")
    axis.set_xlim(0, far * 1.12)
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
    axis.invert_yaxis()
    figure.suptitle("Reads per second: a page of 50 images, 32 readers at once", x=0.01, ha="left", weight="bold")
    note = f"median and min–max of interleaved rounds; {machine['CPU']}; {machine['Python']}"
    figure.supxlabel(note, fontsize=7.5, x=0.01, ha="left")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, facecolor="white")
    pyplot.close(figure)


def curves(path: Path, title: str, of: Sequence[tuple[str, str, Mapping[str, Mapping[float, float]]]]) -> None:
    """Draw growth on logarithmic axes: per panel (x label, y label, curve by name: x → y)."""
    pyplot = _pyplot()
    columns = min(_MOST_COLUMNS, len(of))
    rows = -(-len(of) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), dpi=120, layout="constrained", squeeze=False
    )
    for axis, (x_label, y_label, panel) in zip(axes.flat, of, strict=False):
        for name, points in panel.items():
            axis.plot(list(points), list(points.values()), marker="o", markersize=4, linewidth=1.4, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        values = [value for points in panel.values() for value in points.values()]
        middle = (min(values) * max(values)) ** 0.5
        # At least two decades high, so that what is flat looks flat.
        axis.set_ylim(min(min(values) / 1.5, middle / 10), max(max(values) * 1.5, middle * 10))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
            side.set_minor_formatter(lambda *_: "")
        axis.set_xticks(list(next(iter(panel.values()))))
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.grid(visible=True, which="major", color="#e6e9ed", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    for axis in list(axes.flat)[len(of) :]:
        axis.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.savefig(path, facecolor="white")
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams.update({"font.size": 9, "text.color": _INK, "axes.labelcolor": _INK, "ytick.color": _INK})
    return pyplot
