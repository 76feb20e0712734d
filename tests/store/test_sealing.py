"""Sealed secrets: they open with their key and for their context only."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.errors import SettingError
from store.sealing import open_sealer


def test_a_sealed_secret_opens_again(tmp_path: Path) -> None:
    """In any process of the data folder, and no two sealed ones are alike."""
    sealer = open_sealer(tmp_path)
    one, two = (sealer.seal(b"sk-canary", "ana/openai") for _ in range(2))

    assert one != two
    assert b"canary" not in one
    open_sealer.cache_clear()
    assert open_sealer(tmp_path).open(one, "ana/openai") == b"sk-canary"


@pytest.mark.parametrize("context", ["bo/openai", "ana/fal", ""])
def test_it_opens_for_its_context_only(tmp_path: Path, context: str) -> None:
    sealed = open_sealer(tmp_path).seal(b"sk", "ana/openai")

    with pytest.raises(SettingError, match="does not open"):
        open_sealer(tmp_path).open(sealed, context)


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 40])
def test_damage_is_told_without_the_secret(tmp_path: Path, damage: bytes) -> None:
    with pytest.raises(SettingError, match=r"sealing\.secret"):
        open_sealer(tmp_path).open(damage, "ana/openai")
