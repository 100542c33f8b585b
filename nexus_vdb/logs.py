"""Structured logs: one JSON object a line, for machines that watch a job.

Each has `time` (ISO 8601, UTC), `level`, `event` and `message`, and what else belongs to the event.
Jobs log through the standard library under `nexus_vdb`; nothing is shown unless somebody asks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TextIO

__all__ = ["JsonFormatter", "json_logs", "log_event", "on_retry"]

_ROOT = "nexus_vdb"


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
        value = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(value, ensure_ascii=True, default=str)


def log_event(
    logger: logging.Logger,
    event: str,
    message: str,
    *,
    fields: Mapping[str, Any] | None = None,
    level: int = logging.INFO,
) -> None:
    """Log something that has a name and values of its own."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", message, extra={"event": event, "fields": dict(fields or {})})


@contextmanager
def json_logs(stream: TextIO) -> Iterator[None]:
    """Write all that this package logs to a stream, as JSON, and nowhere else."""
    root = logging.getLogger(_ROOT)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    before = root.level, root.propagate
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        root.propagate = before[1]


class _Listener(logging.Handler):
    def __init__(self, called: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._called = called

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") == "retry":
            self._called()


@contextmanager
def on_retry(called: Callable[[], None]) -> Iterator[None]:
    """Call a function whenever a store has to be asked again (a log record of event "retry")."""
    listener = _Listener(called)
    root = logging.getLogger(_ROOT)
    root.addHandler(listener)
    try:
        yield
    finally:
        root.removeHandler(listener)
