"""The tally: what a runner counts. Plain numbers, read once per scrape."""

from __future__ import annotations

import msgspec

__all__ = ["Tally"]


class Tally(msgspec.Struct):
    """Since the runner started. `attempts` and `attempt_seconds` are by "provider outcome", an outcome being `done` or
    the code of an error; `jobs` by "provider state"."""

    jobs: dict[str, int] = {}
    attempts: dict[str, int] = {}
    attempt_seconds: dict[str, float] = {}

    def saw_job(self, provider: str, state: str) -> None:
        key = f"{provider} {state}"
        self.jobs[key] = self.jobs.get(key, 0) + 1

    def saw_attempt(self, provider: str, outcome: str, seconds: float) -> None:
        key = f"{provider} {outcome}"
        self.attempts[key] = self.attempts.get(key, 0) + 1
        self.attempt_seconds[key] = self.attempt_seconds.get(key, 0.0) + seconds
