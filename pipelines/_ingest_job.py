"""The stages of an ingest: read → plan → cut (one thread) → embed (another) → write (the caller's).

The order of writes: all chunks of a document that has no more than `_HELD` go in one call, with
those of other documents, and a store that writes such a call in pieces gets the first chunk of
each document last. Only then are surplus chunks of the old version deleted. So a search finds the
old version, then the new one; and a kill at any point leaves each document done or recognisably
not. The chunks of a longer document come in several calls, its first chunk still last: in between
a search finds parts of both versions, and the next run writes what is missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from nexus_vdb.chunking import Chunker
from nexus_vdb.collection import Collection
from nexus_vdb.corpus import IdSet
from nexus_vdb.errors import ConfigError, StoreNotFound
from nexus_vdb.hashing import pack
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.pipelines._ingest_finish import finish, reconcile
from nexus_vdb.pipelines._ingest_kept import keep_settings
from nexus_vdb.pipelines._ingest_missing import delete_missing
from nexus_vdb.pipelines._ingest_parts import (
    PART,
    Part,
    Pending,
    digest,
    groups,
    is_done,
    packed,
    part_records,
    whole,
)
from nexus_vdb.records import join_records
from nexus_vdb.registry import open_store
from nexus_vdb.reports import IngestReport
from nexus_vdb.search import vector_queries
from nexus_vdb.stages import ahead
from nexus_vdb.threads import one_blas_thread
from nexus_vdb.tuning import coding_hash, declare_hash, fit_hash
from nexus_vdb.types import Chunk, Document, Floats, Records, StoreSchema

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings

__all__ = ["Batch", "Job", "Progress"]

Batch: TypeAlias = "tuple[list[Document], Floats | None]"
Progress: TypeAlias = Callable[[IngestReport], None]

T = TypeVar("T")

_HELD = 4096
"""Chunks of one document that wait to be written together: 12 MiB of vectors, 4 MB of text."""

_VECTOR_BYTES, _VECTOR_ROWS = 12 << 20, 8192
"""Ready-made vectors written in one call: what a call costs by itself is shared by many."""


class Job:
    """One run over a corpus that has at least one document.

    Args:
        collection: Where to write.
        settings: See `IngestSettings`.
        report: Counts that grow.
        width: Of ready-made vectors; None to embed.
        progress: Told of the growing report.
        stop: Ends the run after the batch in hand.
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
        self._settings = settings
        self._report = report
        self._progress = progress
        self._stop = stop
        self._encoder = collection.encoder if width is None else None
        self._chunker = _chunker(self._encoder, settings)
        self._size = _rows_of(width) if width else PART
        schema = _schema(self._encoder, settings, width)
        self._store = _target(collection, schema, dry_run=settings.dry_run)
        if settings.sources and not settings.dry_run:
            keep_settings(self._store, settings)
        self._how = [schema.fingerprint, settings.chunk_tokens, settings.chunk_overlap]
        self._itq = coding_hash(self._store.info())
        self._seen = IdSet()
        self._known = 0  # documents of the corpus that the store had before
        self._expected = 0 if settings.dry_run else self._store.count()  # records in the end
        # Planning asks the store from one thread while another writes to it.
        self._store_lock = threading.Lock()
        self._progress_lock = threading.Lock()

    def run(self, batches: Iterator[Batch]) -> None:
        """Read to the end, or until told to stop."""
        with ExitStack() as stack:
            stack.enter_context(one_blas_thread())
            parts = stack.enter_context(closing(ahead(self._parts(self._plan(batches)))))
            made = stack.enter_context(closing(ahead(self._embed(parts))))
            for part in parts if self._settings.dry_run else self._write(made):
                self._report.embedded += part.finished
                self._report.chunks += len(part.chunks)
                self._tell()
                if self._stop.is_set():
                    break
        if not self._settings.dry_run and not self._stop.is_set():
            reconcile(self._store, self._expected)
        if self._settings.delete_missing and not self._stop.is_set():
            self._delete_missing()
        self._report.interrupted = self._stop.is_set()
        if not self._report.interrupted and not self._settings.dry_run:
            started = time.perf_counter()
            finish(self._store, self._encoder, written=self._report.chunks)
            self._report.finishing = time.perf_counter() - started

    def _plan(self, batches: Iterator[Batch]) -> Iterator[Pending]:
        """Pass on what the store does not have as it is now."""
        for documents, vectors in self._timed(batches, "reading"):
            if self._stop.is_set():
                return
            with self._store_lock:
                stored = self._store.fingerprints([document.id for document in documents])
            self._known += len(stored)
            for row, document in enumerate(documents):
                vector = None if vectors is None else vectors[row]
                now = digest(document, vector, self._how)
                there = stored.get(document.id, {})
                if self._settings.delete_missing:
                    self._seen.add(document.id)
                if is_done(there, now):
                    self._report.skipped += 1
                else:
                    yield Pending(document, now, there, vector)
            self._tell()

    def _parts(self, pending: Iterator[Pending]) -> Generator[Part, None, None]:
        yield from packed(self._cut(pending), self._size)

    def _cut(self, pending: Iterator[Pending]) -> Iterator[tuple[Pending, list[Chunk]]]:
        """Documents with all of their chunks."""
        for group in groups(pending, self._size):
            of = self._chunks([one.document for one in group])
            for one in group:
                chunks = of.get(one.document.id, [])
                self._expected += len(chunks) - len(one.stored)
                yield one, chunks

    def _chunks(self, documents: list[Document]) -> dict[str, list[Chunk]]:
        if self._chunker is None:
            return {document.id: [whole(document)] for document in documents}
        chunks = self._chunker.chunk_all(documents)
        return {key: list(some) for key, some in groupby(chunks, attrgetter("document_id"))}

    def _embed(self, parts: Iterator[Part]) -> Generator[tuple[Part, Records], None, None]:
        for part in parts:
            started = time.perf_counter()
            if self._encoder is None:
                vectors = np.stack(part.vectors) if part.vectors else self._no_vectors()
                queries = vector_queries(vectors, None)  # coded when written
                part.vectors.clear()
            else:
                queries = self._encoder.encode([self._text(chunk) for chunk in part.chunks])
            self._report.embedding += time.perf_counter() - started
            yield part, part_records(part, queries)

    def _text(self, chunk: Chunk) -> str:
        return self._chunker.embedding_text(chunk) if self._chunker else chunk.text

    def _no_vectors(self) -> Floats:
        return np.zeros((0, self._store.info().schema.dim), dtype=np.float32)

    def _write(self, made: Iterator[tuple[Part, Records]]) -> Iterator[Part]:
        held: list[tuple[Part, Records]] = []
        for part, records in made:
            held.append((part, records))
            if not part.goes_on or sum(len(one) for _, one in held) >= _HELD:
                started = time.perf_counter()
                self._put(_joined([one for _, one in held]), part.stale)
                self._report.writing += time.perf_counter() - started
                yield from (one for one, _ in held)
                held = []

    def _put(self, records: Records, stale: list[str]) -> None:
        with self._store_lock:
            self._store.upsert(self._coded(records))
            if stale:
                self._store.delete(ids=stale)
            if self._encoder is None and self._itq is None:
                self._itq = fit_hash(self._store)

    def _coded(self, records: Records) -> Records:
        if self._itq is None:
            return records
        return replace(records, codes=pack(self._itq.logits(records.vectors)))

    def _delete_missing(self) -> None:
        most = self._settings.max_delete
        gone = delete_missing(self._store, self._seen, self._report, known=self._known, most=most)
        for _ in gone:
            self._tell()
            if self._stop.is_set():
                return

    def _timed(self, items: Iterable[T], name: str) -> Iterator[T]:
        """The same items; the seconds it takes to make them are added to the report."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                spent = getattr(self._report, name) + time.perf_counter() - started
                setattr(self._report, name, spent)
            yield item

    def _tell(self) -> None:
        if self._progress is not None:
            with self._progress_lock:
                self._progress(self._report)


def _rows_of(width: int) -> int:
    """Ready-made vectors in one part."""
    return max(PART, min(_VECTOR_ROWS, _VECTOR_BYTES // (4 * width)))


def _joined(parts: list[Records]) -> Records:
    return parts[0] if len(parts) == 1 else join_records(parts)


def _chunker(encoder: Encoder | None, settings: IngestSettings) -> Chunker | None:
    if encoder is None:
        return None
    return Chunker(encoder, max_tokens=settings.chunk_tokens, overlap=settings.chunk_overlap)


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
