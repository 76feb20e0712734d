"""Seeds: a replica of 500 rows from nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from actors.seed import seed
from store.config import StoreSettings
from store.documents import Documents
from store.primary import Primary
from tests.bench.result import BenchError, Line, at_most

__all__ = ["SEED_ROWS", "measure_seeds"]

SEED_ROWS: Final = 500
_WARM: Final = 2


async def measure_seeds(primary_url: str, users: list[str], folder: Path) -> list[Line]:
    """Seed each user once, in this process, as a host does; the first ones only warm the connection."""
    documents = Documents(StoreSettings.load().files_base)
    primary = await Primary.open(primary_url, name="bench", size=1)
    took_ms = []
    try:
        for user in users:
            path = folder / f"{user}.db"
            started = time.perf_counter()
            seeded = await seed(primary, user, path, documents, synced_at=time.time())
            took_ms.append((time.perf_counter() - started) * 1000)
            path.unlink()
            if seeded.rows < SEED_ROWS:
                raise BenchError(f"the seed of {user} took {seeded.rows} rows, expected {SEED_ROWS}")
    finally:
        await primary.close()
    counted = took_ms[_WARM:]
    note = f"{len(counted)} users, one after the other"
    return [Line("seed", f"a seed of {SEED_ROWS} rows", "ms", counted, at_most(30), note)]
