"""What runs on the nodes of a Ray cluster: one task that reads, and workers that embed.

The task reads the corpus once, in order, for only so can the second row of an id be told from the
first. Each batch then goes through plan, cut, embed and, into a server, write, on any worker; what
comes of it is one `Outcome`. Reading twice gives the same batches, and an outcome covers just one
of them: so whatever is lost with a process or a node can be made again.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexus_vdb.errors import ModelError, NexusError, StoreNotFound
from nexus_vdb.interfaces import Encoder, Source, Store
from nexus_vdb.pipelines._ingest_parts import Made, joined
from nexus_vdb.pipelines._ingest_read import read_batches
from nexus_vdb.pipelines._ingest_stages import Batch, Ledger, Stages
from nexus_vdb.registry import open_store
from nexus_vdb.reports import IngestReport
from nexus_vdb.stages import pushed
from nexus_vdb.types import StoreSchema

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings

__all__ = ["Outcome", "Read", "Setup", "Worker", "enter", "read_all"]

_ROOT = logging.getLogger("nexus_vdb")

_BAD_ROWS, _BAD_BYTES = 1000, 4_000_000
"""Bad rows that wait for a batch to go with."""


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a node has to know.

    Attributes:
        settings: Of the ingest.
        url: Of the store.
        schema: Of the store.
        encoder: None for ready-made vectors.
        folder: Where the command runs: relative paths begin there.
        writes: Workers write to the store; else they only read it.
    """

    settings: IngestSettings
    url: str
    schema: StoreSchema
    encoder: Encoder | None
    folder: str
    writes: bool


@dataclass(slots=True)
class Read:
    """What the reading task hands on.

    Attributes:
        batch: Documents; None for bad rows alone.
        bad: Arguments of `BadRow`, of rows before the end of the batch.
        seconds: Spent on reading.
        error: Ends the read.
    """

    batch: Batch | None = None
    bad: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None


@dataclass(slots=True)
class Outcome:
    """What came of a `Read`.

    Attributes:
        bad: As they came.
        report: Counts of this batch.
        ledger: Likewise.
        ids: Documents, where missing ones are to be deleted.
        made: To be written; without records where they are, or nothing is to be.
        logs: What was logged.
        repeated: A worker died, and this may have been worked on before.
        error: Ends the ingest.
    """

    bad: list[dict[str, Any]]
    report: IngestReport
    ledger: Ledger = field(default_factory=Ledger)
    ids: list[str] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    logs: list[logging.LogRecord] = field(default_factory=list)
    repeated: bool = False
    error: Exception | None = None


def enter(setup: Setup) -> None:
    """Make relative paths mean what they mean to the command, where its folder is there."""
    with suppress(OSError):
        os.chdir(setup.folder)


def read_all(source: Source, vector_field: str | None, *, batch_size: int) -> Iterator[Read]:
    """A corpus as batches and bad rows, in order; an error comes last."""

    def work(put: Callable[[Read], None]) -> None:
        reading = _Reading(put)
        try:
            for batch in read_batches(source, vector_field, reading.refuse, batch_size=batch_size):
                reading.hand(batch)
        except (NexusError, OSError) as error:
            reading.hand(error=_portable(error))
        else:
            reading.hand()

    return pushed(work)


class _Reading:
    """Collects bad rows until they can go with a batch, or there are many."""

    def __init__(self, put: Callable[[Read], None]) -> None:
        self._put = put
        self._bad: list[dict[str, Any]] = []
        self._bytes = 0
        self._started = time.perf_counter()

    def refuse(self, *, file: str, row: int, offset: int, reason: str, raw: bytes) -> None:
        """Meets `interfaces.BadRow`."""
        fields = {"file": file, "row": row, "offset": offset, "reason": reason, "raw": raw}
        self._bad.append(fields)
        self._bytes += len(raw)
        if len(self._bad) == _BAD_ROWS or self._bytes >= _BAD_BYTES:
            self.hand()

    def hand(self, batch: Batch | None = None, error: Exception | None = None) -> None:
        """Pass on what there is."""
        self._put(Read(batch, self._bad, time.perf_counter() - self._started, error))
        self._bad, self._bytes, self._started = [], 0, time.perf_counter()


class Worker:
    """Plans, cuts and embeds batches, and writes them where workers do.

    Args:
        setup: What it has to know.
        restarted: Whether another process was this worker before.
    """

    def __init__(self, setup: Setup, *, restarted: bool) -> None:
        enter(setup)
        self._setup = setup
        self._restarted = restarted
        self._stages: Stages | None = None

    def work(self, read: Read) -> Outcome:
        """One batch from beginning to end."""
        report = IngestReport(reading=read.seconds)
        outcome = Outcome(read.bad, report, repeated=self._restarted, error=read.error)
        with _logs_into(outcome.logs):
            try:
                if read.batch is not None:
                    self._work(read.batch, outcome)
            except Exception as error:
                outcome.error = _portable(error)
        return outcome

    def _work(self, batch: Batch, outcome: Outcome) -> None:
        settings, documents = self._setup.settings, batch[0]
        if self._stages is None:
            self._stages = self._start()
        stages = self._stages
        stages.report, stages.ledger = outcome.report, outcome.ledger
        outcome.report.read = len(documents)
        if settings.delete_missing:
            outcome.ids = [document.id for document in documents]
        writes = self._setup.writes and not settings.dry_run
        made = _made(stages, batch, dry_run=settings.dry_run)
        outcome.made = list(stages.write(made) if writes else made)

    def _start(self) -> Stages:
        setup, schema = self._setup, self._setup.schema
        if setup.encoder is not None and setup.encoder.fingerprint != schema.fingerprint:
            raise ModelError(
                f"{socket.gethostname()} has another model of the name {setup.encoder.name!r}",
                hint="install the same version on all nodes",
            )
        return Stages(
            self._store(),
            setup.encoder,
            setup.settings,
            schema=schema,
            report=IngestReport(),
            ledger=Ledger(),
        )

    def _store(self) -> Store:
        setup = self._setup
        try:
            return open_store(setup.url)
        except StoreNotFound as error:
            if setup.settings.dry_run:
                return open_store("memory://", setup.schema)
            raise StoreNotFound(
                f"{setup.url} is not there on {socket.gethostname()}",
                hint="name a folder that all nodes of the cluster share",
            ) from error


def _made(stages: Stages, batch: Batch, *, dry_run: bool) -> Iterator[Made]:
    if stages.encoder is None:
        return map(joined, stages.ready_made([batch]))
    parts = stages.cut(stages.plan([batch]))
    return (Made.of(part, None) for part in parts) if dry_run else stages.embed(parts)


@contextmanager
def _logs_into(records: list[logging.LogRecord]) -> Iterator[None]:
    """Keep what this package logs, for the command to log it."""
    handler = _Keeping(records)
    _ROOT.addHandler(handler)
    _ROOT.setLevel(logging.INFO)
    _ROOT.propagate = False
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)


class _Keeping(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same, if it would not survive the journey."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error of somebody's own does when it is copied
        told = str(error) if isinstance(error, NexusError) else f"{type(error).__name__}: {error}"
        return NexusError(told, hint=getattr(error, "hint", ""))
    return error
