"""`open(url)`: one store and the model that fills it, as one object."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nexus_vdb.checks import check_schema
from nexus_vdb.errors import ConfigError, FingerprintMismatch
from nexus_vdb.filters import parse_filter
from nexus_vdb.given import GIVEN, GivenSource, as_documents
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.reader import Reader, Where
from nexus_vdb.registry import load_job, open_store
from nexus_vdb.reports import CopyReport, IngestReport
from nexus_vdb.types import Document, Floats, Metadata, StoreSchema

__all__ = ["Collection", "open"]


def open(url: str, *, model: str | None = None, encoder: Encoder | None = None) -> Collection:
    """A collection at a store URL; nothing is opened or loaded before it is needed.

    Args:
        url: `faiss://PATH`, `qdrant://HOST:PORT/COLLECTION`, `qdrant-edge://PATH` or `memory://`.
        model: Bundle name or folder; by default the bundle that is shipped.
        encoder: Used instead of loading a bundle.
    """
    return Collection(url, model=model, encoder=encoder)


class Collection(Reader):
    """Documents in a store, and the search over them; made by `open`, closed by `with` or `close`.

    Reading is in `Reader`, writing is here.

    Attributes:
        url: Where the store is.
    """

    def ingest(
        self,
        *sources: str | os.PathLike[str],
        id_field: str = "id",
        text_field: str = "text",
        title_field: str = "title",
        vector_field: str | None = None,
        chunk_tokens: int | None = None,
        chunk_overlap: int | None = None,
        delete_missing: bool = False,
        max_delete: float = 0.1,
        dry_run: bool = False,
        on_error: str = "quarantine",
        quarantine: str | os.PathLike[str] = "quarantine.jsonl",
        engine: str = "local",
        workers: int | None = None,
        ray_address: str | None = None,
        progress: Callable[[IngestReport], None] | None = None,
    ) -> IngestReport:
        """Bring the store up to date with a corpus: only what is new or changed is embedded.

        Args:
            *sources: Parquet or JSONL files, folders, globs, URLs.
            id_field: Field with the document's id.
            text_field: Field with its text.
            title_field: Field with its title; need not be there.
            vector_field: Field with ready-made vectors, taken instead of embedding.
            chunk_tokens: Longest chunk; by default as the last ingest had it, at first 192.
            chunk_overlap: Tokens that neighbouring chunks share at most; likewise, at first 24.
            delete_missing: Delete documents that the corpus does not have, if all of it was read.
            max_delete: Share of the documents that may be deleted so; more is refused.
            dry_run: Only count.
            on_error: "quarantine" sets bad rows aside, "fail" stops at the first.
            quarantine: JSONL file to which bad rows are appended.
            engine: "local" embeds in this process, "ray" over a Ray cluster (extra "ray").
            workers: Of Ray; by default one for each GPU, or core, of the cluster.
            ray_address: "HOST:PORT" or "auto"; by default Ray is started for this call.
            progress: Called with the growing report.

        Raises:
            ConfigError: an option has a wrong value.
            SourceError: the corpus cannot be read, or has no documents.
            FingerprintMismatch: the store was filled by another model.
        """
        options = {
            "sources": [os.fspath(source) for source in sources],
            "id_field": id_field,
            "text_field": text_field,
            "title_field": title_field,
            "vector_field": vector_field,
            **_said(chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap),
            "delete_missing": delete_missing,
            "max_delete": max_delete,
            "dry_run": dry_run,
            "on_error": on_error,
            "quarantine": Path(quarantine),
            "engine": engine,
            "workers": workers,
            "ray_address": ray_address,
        }
        return self._ingest(options, progress=progress)

    def add(
        self,
        documents: Sequence[str | Document],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
        vectors: Floats | None = None,
        chunk_tokens: int | None = None,
        chunk_overlap: int | None = None,
    ) -> list[str]:
        """Add documents or texts, replacing those of the same id; returns their ids.

        Args:
            documents: Texts, or `Document`s, which have ids and metadata themselves.
            ids: Of the texts; by default a digest of each, so that the same text is kept once.
            metadata: Of the texts.
            vectors: Ready-made, float32 `[n, d]`, taken instead of embedding.
            chunk_tokens: Longest chunk; by default as the last ingest had it, at first 192.
            chunk_overlap: Tokens that neighbouring chunks share at most; likewise, at first 24.

        Raises:
            ConfigError: the lists differ in length.
            SourceError: a document has no id or no text, or two have the same id.
        """
        given = as_documents(documents, ids=ids, metadata=metadata)
        if vectors is not None and len(vectors) != len(given):
            raise ConfigError(f"{len(vectors)} vectors for {len(given)} documents")
        options = {
            "vector_field": None if vectors is None else GIVEN.vector,
            **_said(chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap),
            "on_error": "fail",
        }
        if given:
            self._ingest(options, source=GivenSource(given, vectors))
        return [document.id for document in given]

    def _ingest(
        self,
        options: dict[str, Any],
        *,
        source: GivenSource | None = None,
        progress: Callable[[IngestReport], None] | None = None,
    ) -> IngestReport:
        job = load_job("ingest")
        try:
            report: IngestReport = job.ingest(
                self, job.make_ingest(options), source=source, progress=progress
            )
        finally:
            self._info = None
        return report

    def delete(self, ids: Sequence[str] | None = None, *, where: Where | None = None) -> int:
        """Delete documents by id, or whatever matches a filter; returns how many chunks went.

        Raises:
            ConfigError: both are given, or neither.
            FilterError: the filter cannot be understood, or is empty.
        """
        if (ids is None) == (where is None):
            raise ConfigError("delete takes document ids or a filter, and not both")
        if where is not None and not where:
            raise ConfigError("an empty filter would delete everything")
        try:
            if ids is not None:
                return self.store.delete(ids=self._chunk_ids(ids))
            return self.store.delete(where=parse_filter(where))
        finally:
            self._info = None

    def copy_to(self, url: str, *, verify: bool = False) -> CopyReport:
        """Copy every record to another store, which is made if need be; nothing is embedded.

        Raises:
            FingerprintMismatch: the other store was filled by another model.
        """
        with Collection(url) as target:
            report: CopyReport = load_job("copy").copy(self, target, verify=verify)
        return report

    def writable(self, schema: StoreSchema) -> Store:
        """The store, made if it is missing.

        Raises:
            DimensionMismatch: it holds vectors of another width.
            FingerprintMismatch: it was filled by another model, or one side is ready-made vectors.
        """
        self._info = None
        with self._opening:
            if self._store is None:
                self._store = open_store(self.url, schema)
        stored = self._store.info().schema
        check_schema(self.url, stored=stored, asked=schema)
        if bool(stored.fingerprint) != bool(schema.fingerprint):
            kind = stored.model or "a model" if stored.fingerprint else "ready-made vectors"
            raise FingerprintMismatch(
                f"{self.url} holds {kind}; the two cannot be compared",
                hint="use another store, or the same kind of vectors",
            )
        return self._store


def _said(**options: int | None) -> dict[str, int]:
    return {name: value for name, value in options.items() if value is not None}
