"""`open(url)`: one store and the model that fills it, as one object."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nexus_vdb.checks import check_schema
from nexus_vdb.chunking import chunk_id
from nexus_vdb.errors import ConfigError, FingerprintMismatch, StoreError, StoreNotFound
from nexus_vdb.filters import parse_filter
from nexus_vdb.given import GIVEN, GivenSource, as_documents
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.registry import load_job, open_store
from nexus_vdb.reports import CopyReport, IngestReport
from nexus_vdb.search import (
    EXACT_BELOW,
    Candidates,
    check_model,
    make_plan,
    stored_hash,
    vector_queries,
)
from nexus_vdb.types import (
    Document,
    Floats,
    Hit,
    Metadata,
    QueryBatch,
    Records,
    SearchPlan,
    StoreInfo,
    StoreSchema,
)

__all__ = ["Collection", "open"]

Where = Mapping[str, Any]

_INFO_SECONDS = 30.0
"""How long what a store says of itself is taken as true: a server is not asked at every search."""


def open(url: str, *, model: str | None = None, encoder: Encoder | None = None) -> Collection:
    """A collection at a store URL; nothing is opened or loaded before it is needed.

    Args:
        url: `faiss://PATH`, `qdrant://HOST:PORT/COLLECTION`, `qdrant-edge://PATH` or `memory://`.
        model: Bundle name or folder; by default the bundle that is shipped.
        encoder: Used instead of loading a bundle.
    """
    return Collection(url, model=model, encoder=encoder)


class Collection:
    """Documents in a store, and the search over them; made by `open`, closed by `with` or `close`.

    Attributes:
        url: Where the store is.
    """

    def __init__(
        self, url: str, *, model: str | None = None, encoder: Encoder | None = None
    ) -> None:
        self.url = url
        self._model = model
        self._encoder = encoder
        self._named = model is not None or encoder is not None
        self._store: Store | None = None
        self._info: tuple[float, StoreInfo] | None = None

    # Writing

    def ingest(
        self,
        *sources: str | os.PathLike[str],
        id_field: str = "id",
        text_field: str = "text",
        title_field: str = "title",
        vector_field: str | None = None,
        chunk_tokens: int = 256,
        chunk_overlap: int = 32,
        delete_missing: bool = False,
        max_delete: float = 0.1,
        dry_run: bool = False,
        on_error: str = "quarantine",
        quarantine: str | os.PathLike[str] = "quarantine.jsonl",
        progress: Callable[[IngestReport], None] | None = None,
    ) -> IngestReport:
        """Bring the store up to date with a corpus: only what is new or changed is embedded.

        Args:
            *sources: Parquet or JSONL files, folders, globs, URLs.
            id_field: Field with the document's id.
            text_field: Field with its text.
            title_field: Field with its title; need not be there.
            vector_field: Field with ready-made vectors, taken instead of embedding.
            chunk_tokens: Longest chunk.
            chunk_overlap: Tokens that neighbouring chunks share at most.
            delete_missing: Delete documents that the corpus does not have, if all of it was read.
            max_delete: Share of the documents that may be deleted so; more is refused.
            dry_run: Only count.
            on_error: "quarantine" sets bad rows aside, "fail" stops at the first.
            quarantine: JSONL file to which bad rows are appended.
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
            "chunk_tokens": chunk_tokens,
            "chunk_overlap": chunk_overlap,
            "delete_missing": delete_missing,
            "max_delete": max_delete,
            "dry_run": dry_run,
            "on_error": on_error,
            "quarantine": Path(quarantine),
        }
        job = load_job("ingest")
        report: IngestReport = job.ingest(self, job.make_ingest(options), progress=progress)
        return report

    def add(
        self,
        documents: Sequence[str | Document],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
        vectors: Floats | None = None,
        chunk_tokens: int = 256,
        chunk_overlap: int = 32,
    ) -> list[str]:
        """Add documents or texts, replacing those of the same id; returns their ids.

        Args:
            documents: Texts, or `Document`s, which have ids and metadata themselves.
            ids: Of the texts; by default a digest of each, so that the same text is kept once.
            metadata: Of the texts.
            vectors: Ready-made, float32 `[n, d]`, taken instead of embedding.
            chunk_tokens: Longest chunk.
            chunk_overlap: Tokens that neighbouring chunks share at most.

        Raises:
            ConfigError: the lists differ in length.
            SourceError: a document has no id or no text, or two have the same id.
        """
        given = as_documents(documents, ids=ids, metadata=metadata)
        if vectors is not None and len(vectors) != len(given):
            raise ConfigError(f"{len(vectors)} vectors for {len(given)} documents")
        options = {
            "vector_field": None if vectors is None else GIVEN.vector,
            "chunk_tokens": chunk_tokens,
            "chunk_overlap": chunk_overlap,
            "on_error": "fail",
        }
        if given:
            job = load_job("ingest")
            job.ingest(self, job.make_ingest(options), source=GivenSource(given, vectors))
        return [document.id for document in given]

    def delete(self, ids: Sequence[str] | None = None, *, where: Where | None = None) -> int:
        """Delete documents by id, or whatever matches a filter; returns how many chunks went.

        Raises:
            ConfigError: both are given, or neither.
            FilterError: the filter cannot be understood, or is empty.
        """
        if (ids is None) == (where is None):
            raise ConfigError("delete takes document ids or a filter, and not both")
        self._info = None
        if ids is not None:
            return self.store.delete(ids=self._chunk_ids(ids))
        if not where:
            raise ConfigError("an empty filter would delete everything")
        return self.store.delete(where=parse_filter(where))

    # Reading

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        where: Where | None = None,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> list[Hit]:
        """The k chunks nearest to a text, best first; see `search_batch`."""
        return self.search_batch([text], k=k, where=where, candidates=candidates, dim=dim)[0]

    def search_batch(
        self,
        texts: Sequence[str],
        *,
        k: int = 10,
        where: Where | None = None,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> list[list[Hit]]:
        """The k chunks nearest to each text.

        Args:
            texts: Questions, phrases, names.
            k: Hits for each.
            where: A filter on metadata; see `nexus_vdb.filters`.
            candidates: How many records the hash lets through to the rerank; "auto" picks them for
                98 % of the exact answer, "exact" compares all.
            dim: Width at which vectors are compared: 768, 512 or 256.

        Raises:
            ConfigError: a text is empty, or an option has a wrong value.
            FilterError: the filter cannot be understood.
            StoreError: nothing is stored there, or the store fails.
            FingerprintMismatch: the store was filled by another model.
        """
        queries = self.embed(texts)
        plan = self.plan(k=k, where=where, candidates=candidates, dim=dim)
        return self.store.search(queries, plan, parse_filter(where))

    def search_vectors(
        self,
        vectors: Floats,
        *,
        k: int = 10,
        where: Where | None = None,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> list[list[Hit]]:
        """As `search_batch`, for ready-made query vectors float32 `[q, d]`.

        In a store whose hash comes from a model the search is exact: only the model makes the
        logits of a query.
        """
        if self.info().meta.get("hash") == "model":
            candidates = "exact"
        queries = vector_queries(np.atleast_2d(vectors), stored_hash(self.info()))
        plan = self.plan(k=k, where=where, candidates=candidates, dim=dim)
        return self.store.search(queries, plan, parse_filter(where))

    def embed(self, texts: Sequence[str]) -> QueryBatch:
        """Texts as queries for this store.

        Raises:
            ConfigError: a text is empty.
            StoreError: the store is empty.
            ModelError: the store's vectors are not those of this model.
        """
        if isinstance(texts, str) or any(not text.strip() for text in texts):
            raise ConfigError("the query is empty", hint="ask for something in words")
        info = self.info()
        if not info.count:
            raise StoreError(f"{self.url} is empty", hint=_INGEST_FIRST)
        if not info.schema.fingerprint and not self._named:
            raise FingerprintMismatch(
                f"{self.url} holds ready-made vectors, not those of the shipped model",
                hint="search by vector, or name the model that made them",
            )
        check_model(info, self.encoder)
        queries = self.encoder.encode(texts)
        return (
            queries
            if info.schema.fingerprint
            else vector_queries(queries.vectors, stored_hash(info))
        )

    def plan(
        self,
        *,
        k: int = 10,
        where: Where | None = None,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> SearchPlan:
        """How a search would be carried out, with "auto" resolved."""
        info, tree = self.info(), parse_filter(where)
        counted = tree is not None and candidates == "auto" and info.count > EXACT_BELOW
        return make_plan(
            info,
            k=k,
            candidates=candidates,
            dim=dim,
            valid_dims=self._encoder.cuts if self._encoder else (),
            matching=self.store.count(tree) if counted else None,
        )

    def get(self, ids: Sequence[str]) -> Records:
        """The chunks of these documents, in their order; unknown documents are left out."""
        return self.store.get(self._chunk_ids(ids))

    def info(self) -> StoreInfo:
        """What is stored; at most half a minute old, except for changes made here."""
        if self._info is None or time.monotonic() - self._info[0] > _INFO_SECONDS:
            self._info = (time.monotonic(), self.store.info())
        return self._info[1]

    @property
    def count(self) -> int:
        """Records stored just now."""
        return self.store.count()

    def copy_to(self, url: str, *, verify: bool = False) -> CopyReport:
        """Copy every record to another store, which is made if need be; nothing is embedded.

        Raises:
            FingerprintMismatch: the other store was filled by another model.
        """
        with Collection(url) as target:
            report: CopyReport = load_job("copy").copy(self, target, verify=verify)
        return report

    # Parts

    @property
    def store(self) -> Store:
        """The store itself.

        Raises:
            StoreNotFound: nothing is stored at the URL.
        """
        if self._store is None:
            try:
                self._store = open_store(self.url)
            except StoreNotFound as error:
                raise StoreNotFound(str(error), hint=_INGEST_FIRST) from error
        return self._store

    @property
    def encoder(self) -> Encoder:
        """The model.

        Raises:
            ModelError: there is no such bundle.
        """
        if self._encoder is None:
            # Here, for it brings in ONNX Runtime, which not everything needs.
            from nexus_vdb.encoder import load_encoder

            self._encoder = load_encoder(self._model)
        return self._encoder

    def writable(self, schema: StoreSchema) -> Store:
        """The store, made if it is missing.

        Raises:
            DimensionMismatch: it holds vectors of another width.
            FingerprintMismatch: it was filled by another model, or one side is ready-made vectors.
        """
        self._info = None
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

    def close(self) -> None:
        """Release the store; a second call does nothing."""
        if self._store is not None:
            self._store.close()
        self._store = self._info = None

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _chunk_ids(self, document_ids: Sequence[str]) -> list[str]:
        stored = self.store.fingerprints(document_ids)
        return [
            chunk_id(document_id, ordinal)
            for document_id in dict.fromkeys(document_ids)
            for ordinal in sorted(stored.get(document_id, ()))
        ]


_INGEST_FIRST = "fill it first: nexus-vdb ingest SOURCE --store URL"
