"""Writes the README's table from the last full run: `python -m tests.bench.readme`, or `make bench-readme`."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from tests.bench.result import short
from tests.bench.runs import COMMITTED, write_between

#: The lines worth a reader's time, by key, in this order; the others are in bench.json.
_RATES: Final = (
    "rps_peruse", "rps_traced", "rps_varied", "rps_many", "rps_wire", "rps_bare", "rps_nginx", "rps_postgres",
    "rps_redis", "rps_do_sql", "rps_do_memory", "rps_actor", "rps_serve",
)  # fmt: skip
_REST: Final = (
    "ratio_bare", "ratio_traced", "ratio_varied", "ratio_wire", "ratio_unchanged", "ratio_p50", "open_peruse_50_p50",
    "open_peruse_50_p99", "open_peruse_80_p99", "open_bare_50_p99", "open_bare_80_p99", "memory_user_kb", "ratio_zipf",
    "zipf_miss_us", "pages_small_ms", "pages_deep", "pages_filtered",
)  # fmt: skip


def main() -> int:
    return write_between("README.md", "bench", _table(json.loads(COMMITTED.read_text())))


def _table(document: dict[str, Any]) -> str:
    by_key = {line["key"]: line for line in document["lines"] if line["key"]}
    out = [
        "| a page of 50 images, 32 readers at once | reads/s (min–max) | CPU per read | Peruse is |",
        "|---|---|---|---|",
    ]
    for key in _RATES:
        name, line = key.removeprefix("rps_"), by_key[key]
        ratio = by_key.get(f"ratio_{name}") if not line["name"].startswith("Peruse") else None
        out.append(f"| {line['name']} | {_value(line)} | {_cpu(by_key, name)} | {_times(ratio)} |")
    out += ["", "| measured | median (min–max) | goal | |", "|---|---|---|---|"]
    for key in _REST:
        line = by_key[key]
        verdict = {"PASS": "met", "FAIL": "**missed**", None: ""}[line["verdict"]]
        out.append(f"| {line['name'].strip()} | {_value(line)} {line['unit']} | {line['goal'] or ''} | {verdict} |")
    machine = document["machine"]
    out += [
        "",
        f"{machine['CPU']}; {machine['memory']}; {machine['Python']}; Postgres {machine['Postgres']}; "
        f"{machine['packages'].split(', ', 1)[1]}; `wrk -t1 -c32` {machine['wrk']}. Nothing is pinned; load "
        f"generator and all processes share the cores. Load before: {machine['load before'].partition(' (')[0]}. "
        "Ratios hold better than absolute figures.",
    ]
    return "\n".join(out)


def _value(line: dict[str, Any]) -> str:
    if line["median"] is None:
        return f"missing: {line['note']}"
    span = f" ({short(line['min'])}–{short(line['max'])})" if len(line["values"]) > 1 else ""
    return short(line["median"]) + span


def _cpu(by_key: dict[str, Any], name: str) -> str:
    parts = [
        line["median"]
        for key, line in by_key.items()
        if key in (f"cpu_{name}", f"cpu_{name}_gateway", f"cpu_{name}_host")
    ]
    return f"{short(sum(parts))} µs" if parts else ""


def _times(ratio: dict[str, Any] | None) -> str:
    return "" if ratio is None or ratio["median"] is None else f"{short(ratio['median'])} × as fast"


if __name__ == "__main__":
    sys.exit(main())
