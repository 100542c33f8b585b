"""How an ingest is watched: a bar, plain lines, structured logs, counters for Prometheus."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nexus_vdb.cli.common import LINE_SECONDS, note, progress_bar
from nexus_vdb.cli.pace import Pace
from nexus_vdb.logs import json_logs, log_event

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings
    from nexus_vdb.reports import IngestReport

__all__ = ["Watch", "counts", "watching"]

_log = logging.getLogger("nexus_vdb.ingest")


class Watch:
    """Where progress and notes go; made by `watching`.

    Args:
        show: Draws the report.
        log_json: Notes are logged instead of written.
    """

    def __init__(self, show: Callable[[IngestReport], None], *, log_json: bool) -> None:
        self.progress = show
        self._log_json = log_json

    def say(self, text: str) -> None:
        """A line for people, or an event "note"."""
        if self._log_json:
            log_event(_log, "note", text)
        else:
            note(text)

    @property
    def signalled(self) -> Callable[[str], None] | None:
        """As `say`, in a signal handler; None for the usual."""
        return self.say if self._log_json else None


@contextmanager
def watching(settings: IngestSettings, report: IngestReport, *, quiet: bool) -> Iterator[Watch]:
    """Watch a report grow, in all the ways that the settings ask for.

    Args:
        settings: `log_json`, `metrics_port`, `metrics_host`.
        report: Of the ingest.
        quiet: No lines of progress where standard error is no terminal.
    """
    with ExitStack() as stack:
        if settings.log_json:
            stack.enter_context(json_logs(sys.stderr))
            watch = Watch(_Events(), log_json=True)
        else:
            update = stack.enter_context(progress_bar("documents", lines=not quiet))
            watch = Watch(_drawn(update), log_json=False)
        if settings.metrics_port is not None:
            from nexus_vdb.connectors.prometheus import serve_metrics

            host = settings.metrics_host
            port = stack.enter_context(serve_metrics(report, port=settings.metrics_port, host=host))
            if not settings.metrics_port:
                watch.say(f"metrics are at http://{host}:{port}/metrics")
        yield watch


def _drawn(
    update: Callable[[int, int | None, str], None],
) -> Callable[[IngestReport], None]:
    started = time.monotonic()

    def progress(report: IngestReport) -> None:
        done = _done(report)
        update(done, report.total, f"{_rate(report, started):,.0f}/s: {counts(report)}")

    return progress


class _Events:
    """Progress as log events, ten seconds apart."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._pace = Pace()

    def __call__(self, report: IngestReport) -> None:
        left = self._pace.left(_done(report), report.total or 0)
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        fields: dict[str, Any] = asdict(report)
        fields["seconds"] = round(now - self._started, 3)
        fields["rate"] = round(_rate(report, self._started), 1)
        if report.total:
            fields["eta"] = left
        log_event(_log, "progress", counts(report), fields=fields)


def _done(report: IngestReport) -> int:
    """Rows that are dealt with; reading runs ahead."""
    return report.embedded + report.skipped + report.quarantined


def _rate(report: IngestReport, started: float) -> float:
    return _done(report) / max(time.monotonic() - started, 1e-9)


def counts(report: IngestReport) -> str:
    """What became of the documents so far."""
    return (
        f"{report.embedded:,} embedded, {report.skipped:,} unchanged, "
        f"{report.quarantined:,} set aside"
    )
