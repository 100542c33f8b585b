"""The stages of an ingest as generators: plan → cut → embed → write.

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
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from nexus_vdb.chunking import Chunker
from nexus_vdb.hashing import pack
from nexus_vdb.idset import IdSet
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.pipelines._ingest_parts import (
    PART,
    Made,
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
from nexus_vdb.reports import IngestReport
from nexus_vdb.search import vector_queries
from nexus_vdb.tuning import coding_hash, fit_hash
from nexus_vdb.types import Chunk, Document, Floats, Records, StoreSchema

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings

__all__ = ["Batch", "Ledger", "Stages"]

Batch: TypeAlias = "tuple[list[Document], Floats | None]"

_HELD = 4096
"""Chunks of one document that wait to be written together: 12 MiB of vectors, 4 MB of text."""

_VECTOR_BYTES, _VECTOR_ROWS = 12 << 20, 8192
"""Ready-made vectors written in one call: what a call costs by itself is shared by many."""


@dataclass(slots=True)
class Ledger:
    """What planning finds out, for the end of the run.

    Attributes:
        seen: Documents of the corpus, where somebody will ask which of them the store lacks.
        known: How many of them the store had before.
        growth: Records that the store will hold more than before.
    """

    seen: IdSet | None = None
    known: int = 0
    growth: int = 0


class Stages:
    """The stages, on one store.

    Args:
        store: Planning asks it from one thread while another writes to it.
        encoder: None for ready-made vectors.
        settings: See `IngestSettings`.
        schema: Of the store.
        report: Counts that grow.
        ledger: Likewise.
        stop: Ends the planning after the batch in hand.
    """

    def __init__(
        self,
        store: Store,
        encoder: Encoder | None,
        settings: IngestSettings,
        *,
        schema: StoreSchema,
        report: IngestReport,
        ledger: Ledger,
        stop: threading.Event | None = None,
    ) -> None:
        self.store = store
        self.encoder = encoder
        self.report = report
        self.ledger = ledger
        self._stop = stop or threading.Event()
        self._chunker = _chunker(encoder, settings)
        self._dim = schema.dim
        self._size = PART if encoder else _rows_of(schema.dim)
        self._how = [schema.fingerprint, settings.chunk_tokens, settings.chunk_overlap]
        self._itq = coding_hash(store.info())
        self._lock = threading.Lock()

    def plan(self, batches: Iterable[Batch]) -> Iterator[Pending]:
        """Pass on what the store does not have as it is now."""
        for documents, vectors in batches:
            if self._stop.is_set():
                return
            with self._lock:
                stored = self.store.fingerprints([document.id for document in documents])
            self.ledger.known += len(stored)
            for row, document in enumerate(documents):
                vector = None if vectors is None else vectors[row]
                now = digest(document, vector, self._how)
                there = stored.get(document.id, {})
                if self.ledger.seen is not None:
                    self.ledger.seen.add(document.id)
                if is_done(there, now):
                    self.report.skipped += 1
                else:
                    yield Pending(document, now, there, vector)

    def cut(self, pending: Iterable[Pending]) -> Generator[Part, None, None]:
        """Chunks, in parts that are embedded together."""
        yield from packed(self._documents(pending), self._size)

    def _documents(self, pending: Iterable[Pending]) -> Iterator[tuple[Pending, list[Chunk]]]:
        """Documents with all of their chunks."""
        for group in groups(pending, self._size):
            of = self._chunks([one.document for one in group])
            for one in group:
                chunks = of.get(one.document.id, [])
                self.ledger.growth += len(chunks) - len(one.stored)
                yield one, chunks

    def _chunks(self, documents: list[Document]) -> dict[str, list[Chunk]]:
        if self._chunker is None:
            return {document.id: [whole(document)] for document in documents}
        chunks = self._chunker.chunk_all(documents)
        return {key: list(some) for key, some in groupby(chunks, attrgetter("document_id"))}

    def embed(self, parts: Iterable[Part]) -> Generator[Made, None, None]:
        """The records of each part."""
        for part in parts:
            started = time.perf_counter()
            if self.encoder is None:
                vectors = np.stack(part.vectors) if part.vectors else self._no_vectors()
                queries = vector_queries(vectors, None)  # coded when written
                part.vectors.clear()
            else:
                queries = self.encoder.encode([self._text(chunk) for chunk in part.chunks])
            self.report.embedding += time.perf_counter() - started
            yield Made.of(part, part_records(part, queries))

    def _text(self, chunk: Chunk) -> str:
        return self._chunker.embedding_text(chunk) if self._chunker else chunk.text

    def _no_vectors(self) -> Floats:
        return np.zeros((0, self._dim), dtype=np.float32)

    def write(self, made: Iterable[Made]) -> Iterator[Made]:
        """Parts that are written, without their records."""
        held: list[Made] = []
        for part in made:
            held.append(part)
            if not part.goes_on or sum(one.chunks for one in held) >= _HELD:
                started = time.perf_counter()
                self._put(_joined(held), part.stale)
                self.report.writing += time.perf_counter() - started
                yield from (replace(one, records=None) for one in held)
                held = []

    def _put(self, records: Records, stale: list[str]) -> None:
        with self._lock:
            self.store.upsert(self._coded(records))
            if stale:
                self.store.delete(ids=stale)
            if self.encoder is None and self._itq is None:
                self._itq = fit_hash(self.store)

    def _coded(self, records: Records) -> Records:
        if self._itq is None:
            return records
        return replace(records, codes=pack(self._itq.logits(records.vectors)))


def _chunker(encoder: Encoder | None, settings: IngestSettings) -> Chunker | None:
    if encoder is None:
        return None
    return Chunker(encoder, max_tokens=settings.chunk_tokens, overlap=settings.chunk_overlap)


def _rows_of(width: int) -> int:
    """Ready-made vectors in one part."""
    return max(PART, min(_VECTOR_ROWS, _VECTOR_BYTES // (4 * width)))


def _joined(parts: list[Made]) -> Records:
    records = [part.records for part in parts if part.records is not None]
    return records[0] if len(records) == 1 else join_records(records)
