"""The verify job: is the store what an ingest of the corpus would make of it now?

The corpus is read again, cut into chunks with the settings of the ingest, which the store keeps,
and compared with the digests that the store has of each document; then the store is read for what
the corpus does not have. Nothing is embedded, but for a few records if asked to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import TypeAlias

import numpy as np
from pydantic import Field

from nexus_vdb.chunking import Chunker, chunk_id
from nexus_vdb.collection import Collection
from nexus_vdb.corpus import IdSet, open_corpus
from nexus_vdb.errors import ConfigError
from nexus_vdb.interfaces import Source, SupportsVectors
from nexus_vdb.pipelines._ingest_kept import KEPT
from nexus_vdb.pipelines._ingest_parts import digest, how_made, little_endian, whole
from nexus_vdb.pipelines._verify_parts import Batch, Lowest, rank, share_or_count
from nexus_vdb.pipelines._verify_store import (
    Findings,
    Sampled,
    embed_again,
    look_at_vectors,
    look_for_extra,
    mend,
)
from nexus_vdb.pipelines.ingest import IngestSettings
from nexus_vdb.quarantine import Quarantine
from nexus_vdb.reports import VerifyReport
from nexus_vdb.settings import Settings, make_settings
from nexus_vdb.stages import slices
from nexus_vdb.types import Chunk, Document, Floats, Records, StoreInfo

__all__ = ["VerifySettings", "open_verified", "verify"]

_READ = 512

Progress: TypeAlias = Callable[[VerifyReport], None]


class VerifySettings(Settings):
    """Everything a verification depends on; what is None is as it was at the ingest."""

    sources: list[str] = []
    store: str = ""
    model: str | None = None
    id_field: str | None = None
    text_field: str | None = None
    title_field: str | None = None
    vector_field: str | None = None
    chunk_tokens: int | None = Field(None, ge=8)
    chunk_overlap: int | None = Field(None, ge=0)
    sample: str | None = None
    seed: int = 0
    deep: int = Field(0, ge=0)
    fix: bool = False
    max_delete: float = Field(0.1, ge=0, le=1)

    def of_ingest(self, info: StoreInfo) -> IngestSettings:
        """The settings with which the store was filled, and those given here over them."""
        kept = info.meta.get("ingest") or {}
        known = {name: kept[name] for name in KEPT if name in kept}
        given = {name: getattr(self, name) for name in KEPT}
        always = {
            "sources": self.sources,
            "store": self.store,
            "cuts": info.schema.cuts,
            "quarantine": None,
        }
        return make_settings(
            IngestSettings,
            known | {name: value for name, value in given.items() if value is not None} | always,
        )


def open_verified(settings: VerifySettings) -> Collection:
    """The collection to verify, with the model that its store names unless another is given.

    Raises:
        StoreNotFound: there is no store.
    """
    collection = Collection(settings.store, model=settings.model)
    named = collection.store.info().schema.model
    if settings.model is None and named:
        collection.close()
        collection = Collection(settings.store, model=named)
    return collection


def verify(
    collection: Collection,
    settings: VerifySettings,
    *,
    source: Source | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> VerifyReport:
    """Compare a store with its corpus, and mend it if asked to.

    Args:
        collection: What is looked at. Its model must be the one that the store names.
        settings: See `VerifySettings`.
        source: Read instead of `settings.sources`.
        progress: Called with the growing report.
        stop: Once set, the batch in hand is finished and the rest left out.

    Raises:
        StoreNotFound: there is no store.
        SourceError: the corpus cannot be read.
        ConfigError: an option has a wrong value.
        FingerprintMismatch: the store is to be mended with another model.
    """
    started = time.perf_counter()
    share_or_count(settings.sample)
    job = _Job(collection, settings, source, progress or (lambda _: None))
    job.run(stop or threading.Event())
    job.report.seconds = round(time.perf_counter() - started, 3)
    return job.report


class _Job:
    def __init__(
        self,
        collection: Collection,
        settings: VerifySettings,
        source: Source | None,
        progress: Progress,
    ) -> None:
        self._collection = collection
        self._settings = settings
        self._progress = progress
        self._info = info = collection.store.info()
        self._ingest = settings.of_ingest(info)
        self._source = source or open_corpus(settings.sources, self._ingest.fields())
        self._encoder = collection.encoder if self._ingest.vector_field is None else None
        self._chunker: Chunker | None = None
        if self._encoder is not None:
            tokens, overlap = self._ingest.chunk_tokens, self._ingest.chunk_overlap
            self._chunker = Chunker(self._encoder, max_tokens=tokens, overlap=overlap)
        self._seen = IdSet()
        self._deep: Lowest[tuple[Chunk, Floats | None]] = Lowest(settings.deep)
        self.report = VerifyReport(total=self._source.size())
        self._found = Findings(self.report)

    def run(self, stop: threading.Event) -> None:
        """Look at all there is to look at, or until told to stop; then mend."""
        report, bad_rows = self.report, Quarantine(None)
        for documents, vectors in self._sampled(self._batches(bad_rows)):
            self._compare(documents, vectors)
            self._progress(report)
            if stop.is_set():
                report.interrupted = True
                return
        report.share = report.checked / report.read if report.read else 0.0
        store, found = self._collection.store, self._found
        if self._settings.sample is None:
            look_for_extra(store, self._seen, found)
        embed_again(store, self._drawn(), self._encoder, found)
        self._progress(report)
        if self._settings.fix:
            mend(
                self._collection,
                found,
                source=self._source,
                settings=self._ingest,
                max_delete=self._settings.max_delete,
                stop=stop,
            )

    def _drawn(self) -> list[Sampled]:
        return [
            Sampled(chunk.id, self._chunker.embedding_text(chunk) if self._chunker else "", vector)
            for chunk, vector in self._deep.all()
        ]

    # Reading

    def _batches(self, bad_rows: Quarantine) -> Iterator[Batch]:
        batches: Iterator[Batch]
        if self._ingest.vector_field is None:
            read = self._source.read(batch_size=_READ, on_bad_row=bad_rows)
            batches = ((documents, None) for documents in read)
        elif isinstance(self._source, SupportsVectors):
            batches = self._source.read_with_vectors(batch_size=_READ, on_bad_row=bad_rows)
        else:
            raise ConfigError("this source has no ready-made vectors", hint="drop --vector-field")
        for documents, vectors in batches:
            self.report.read += len(documents)
            self.report.quarantined = bad_rows.count
            yield documents, vectors
        self.report.quarantined = bad_rows.count

    def _sampled(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        share, count = share_or_count(self._settings.sample)
        lowest: Lowest[tuple[Document, Floats | None]] = Lowest(count or 0)
        for documents, vectors in batches:
            ranks = [rank(document.id, self._settings.seed) for document in documents]
            rows = [row for row, at in enumerate(ranks) if at < share]
            if count is None:
                yield _rows(documents, vectors, rows)
                continue
            for row in rows:
                document, vector = documents[row], None if vectors is None else vectors[row]
                lowest.offer(ranks[row], (document, vector))
            self._progress(self.report)
        for some in slices(lowest.all(), _READ):
            given = [vector for _, vector in some if vector is not None]
            yield [document for document, _ in some], np.stack(given) if given else None

    # Comparing

    def _compare(self, documents: list[Document], vectors: Floats | None) -> None:
        stored = self._collection.store.fingerprints([document.id for document in documents])
        chunks: dict[str, list[Chunk]] = {document.id: [] for document in documents}
        for chunk in self._chunks(documents):
            chunks[chunk.document_id].append(chunk)
        self._seen.add_all([document.id for document in documents])
        given = repeat(None) if vectors is None else little_endian(vectors)
        for document, vector in zip(documents, given):  # noqa: B905 - one is endless
            self._judge(document, vector, stored.get(document.id, {}), chunks[document.id])
        self.report.checked += len(documents)
        if self._settings.sample is not None:
            ids = [chunk_id(key, ordinal) for key, there in stored.items() for ordinal in there]
            found = self._collection.store.get(ids)
            look_at_vectors(found.ids, found.document_ids, found.vectors, self._found)

    def _chunks(self, documents: list[Document]) -> list[Chunk]:
        if self._chunker is None:
            return [whole(document) for document in documents]
        return list(self._chunker.chunk_all(documents))

    def _judge(
        self,
        document: Document,
        vector: Floats | None,
        there: Mapping[int, str],
        chunks: list[Chunk],
    ) -> None:
        now = digest(document, vector, self._how(self._fingerprint()))
        if there and set(there.values()) != {now}:
            # A record that is none of its chunks may say that it is: ask for the chunks themselves.
            ids = [chunk_id(document.id, ordinal) for ordinal in there]
            records = self._collection.store.get(ids)
            there = dict(zip(records.ordinals.tolist(), records.content_hashes, strict=True))
            if set(there.values()) not in ({now}, set()):
                same = vector is None and self._same_content(document, records, chunks, now)
                return self._found.document("wrong_fingerprint" if same else "stale", document.id)
        if not there:
            return self._found.document("missing", document.id)
        if set(there) != set(range(len(chunks))):
            # An ingest takes a document without its first chunk for one that is not done.
            self._found.records.add(chunk_id(document.id, 0))
            return self._found.document("incomplete", document.id)
        if self._settings.deep:
            for chunk in chunks:
                self._deep.offer(rank(chunk.id, self._settings.seed), (chunk, vector))
        return None

    def _how(self, fingerprint: str) -> str:
        return how_made(fingerprint, self._ingest.chunk_tokens, self._ingest.chunk_overlap)

    def _fingerprint(self) -> str:
        return self._encoder.fingerprint if self._encoder else ""

    def _same_content(
        self, document: Document, stored: Records, chunks: list[Chunk], now: str
    ) -> bool:
        """Whether it is not the document that has changed, but how it was embedded."""
        otherwise = digest(document, None, self._how(self._info.schema.fingerprint))
        texts = {chunk.id: chunk.text for chunk in chunks}
        columns = (stored.ids, stored.content_hashes, stored.texts, stored.metadata)
        return all(
            found in (now, otherwise) or (text == texts.get(id_) and metadata == document.metadata)
            for id_, found, text, metadata in zip(*columns, strict=True)
        )


def _rows(documents: list[Document], vectors: Floats | None, rows: list[int]) -> Batch:
    if len(rows) == len(documents):
        return documents, vectors
    return [documents[row] for row in rows], None if vectors is None else vectors[rows]
