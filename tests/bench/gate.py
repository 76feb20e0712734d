"""The gate: no ratio may fall by more than 15 % of what the last full run found.

Only ratios to what was measured in the same run, on the same stack, are held: absolute figures change with the hour.
What is held against the median of the full run is the upper quartile of the rounds: where the machine is shared, its
bad seconds take more from us, whose time is half the kernel's copying, than from a handler that is slow by itself. All
of a few rounds may be of one bad minute: who measures takes more of them before a fall is believed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.result import Line, short
from tests.bench.standings import GATED

__all__ = ["falls"]

_MOST: Final = 0.15


def falls(lines: Sequence[Line], committed: Path) -> list[str]:
    """A line of text for each gated ratio of `lines` that is too far below `committed`'s; none without that file.

    A ratio that is in the file and not in `lines` has fallen, too.
    """
    if not committed.exists():
        return []
    before = {line["key"]: line["median"] for line in json.loads(committed.read_text())["lines"] if line["key"]}
    now = {line.key: _upper_quartile(line.values) for line in lines if line.key and not line.is_missing}
    found = []
    for key in GATED:
        was = before.get(key)
        if was is None:
            continue
        if key not in now:
            found.append(f"{key} was not measured, expected about {short(was)}")
        elif now[key] < (1 - _MOST) * was:
            found.append(
                f"{key} fell from {short(was)} to {short(now[key])} in its best rounds, by more than {_MOST:.0%}"
            )
    return found


def _upper_quartile(values: Sequence[float]) -> float:
    """That of a few rounds is the best of them."""
    return sorted(values)[-max(1, (len(values) + 1) // 4)]
