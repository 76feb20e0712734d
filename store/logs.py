"""Logging: one event name, fields as data. Readable lines on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog

__all__ = ["configure"]


def configure(*, process: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structlog for this process; every line carries `process`.

    Secrets never get here: nothing logs headers, tokens, keys or URLs with credentials.
    """
    out = stream or sys.stderr
    terminal = out.isatty()
    renderer: structlog.typing.Processor

    def name_process(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(out))),
        cache_logger_on_first_use=True,
    )


class _Lossy:
    """A stream that loses what cannot be written: a full disk must not end the work that the line tells about."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        try:
            self._out.write(text)
        except OSError:
            pass

    def flush(self) -> None:
        try:
            self._out.flush()
        except OSError:
            pass
