"""The ingest job: corpus → store, with the store itself as the ledger of what is done.

Every record carries a digest of its document and of how it was embedded. A document whose records
all carry the digest it has now is left alone; any other is embedded anew, its ordinal 0 written
after its other chunks and its surplus chunks deleted last. A kill at any point therefore leaves
each document either done or recognisably not, and the same command again finishes the job.

Stages: read → plan → chunk (one thread) → embed (another) → write (the caller's).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import Field

from nexus_vdb.chunking import Chunker, chunk_id
from nexus_vdb.collection import Collection
from nexus_vdb.corpus import FieldMap, IdSet, open_corpus
from nexus_vdb.errors import ConfigError, SourceError, StoreNotFound
from nexus_vdb.hashing import pack
from nexus_vdb.interfaces import Encoder, Source, Store, SupportsOptimize, SupportsVectors
from nexus_vdb.pipelines._ingest_parts import (
    PART,
    Part,
    Pending,
    digest,
    groups,
    part_records,
    whole,
)
from nexus_vdb.quarantine import Quarantine
from nexus_vdb.registry import open_store
from nexus_vdb.reports import IngestReport
from nexus_vdb.search import (
    calibrate,
    fit_hash,
    has_hash,
    needs_calibration,
    opening_words,
    stored_hash,
    vector_queries,
)
from nexus_vdb.settings import Settings, make_settings
from nexus_vdb.stages import ahead, slices
from nexus_vdb.types import Chunk, Document, Floats, QueryBatch, Records, StoreSchema

__all__ = ["IngestSettings", "OnError", "ingest", "make_ingest"]

_READ = 512  # documents asked for in one call
_DELETE = 1000
_TIDY = 5  # a store that has grown by a fifth is worth tidying up


class OnError(str, Enum):
    """What to do about a row that is no document."""

    QUARANTINE = "quarantine"
    FAIL = "fail"


class IngestSettings(Settings):
    """Everything an ingest depends on; the keys of `configs/ingest.toml`."""

    sources: list[str] = []
    store: str = ""
    model: str | None = None
    id_field: str = "id"
    text_field: str = "text"
    title_field: str = "title"
    vector_field: str | None = None
    chunk_tokens: int = Field(256, ge=8)
    chunk_overlap: int = Field(32, ge=0)
    cuts: tuple[int, ...] | None = None
    delete_missing: bool = False
    max_delete: float = Field(0.1, ge=0, le=1)
    dry_run: bool = False
    on_error: OnError = OnError.QUARANTINE
    quarantine: Path | None = Path("quarantine.jsonl")

    def fields(self) -> FieldMap:
        """Which field of a row means what."""
        return FieldMap(self.id_field, self.text_field, self.title_field, self.vector_field)


def make_ingest(options: Mapping[str, Any]) -> IngestSettings:
    """Settings from options.

    Raises:
        ConfigError: one has a wrong value.
    """
    return make_settings(IngestSettings, options)


Progress: TypeAlias = Callable[[IngestReport], None]
Batch: TypeAlias = tuple[list[Document], "Floats | None"]


def ingest(
    collection: Collection,
    settings: IngestSettings,
    *,
    source: Source | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> IngestReport:
    """Bring the collection up to date with a corpus.

    Args:
        collection: Where to write.
        settings: See `IngestSettings`.
        source: Read instead of `settings.sources`.
        progress: Called with the growing report, from more than one thread but never at once.
        stop: Once set, the batch in hand is finished and the rest left for the next run.

    Raises:
        SourceError: the corpus cannot be read, has no documents, or a bad row is not tolerated.
        ConfigError: an option has a wrong value.
        FingerprintMismatch: the store was filled by another model.
    """
    started = time.perf_counter()
    source = source or open_corpus(settings.sources, settings.fields())
    report = IngestReport(total=source.size(), dry_run=settings.dry_run)
    path = None if settings.dry_run else settings.quarantine
    with Quarantine(path, fail=settings.on_error is OnError.FAIL) as bad_rows:
        batches = _read(source, settings, bad_rows, report)
        first = next(batches, None)
        if first is None and not report.quarantined:
            raise SourceError(f"no documents in {', '.join(settings.sources) or 'the corpus'}")
        if first is not None:
            job = _Job(collection, settings, report, width=_width(first), progress=progress)
            job.run(chain([first], batches), stop or threading.Event())
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def _read(
    source: Source, settings: IngestSettings, bad_rows: Quarantine, report: IngestReport
) -> Iterator[Batch]:
    if settings.vector_field is None:
        batches: Iterator[Batch] = (
            (documents, None) for documents in source.read(batch_size=_READ, on_bad_row=bad_rows)
        )
    elif isinstance(source, SupportsVectors):
        batches = source.read_with_vectors(batch_size=_READ, on_bad_row=bad_rows)
    else:
        raise ConfigError("this source has no ready-made vectors", hint="drop --vector-field")
    for documents, vectors in batches:
        report.quarantined = bad_rows.count
        report.read += len(documents)
        yield documents, vectors
    report.quarantined = bad_rows.count


def _width(batch: Batch) -> int | None:
    return None if batch[1] is None else batch[1].shape[1]


class _Job:
    """One run over a corpus that has at least one document."""

    def __init__(
        self,
        collection: Collection,
        settings: IngestSettings,
        report: IngestReport,
        *,
        width: int | None,
        progress: Progress | None,
    ) -> None:
        self._settings = settings
        self._report = report
        self._progress = progress
        self._encoder = collection.encoder if width is None else None
        self._chunker = _chunker(self._encoder, settings)
        schema = _schema(self._encoder, settings, width)
        self._store = _target(collection, schema, dry_run=settings.dry_run)
        self._how = [schema.fingerprint, settings.chunk_tokens, settings.chunk_overlap]
        self._itq = stored_hash(self._store.info())
        self._seen = IdSet()
        # Planning asks the store from one thread while another writes to it.
        self._store_lock = threading.Lock()
        self._progress_lock = threading.Lock()

    def run(self, batches: Iterator[Batch], stop: threading.Event) -> None:
        """Read to the end, or until told to stop."""
        with ExitStack() as stack:
            parts = stack.enter_context(closing(ahead(self._parts(groups(self._plan(batches))))))
            made = stack.enter_context(closing(ahead(self._embed(parts))))
            for part in parts if self._settings.dry_run else self._write(made):
                self._report.embedded += part.finished
                self._report.chunks += len(part.chunks)
                self._tell()
                if stop.is_set():
                    self._report.interrupted = True
                    return
        self._finish()

    def _plan(self, batches: Iterator[Batch]) -> Iterator[Pending]:
        """Pass on what the store does not have as it is now."""
        for documents, vectors in batches:
            with self._store_lock:
                stored = self._store.fingerprints([document.id for document in documents])
            for row, document in enumerate(documents):
                vector = None if vectors is None else vectors[row]
                now = digest(document, vector, self._how)
                there = stored.get(document.id, {})
                if self._settings.delete_missing:
                    self._seen.add(document.id)
                if 0 in there and set(there.values()) == {now}:
                    self._report.skipped += 1
                else:
                    yield Pending(document, now, there, vector)
            self._tell()

    def _parts(self, batches: Iterator[list[Pending]]) -> Generator[Part, None, None]:
        """Cut documents into chunks; those of ordinal 0 come in parts of their own, last."""
        for group in batches:
            pending = {one.document.id: one for one in group}
            chunks = self._chunks(group)
            counts = Counter(chunk.document_id for chunk in chunks)
            for heads in (False, True):
                kept = [chunk for chunk in chunks if (chunk.ordinal == 0) is heads]
                for some in slices(kept, PART):
                    yield self._part(some, pending, counts)

    def _chunks(self, group: list[Pending]) -> list[Chunk]:
        documents = [one.document for one in group]
        if self._chunker is None:
            return [whole(document) for document in documents]
        return list(self._chunker.chunk_all(documents))

    def _part(
        self, chunks: Sequence[Chunk], pending: Mapping[str, Pending], counts: Mapping[str, int]
    ) -> Part:
        of = [pending[chunk.document_id] for chunk in chunks]
        stale = [
            chunk_id(chunk.document_id, ordinal)
            for chunk, one in zip(chunks, of, strict=True)
            for ordinal in one.stored
            if chunk.ordinal == 0 and ordinal >= counts[chunk.document_id]
        ]
        finished = sum(chunk.ordinal == 0 for chunk in chunks)
        # A run that was cut off may have written some chunks of a document already.
        new = [
            (chunk, one)
            for chunk, one in zip(chunks, of, strict=True)
            if one.stored.get(chunk.ordinal) != one.digest
        ]
        chunks, digests = [chunk for chunk, _ in new], [one.digest for _, one in new]
        texts = [self._chunker.embedding_text(chunk) for chunk in chunks] if self._chunker else []
        vectors = [one.vector for _, one in new if one.vector is not None]
        return Part(chunks, digests, texts, vectors, stale, finished)

    def _embed(self, parts: Iterator[Part]) -> Generator[tuple[Part, Records | None], None, None]:
        for part in parts:
            if not part.chunks:
                yield part, None
                continue
            if self._encoder is not None:
                queries = self._encoder.encode(part.texts)
            else:
                queries = vector_queries(np.stack(part.vectors), None)  # coded when written
            yield part, part_records(part, queries)

    def _write(self, made: Iterator[tuple[Part, Records | None]]) -> Iterator[Part]:
        for part, records in made:
            with self._store_lock:
                if records is not None:
                    self._store.upsert(self._coded(records))
                if part.stale:
                    self._store.delete(ids=part.stale)
                if self._encoder is None and self._itq is None:
                    self._itq = fit_hash(self._store)
            yield part

    def _coded(self, records: Records) -> Records:
        if self._itq is None:
            return records
        return replace(records, codes=pack(self._itq.logits(records.vectors)))

    def _finish(self) -> None:
        report, settings, store = self._report, self._settings, self._store
        if settings.delete_missing:
            _delete_missing(store, self._seen, settings, report)
        if settings.dry_run:
            return
        info = store.info()
        if isinstance(store, SupportsOptimize) and report.chunks * _TIDY > info.count:
            store.optimize()
        if needs_calibration(info):
            calibrate(store, self._queries)

    def _queries(self, records: Records) -> QueryBatch:
        if self._encoder is None:
            return vector_queries(records.vectors, self._itq)
        return self._encoder.encode(opening_words(records.texts))

    def _tell(self) -> None:
        if self._progress is not None:
            with self._progress_lock:
                self._progress(self._report)


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
    if schema.fingerprint and not dry_run and not has_hash(store.info()):
        store.set_meta("hash", "model")
    return store


def _delete_missing(
    store: Store, seen: IdSet, settings: IngestSettings, report: IngestReport
) -> None:
    """Delete what was not seen, if the corpus was read without a fault and it is not too much."""
    if report.quarantined:
        report.refusal = "nothing was deleted: bad rows may be documents that are still there"
        return
    there, missing, ids = IdSet(), set(), []
    documents = 0
    for records in store.scan():
        for key, document_id in zip(records.ids, records.document_ids, strict=True):
            documents += there.add(document_id)
            if document_id in missing or seen.add(document_id):
                missing.add(document_id)
                ids.append(key)
    if len(missing) > settings.max_delete * documents:
        report.refusal = (
            f"nothing was deleted: {len(missing):,} of {documents:,} documents are missing, "
            f"more than max_delete={settings.max_delete}"
        )
        return
    report.deleted = len(missing)
    if not settings.dry_run:
        for some in slices(ids, _DELETE):
            store.delete(ids=some)
