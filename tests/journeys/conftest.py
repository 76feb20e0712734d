"""One real instance for all journeys: Ray takes ten seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import Served


@pytest.fixture(scope="session")
def served(open_folder: Path) -> Iterator[Served]:
    """`peruse serve` with two hosts and two gateways."""
    instance = Served(open_folder / "served", "--hosts", "2", "--gateways", "2")
    instance.start()
    yield instance
    assert instance.stop() == 0
