"""How an ingest goes, for Prometheus: counters at `http://HOST:PORT/metrics` while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nexus_vdb.errors import ConfigError, MissingExtra
from nexus_vdb.reports import IngestReport

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtra("prometheus-client", extra="metrics") from error

__all__ = ["serve_metrics"]

_OUTCOMES = ("read", "embedded", "skipped", "quarantined", "deleted")
_STAGES = ("reading", "embedding", "writing", "finishing")


class _Report(Collector):
    """Reads the report when somebody asks for it."""

    def __init__(self, report: IngestReport) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        report = self._report
        documents = CounterMetricFamily(
            "nexus_vdb_ingest_documents", "Documents by what became of them.", labels=["outcome"]
        )
        for name in _OUTCOMES:
            documents.add_metric([name], getattr(report, name))
        yield documents
        yield CounterMetricFamily("nexus_vdb_ingest_chunks", "Records written.", report.chunks)
        seconds = CounterMetricFamily(
            "nexus_vdb_ingest_stage_seconds",
            "Seconds spent in each stage; they run side by side.",
            labels=["stage"],
        )
        for name in _STAGES:
            seconds.add_metric([name], getattr(report, name))
        yield seconds
        yield CounterMetricFamily(
            "nexus_vdb_ingest_store_retries",
            "Requests that were made again because the store did not answer.",
            report.retries,
        )
        yield GaugeMetricFamily(
            "nexus_vdb_ingest_expected_documents",
            "Rows of the corpus; 0 where that is not known.",
            report.total or 0,
        )


@contextmanager
def serve_metrics(report: IngestReport, *, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve a report that grows, in a thread; the port is that which it was given, or a free one.

    Args:
        report: Read at each request.
        port: 0 takes a free one.
        host: Address to bind to; by default only this machine can ask.

    Raises:
        ConfigError: the address cannot be bound to.
    """
    registry = CollectorRegistry()
    registry.register(_Report(report))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"Invalid metrics_port={port}: cannot listen at {host}: {reason}",
            hint="choose a port that is free, or 0 for any",
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
