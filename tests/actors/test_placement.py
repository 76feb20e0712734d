"""Placement: the same answer everywhere, and as few moves as there can be."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.placement import first, ranked

users = st.text(min_size=1, max_size=40)
hosts = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8, unique=True)


@given(users, hosts, st.randoms())
def test_the_order_of_the_rows_does_not_matter(user: str, names: list[str], random: object) -> None:
    """mission: 129"""
    shuffled = names[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert ranked(user, names) == ranked(user, shuffled)
    assert first(user, names) == first(user, shuffled)


@given(users, hosts)
def test_the_first_is_the_first_of_the_ranking(user: str, names: list[str]) -> None:
    order = ranked(user, names)

    assert first(user, names) == order[0]
    assert sorted(order) == sorted(names)


@given(st.lists(users, min_size=1, max_size=50), hosts)
def test_a_host_that_leaves_moves_only_its_users_and_gets_them_back(people: list[str], names: list[str]) -> None:
    """mission: 129"""
    gone = names[0]
    left = names[1:]

    for user in people:
        before = first(user, names)
        after = first(user, left)
        if before == gone:
            assert after == (ranked(user, names)[1] if left else None)
        else:
            assert after == before
        assert first(user, [*left, gone]) == before


def test_nobody_is_responsible_where_there_is_no_host() -> None:
    assert first("ana", []) is None
    assert ranked("ana", []) == []


def test_ten_thousand_users_are_spread_evenly() -> None:
    """Five hosts, none more than 20 % from its fifth, also after one of them left."""
    names = [f"node/{slot}" for slot in range(5)]
    for live in (names, names[:-1]):
        counts = Counter(first(f"user-{n}", live) for n in range(10_000))
        share = 10_000 / len(live)
        assert all(abs(counts[host] - share) < 0.2 * share for host in live), counts


def test_every_process_computes_the_same() -> None:
    """Nothing in it depends on the process's own hash seed."""
    script = (
        "from actors.placement import ranked; print([ranked(f'user-{n}', ['a/0', 'a/1', 'b/0']) for n in range(50)])"
    )

    answers = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }

    assert answers == {f"{[ranked(f'user-{n}', ['a/0', 'a/1', 'b/0']) for n in range(50)]}\n"}
