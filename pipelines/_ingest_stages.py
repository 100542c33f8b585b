"""The stages of an ingest as generators: plan → cut → embed → write; or ready-made → write.

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
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from nexus_vdb.chunking import Chunker, chunk_id
from nexus_vdb.hashing import pack
from nexus_vdb.idset import IdSet
from nexus_vdb.interfaces import Encoder, Store, SupportsConcurrentReads
from nexus_vdb.pipelines._ingest_parts import (
    GROUP,
    PART,
    Made,
    Part,
    Pending,
    digest,
    groups,
    how_made,
    is_done,
    joined,
    little_endian,
    packed,
    part_records,
    whole_records,
)
from nexus_vdb.reports import IngestReport
from nexus_vdb.tuning import coding_hash, fit_hash
from nexus_vdb.types import Chunk, Document, Floats, Records, StoreSchema

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings

__all__ = ["Batch", "Ledger", "Stages"]

Documents: TypeAlias = "list[Document]"
Batch: TypeAlias = "tuple[Documents, Floats | None]"
Stored: TypeAlias = "dict[str, dict[int, str]]"

_HELD = 4096
"""Chunks that wait to be written together: 12 MiB of vectors, 4 MB of text."""

_HELD_SECONDS = 1.0
"""Parts made within this time of the last write wait for the next one: a commit may take a store
as long as some hundred short texts take the encoder. A kill costs this much work and the part that
is being made."""

_VECTOR_BYTES, _VECTOR_ROWS = 96 << 20, 32_768
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
        self._rows = max(GROUP, min(_VECTOR_ROWS, _VECTOR_BYTES // (4 * schema.dim)))
        self._how = how_made(schema.fingerprint, settings.chunk_tokens, settings.chunk_overlap)
        self._itq = coding_hash(store.info())
        self._lock = threading.Lock()
        beside = isinstance(store, SupportsConcurrentReads)
        self._reading = nullcontext() if beside else self._lock

    def plan(self, batches: Iterable[Batch]) -> Iterator[Pending]:
        """Pass on what the store does not have as it is now."""
        for (documents, _), stored in self._compared(batches):
            for document in documents:
                now = digest(document, None, self._how)
                there = stored.get(document.id, {})
                if is_done(there, now):
                    self.report.skipped += 1
                else:
                    yield Pending(document, now, there)

    def _compared(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Stored]]:
        """Batches, each with the digests by ordinal that the store has of its documents."""
        for batch in batches:
            if self._stop.is_set():
                return
            ids = [document.id for document in batch[0]]
            with self._reading:
                stored = self.store.fingerprints(ids)
            self.ledger.known += len(stored)
            if self.ledger.seen is not None:
                self.ledger.seen.add_all(ids)
            yield batch, stored

    def ready_made(self, batches: Iterable[Batch]) -> Generator[list[Made], None, None]:
        """The records of ready-made vectors: one for each document, nothing to cut or to embed.

        In lists to be joined and written in one call: by whoever writes, who has less to do.
        """
        held: list[Made] = []
        for (documents, vectors), stored in self._compared(batches):
            assert vectors is not None
            if made := self._ready(documents, vectors, stored):
                held.append(made)
            if sum(one.chunks for one in held) >= self._rows:
                yield held
                held = []
        if held:
            yield held

    def _ready(self, documents: Documents, vectors: Floats, stored: Stored) -> Made | None:
        digests = [
            digest(document, vector, self._how)
            for document, vector in zip(documents, little_endian(vectors), strict=True)
        ]
        new = [
            row
            for row, document in enumerate(documents)
            if document.id not in stored or not is_done(stored[document.id], digests[row])
        ]
        self.report.skipped += len(documents) - len(new)
        if not new:
            return None
        if len(new) < len(documents):
            documents, digests = [documents[row] for row in new], [digests[row] for row in new]
            vectors = vectors[new]
        there = {one.id: stored[one.id] for one in documents if one.id in stored}
        self.ledger.growth += len(documents) - sum(map(len, there.values()))
        stale = [chunk_id(key, ordinal) for key in there for ordinal in there[key] if ordinal]
        return Made(whole_records(documents, digests, vectors), len(new), stale, len(new), False)

    def cut(self, pending: Iterable[Pending]) -> Generator[Part, None, None]:
        """Chunks, in parts that are embedded together."""
        yield from packed(self._documents(pending), PART)

    def _documents(self, pending: Iterable[Pending]) -> Iterator[tuple[Pending, list[Chunk]]]:
        """Documents with all of their chunks."""
        assert self._chunker is not None
        for group in groups(pending, GROUP):
            cut = self._chunker.chunk_all([one.document for one in group])
            of = {key: list(some) for key, some in groupby(cut, attrgetter("document_id"))}
            for one in group:
                chunks = of.get(one.document.id, [])
                self.ledger.growth += len(chunks) - len(one.stored)
                yield one, chunks

    def embed(self, parts: Iterable[Part]) -> Generator[Made, None, None]:
        """The records of each part."""
        assert self.encoder is not None
        assert self._chunker is not None
        for part in parts:
            started = time.perf_counter()
            texts = [self._chunker.embedding_text(chunk) for chunk in part.chunks]
            queries = self.encoder.encode(texts)
            self.report.embedding += time.perf_counter() - started
            yield Made.of(part, part_records(part, queries))

    def write(self, made: Iterable[Made]) -> Iterator[Made]:
        """Parts that are written, without their records; on an error what is made is kept."""
        held: list[Made] = []
        due = time.perf_counter() + _HELD_SECONDS
        try:
            for part in made:
                held.append(part)
                waits = part.goes_on or time.perf_counter() < due
                if not waits or sum(one.chunks for one in held) >= _HELD:
                    full, held = held, []
                    yield self._written(full)
                    due = time.perf_counter() + _HELD_SECONDS
        except Exception:
            if held:
                self._written(held)
            raise
        if held:
            yield self._written(held)

    def _written(self, held: list[Made]) -> Made:
        together = joined(held)
        started = time.perf_counter()
        self._put(together)
        self.report.writing += time.perf_counter() - started
        return replace(together, records=None)

    def _put(self, made: Made) -> None:
        with self._lock:
            if made.records is not None:
                self.store.upsert(self._coded(made.records))
            if made.stale:
                self.store.delete(ids=made.stale)
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
