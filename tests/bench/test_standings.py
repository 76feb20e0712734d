"""What could not be measured is named, with the reason."""

from __future__ import annotations

from tests.bench import report
from tests.bench.load import Load
from tests.bench.standings import Sample, Standings

_KEYS = ("peruse", "prompts", "traced", "varied", "many", "unchanged", "wire", "bare", "postgres", "bare_varied")


def _standings() -> Standings:
    """Two rounds of everybody who is always there; each part takes 10 µs of CPU."""
    standings = Standings(page_bytes=1, users=1, connections=1)
    for key in _KEYS:
        for rate in (100.0, 200.0):
            standings.add(key, key, Sample(Load(1, rate, 1.0, 2.0, 300.0), {"": 10.0}))
    for key in ("peruse", "bare"):
        standings.add_latency(key, 20.0)
    return standings


def test_missing_peer_is_named_with_its_reason_and_misses_no_goal() -> None:
    """Its lines stay in the table and in the file, without a value and without a verdict."""
    standings = _standings()
    standings.missing("redis", "aiohttp + Redis", "redis-server is not installed: apt-get install redis-server")

    lines = {line.key: line for line in standings.lines() if line.key}

    for key in ("rps_redis", "ratio_redis"):
        assert lines[key].is_missing
        assert lines[key].verdict == ""
        assert lines[key].note == "redis-server is not installed: apt-get install redis-server"
    assert "missing" in report.table(list(lines.values()), {}, plan="quick", took_s=1.0)


def test_rounds_of_a_second_look_are_held_against_each_other() -> None:
    """They come last, and only some take part; the others are held against the rounds of their own number."""
    standings = _standings()
    for key in ("peruse", "bare"):
        standings.add(key, key, Sample(Load(1, 400.0, 1.0, 2.0, 300.0), {"": 10.0}))
    standings.add("peruse", "peruse", Sample(Load(1, 800.0, 1.0, 2.0, 300.0), {"": 10.0}))
    standings.add("bare", "bare", Sample(Load(1, 400.0, 1.0, 2.0, 300.0), {"": 5.0}))

    lines = {line.key: line.values for line in standings.gated()}

    assert lines["ratio_bare"] == [1, 1, 1, 2]
    assert lines["cpu_bare_to_peruse"] == [1, 1, 1, 0.5]
    assert lines["ratio_postgres"] == [1, 1]
    assert lines["ratio_many"] == [1, 1]


def test_ratio_is_of_the_round_beside_it() -> None:
    """A peer that was measured apart is held against Peruse's rounds of the same minutes."""
    standings = _standings()
    beside = Sample(Load(1, 900.0, 1.0, 2.0, 300.0), {"": 10.0})
    standings.add("serve", "Ray Serve", Sample(Load(1, 30.0, 1.0, 2.0, 300.0), {"": 10.0}), beside=beside)

    (ratio,) = [line for line in standings.lines() if line.key == "ratio_serve"]

    assert list(ratio.values) == [30.0]
    assert ratio.verdict == "PASS"
