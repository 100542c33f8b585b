"""The ingest job: corpus → store, with the store itself as the ledger of what is done.

Every record carries a digest of its document and of how it was embedded. A document whose records
all carry the digest it has now is left alone; any other is embedded anew, its ordinal 0 written
after its other chunks and its surplus chunks deleted last. A kill at any point therefore leaves
each document either done or recognisably not, and the same command again finishes the job. The
stages are in `_ingest_job`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nexus_vdb.chunking import CHUNK_OVERLAP, CHUNK_TOKENS
from nexus_vdb.collection import Collection
from nexus_vdb.corpus import FieldMap, RowSource, open_corpus
from nexus_vdb.errors import ConfigError, SourceError, StoreNotFound
from nexus_vdb.interfaces import Source
from nexus_vdb.logs import log_event, on_retry
from nexus_vdb.pipelines._ingest_job import Job, Progress
from nexus_vdb.pipelines._ingest_parts import Made
from nexus_vdb.pipelines._ingest_read import read_batches
from nexus_vdb.pipelines._ingest_stages import Batch
from nexus_vdb.quarantine import Quarantine, QuarantineSource, Rest
from nexus_vdb.reports import IngestReport
from nexus_vdb.settings import Settings, make_settings

__all__ = ["Engine", "IngestSettings", "OnError", "ingest", "make_ingest"]

_log = logging.getLogger("nexus_vdb.ingest")


class Engine(str, Enum):
    """Where documents are embedded."""

    LOCAL = "local"
    RAY = "ray"


class OnError(str, Enum):
    """What to do about a row that is no document."""

    QUARANTINE = "quarantine"
    FAIL = "fail"


def _share(value: Any) -> Any:
    """`10%` as 0.1; anything else as it is."""
    match = re.fullmatch(r"\s*([\d.]+)\s*%\s*", value) if isinstance(value, str) else None
    try:
        return float(match[1]) / 100 if match else value
    except ValueError:
        return value


class IngestSettings(Settings):
    """Everything an ingest depends on; the keys of `configs/ingest.toml`."""

    sources: list[str] = []
    store: str = ""
    model: str | None = None
    id_field: str = "id"
    text_field: str = "text"
    title_field: str = "title"
    vector_field: str | None = None
    chunk_tokens: int = Field(CHUNK_TOKENS, ge=8)
    chunk_overlap: int = Field(CHUNK_OVERLAP, ge=0)
    cuts: tuple[int, ...] | None = None
    delete_missing: bool = False
    max_delete: Annotated[float, BeforeValidator(_share)] = Field(0.1, ge=0, le=1)
    dry_run: bool = False
    on_error: OnError = OnError.QUARANTINE
    quarantine: Path | None = Path("quarantine.jsonl")
    replay: Path | None = None
    log_json: bool = False
    metrics_port: int | None = Field(None, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    engine: Engine = Engine.LOCAL
    workers: int | None = Field(None, ge=1)
    ray_address: str | None = None

    def fields(self) -> FieldMap:
        """Which field of a row means what."""
        return FieldMap(self.id_field, self.text_field, self.title_field, self.vector_field)


def make_ingest(options: Mapping[str, Any]) -> IngestSettings:
    """Settings from options.

    Raises:
        ConfigError: one has a wrong value.
    """
    return make_settings(IngestSettings, options)


def ingest(
    collection: Collection,
    settings: IngestSettings,
    *,
    source: Source | None = None,
    report: IngestReport | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> IngestReport:
    """Bring the collection up to date with a corpus.

    Args:
        collection: Where to write.
        settings: See `IngestSettings`; `replay` names a quarantine file to read instead of
            `sources`, and to clear of what can be stored.
        source: Read instead of `settings.sources`.
        report: Where to count, for somebody who watches it; a new one by default.
        progress: Called with the growing report, from more than one thread but never at once.
        stop: Once set, the batch in hand is finished and the rest left for the next run.

    Raises:
        SourceError: the corpus cannot be read, has no documents, or a bad row is not tolerated.
        ConfigError: an option has a wrong value.
        FingerprintMismatch: the store was filled by another model.
    """
    started = time.perf_counter()
    report = IngestReport() if report is None else report
    _check_engine(collection.url, settings)
    source = source or _source(settings)
    _reach(collection)
    report.total, report.dry_run = _total(source, settings), settings.dry_run
    log_event(_log, "start", f"ingest into {collection.url}", fields=_what(settings, report))
    with on_retry(partial(_count_retry, report)), _quarantine(source, settings) as bad_rows:
        batches = _read(source, settings, bad_rows, report)
        first = next(batches, None)
        if first is None and not report.quarantined and not settings.replay:
            raise SourceError(f"no documents in {', '.join(settings.sources) or 'the corpus'}")
        if first is not None:
            job = Job(
                collection,
                settings,
                report,
                width=_width(first),
                progress=progress,
                stop=stop or threading.Event(),
            )
            job.run(_parts(job, collection.url, source, bad_rows, chain([first], batches)))
        if isinstance(bad_rows, Rest) and not report.interrupted:
            bad_rows.settle()
    if not report.interrupted:
        report.total = report.read + report.quarantined
    report.seconds = round(time.perf_counter() - started, 3)
    log_event(
        _log, "finish", "interrupted" if report.interrupted else "done", fields=asdict(report)
    )
    return report


def _check_engine(url: str, settings: IngestSettings) -> None:
    if settings.engine is Engine.RAY:
        from nexus_vdb.pipelines.ray import check_ray

        check_ray(url, settings)
    elif settings.workers is not None or settings.ray_address is not None:
        raise ConfigError("workers and ray_address are for engine=ray", hint="add --engine ray")


def _parts(
    job: Job, url: str, source: Source, bad_rows: Quarantine, batches: Iterator[Batch]
) -> Generator[Made, None, None]:
    """What the engine of choice makes of a corpus whose first batch is read."""
    if job.settings.engine is Engine.LOCAL:
        return job.local(batches)
    from nexus_vdb.pipelines.ray import distributed

    job.report.read = 0  # the cluster reads it from the start
    return distributed(job, url, source, bad_rows)


def _what(settings: IngestSettings, report: IngestReport) -> dict[str, Any]:
    replay = str(settings.replay) if settings.replay else None
    return {
        "store": settings.store,
        "sources": settings.sources,
        "replay": replay,
        "total": report.total,
        "dry_run": settings.dry_run,
    }


def _count_retry(report: IngestReport) -> None:
    report.retries += 1


def _source(settings: IngestSettings) -> Source:
    if settings.replay is None:
        return open_corpus(settings.sources, settings.fields())
    if settings.delete_missing:
        raise ConfigError("a replay is not the whole corpus", hint="drop --delete-missing")
    return QuarantineSource(settings.replay, settings.fields())


def _reach(collection: Collection) -> None:
    """Fail before a row is read or set aside if the store is there, but cannot be used."""
    with suppress(StoreNotFound):
        _ = collection.store


def _total(source: Source, settings: IngestSettings) -> int | None:
    try:
        return source.estimate() if isinstance(source, RowSource) else source.size()
    except SourceError:
        if settings.on_error is OnError.FAIL:
            raise
        return None  # what can be read of the others is


def _quarantine(source: Source, settings: IngestSettings) -> Quarantine:
    fail = settings.on_error is OnError.FAIL
    if settings.dry_run:
        return Quarantine(None, fail=fail)
    if settings.replay is not None and isinstance(source, QuarantineSource):
        return Rest(source, settings.replay, fail=fail)
    return Quarantine(settings.quarantine, fail=fail)


def _read(
    source: Source, settings: IngestSettings, bad_rows: Quarantine, report: IngestReport
) -> Generator[Batch, None, None]:
    for documents, vectors in read_batches(source, settings.vector_field, bad_rows):
        report.quarantined = bad_rows.count
        report.read += len(documents)
        yield documents, vectors
    report.quarantined = bad_rows.count


def _width(batch: Batch) -> int | None:
    return None if batch[1] is None else batch[1].shape[1]
