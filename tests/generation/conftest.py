"""One process that reads pictures for all tests of the runner, and a fresh world for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.objects.picture_process import PictureProcess
from store.primary import Primary
from tests.generation.jobs_world import JobsWorld, jobs_world


@pytest.fixture(scope="session")
async def pictures() -> AsyncIterator[PictureProcess]:
    made = PictureProcess(max_workers=1, max_waiting=1000)
    yield made
    await made.close()


@pytest.fixture
async def jobs(primary: Primary, tmp_path: Path, pictures: PictureProcess) -> AsyncIterator[JobsWorld]:
    async with jobs_world(primary, tmp_path, pictures) as made:
        yield made
