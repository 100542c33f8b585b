"""One run of an ingest: its stages in threads, what comes before them and what after.

read → plan → cut (one thread) → embed (another) → write (the caller's); ready-made vectors need
one thread and the caller's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from nexus_vdb.collection import Collection
from nexus_vdb.errors import ConfigError, StoreNotFound
from nexus_vdb.garbage import rare_collections
from nexus_vdb.idset import IdSet
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.pipelines._ingest_finish import finish, reconcile
from nexus_vdb.pipelines._ingest_kept import as_filled, keep_settings
from nexus_vdb.pipelines._ingest_missing import delete_missing
from nexus_vdb.pipelines._ingest_parts import Made, joined
from nexus_vdb.pipelines._ingest_stages import Batch, Ledger, Stages
from nexus_vdb.registry import open_store
from nexus_vdb.reports import IngestReport
from nexus_vdb.stages import ahead
from nexus_vdb.threads import one_blas_thread
from nexus_vdb.tuning import declare_hash
from nexus_vdb.types import StoreSchema

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings

__all__ = ["Job", "Progress"]

Progress: TypeAlias = Callable[[IngestReport], None]

T = TypeVar("T")


class Job:
    """One run over a corpus that has at least one document.

    Args:
        collection: Where to write.
        settings: See `IngestSettings`.
        report: Counts that grow.
        width: Of ready-made vectors; None to embed.
        progress: Told of the growing report.
        stop: Ends the run after the batch in hand.

    Attributes:
        settings: Those given, with chunks as the store has them where nothing is said of these.
        schema: Of the store.
        stages: What `run` is made of, in this process.
        reconciles: Whether the records that the store holds in the end are counted.
    """

    def __init__(
        self,
        collection: Collection,
        settings: IngestSettings,
        report: IngestReport,
        *,
        width: int | None,
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        self.report = report
        self.stop = stop
        self.reconciles = not settings.dry_run
        self._progress = progress
        encoder = collection.encoder if width is None else None
        self.schema = _schema(encoder, settings, width)
        self._store = _target(collection, self.schema, dry_run=settings.dry_run)
        self.settings = settings = as_filled(self._store, settings)
        if settings.sources and not settings.dry_run:
            keep_settings(self._store, settings)
        self._before = 0 if settings.dry_run else self._store.count()
        self.stages = Stages(
            self._store,
            encoder,
            settings,
            schema=self.schema,
            report=report,
            ledger=Ledger(IdSet() if settings.delete_missing else None),
            stop=stop,
        )
        self._progress_lock = threading.Lock()

    def run(self, parts: Generator[Made, None, None]) -> None:
        """Work to the end, or until told to stop.

        Args:
            parts: Each comes when it is written; see `local`.
        """
        with closing(parts):
            for part in parts:
                self.report.embedded += part.finished
                self.report.chunks += part.chunks
                self.tell()
                if self.stop.is_set():
                    break
        if self.reconciles and not self.stop.is_set():
            reconcile(self._store, self._before + self.stages.ledger.growth)
        if self.settings.delete_missing and not self.stop.is_set():
            self._delete_missing()
        self.report.interrupted = self.stop.is_set()
        if not self.report.interrupted and not self.settings.dry_run:
            started = time.perf_counter()
            finish(self._store, self.stages.encoder, written=self.report.chunks)
            self.report.finishing = time.perf_counter() - started

    def local(self, batches: Iterable[Batch]) -> Generator[Made, None, None]:
        """Plan, embed and write in threads of this process."""
        stages, watched = self.stages, self._watched(batches)
        with ExitStack() as stack:
            stack.enter_context(one_blas_thread())
            stack.enter_context(rare_collections())

            def in_thread(items: Generator[T, None, None]) -> Generator[T, None, None]:
                return stack.enter_context(closing(ahead(items)))

            made: Iterator[Made]
            if stages.encoder is None:
                made = map(joined, in_thread(stages.ready_made(watched)))
            else:
                parts = in_thread(stages.cut(stages.plan(watched)))
                if self.settings.dry_run:
                    made = (Made.of(part, None) for part in parts)
                else:
                    made = in_thread(stages.embed(parts))
            yield from made if self.settings.dry_run else stages.write(made)

    def tell(self) -> None:
        """Show the report as it is."""
        if self._progress is not None:
            with self._progress_lock:
                self._progress(self.report)

    def _watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; each is told of when it is planned, and the reading is timed."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.report.reading += time.perf_counter() - started
            yield batch
            self.tell()

    def _delete_missing(self) -> None:
        ledger, most = self.stages.ledger, self.settings.max_delete
        seen = ledger.seen or IdSet()
        gone = delete_missing(self._store, seen, self.report, known=ledger.known, most=most)
        for _ in gone:
            self.tell()
            if self.stop.is_set():
                return


def _schema(encoder: Encoder | None, settings: IngestSettings, width: int | None) -> StoreSchema:
    if encoder is None:
        return StoreSchema(dim=width or 0, cuts=settings.cuts or (width or 0,))
    cuts = settings.cuts or tuple(sorted({encoder.cuts[0], encoder.dim}))
    if not set(cuts) <= set(encoder.cuts) or encoder.dim not in cuts:
        valid = ", ".join(map(str, encoder.cuts))
        raise ConfigError(f"Invalid cuts={cuts}; valid: some of {valid}, with {encoder.dim}")
    return StoreSchema(encoder.dim, tuple(sorted(cuts)), encoder.fingerprint, encoder.name)


def _target(collection: Collection, schema: StoreSchema, *, dry_run: bool) -> Store:
    """The store to write to; for a dry run on nothing, an empty one that nobody keeps."""
    if dry_run:
        try:
            _ = collection.store  # open what is there: `writable` would make what is not
        except StoreNotFound:
            return open_store("memory://", schema)
    store = collection.writable(schema)
    if not dry_run:
        declare_hash(store)
    return store
