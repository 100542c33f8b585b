"""One store and the model that fills it, as far as they are read: searches of every kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nexus_vdb.chunking import chunk_id
from nexus_vdb.errors import ConfigError, FingerprintMismatch, StoreError, StoreNotFound
from nexus_vdb.filters import Filter, parse_filter
from nexus_vdb.finding import Search
from nexus_vdb.fusion import DEPTH
from nexus_vdb.hits import Hits, Overview
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.registry import open_store
from nexus_vdb.request import Request
from nexus_vdb.search import (
    EXACT_BELOW,
    Candidates,
    check_model,
    make_plan,
    stored_hash,
    vector_queries,
)
from nexus_vdb.types import Floats, QueryBatch, Records, SearchPlan

if TYPE_CHECKING:
    from nexus_vdb.connectors.bm25 import WordIndex

__all__ = ["Reader", "Where"]

R = TypeVar("R", bound="Reader")

Where = Mapping[str, Any]

_INFO_SECONDS = 30.0
"""How long what a store says of itself is taken as true: a server is not asked at every search."""

_LOOKS = 20
"""How often documents are read anew when a writer changes them meanwhile."""

_INGEST_FIRST = "fill it first: nexus-vdb ingest SOURCE --store URL"


class Reader:
    """A store that is searched; `Collection` is one that is also written to.

    Several threads may read at once.

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
        self._info: tuple[float, Overview] | None = None
        self._words: WordIndex | None = None
        self._opening = threading.RLock()

    def search(
        self,
        text: str,
        *,
        k: int = 10,
        where: Where | None = None,
        offset: int | None = None,
        score_threshold: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        hybrid: bool = False,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> Hits:
        """The k chunks, or documents, nearest to a text, best first; see `search_batch`."""
        return self.search_batch(
            [text],
            k=k,
            where=where,
            offset=offset,
            score_threshold=score_threshold,
            group_by=group_by,
            group_size=group_size,
            hybrid=hybrid,
            candidates=candidates,
            dim=dim,
        )[0]

    def search_batch(
        self,
        texts: Sequence[str],
        *,
        k: int = 10,
        where: Where | None = None,
        offset: int | None = None,
        score_threshold: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        hybrid: bool = False,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> list[Hits]:
        """The k chunks, or documents, nearest to each text.

        Args:
            texts: Questions, phrases, names.
            k: Hits for each; documents where they are grouped.
            where: A filter on metadata; see `nexus_vdb.filters`.
            offset: Leave out so many first: 0, k, 2k … are pages. All pages down to 1,000 hits are
                cut from one list, which reads deeper than a search without an offset.
            score_threshold: Leave out hits with a lower score, a cosine.
            group_by: "document" for the k best documents instead of chunks.
            group_size: So many chunks of each document, the best first; they stand together.
            hybrid: Fuse with a search by words (BM25); see `nexus_vdb.fusion`. Scores are then
                shares of the best, up to 1. Needs the extra "hybrid".
            candidates: How many records the hash lets through to the rerank; "auto" picks them for
                98 % of the exact answer, "exact" compares all.
            dim: Width at which vectors are compared: 768, 512 or 256.

        Raises:
            ConfigError: a text is empty, or an option has a wrong value.
            FilterError: the filter cannot be understood.
            StoreError: nothing is stored there, or the store fails.
            FingerprintMismatch: the store was filled by another model.
        """
        request = Request(k, offset, group_by, group_size, score_threshold)
        if hybrid and score_threshold is not None:
            raise ConfigError("score_threshold is a cosine, and hybrid scores are none")
        started = time.perf_counter()
        queries = self.embed(texts)
        timings = {"embed": _milliseconds(started)}
        search = self._search(queries, request, where, candidates, dim)
        if hybrid:
            started = time.perf_counter()
            words = self._word_index().search(self.store, texts, DEPTH, search.where)
            search = replace(search, words=words)
            timings["words"] = _milliseconds(started)
        return search.run(timings)

    def search_vectors(
        self,
        vectors: Floats,
        *,
        k: int = 10,
        where: Where | None = None,
        offset: int | None = None,
        score_threshold: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> list[Hits]:
        """As `search_batch`, for ready-made query vectors float32 `[q, d]`.

        In a store whose hash comes from a model the search is exact: only the model makes the
        logits of a query.
        """
        request = Request(k, offset, group_by, group_size, score_threshold)
        if self.info().meta.get("hash") == "model":
            candidates = "exact"
        queries = vector_queries(np.atleast_2d(vectors), stored_hash(self.info()))
        return self._search(queries, request, where, candidates, dim).run({})

    def search_like(
        self,
        id_: str,
        *,
        k: int = 10,
        where: Where | None = None,
        offset: int | None = None,
        score_threshold: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> Hits:
        """More like the stored document, or chunk, of this id; the document itself is left out.

        The query is the mean of its vectors, so the model is not needed, except by a large store
        whose hash comes from it. For the options see `search_batch`.

        Raises:
            ConfigError: there is no such document, or an option has a wrong value.
        """
        records = self.get([id_])
        records = records if len(records) else self.store.get([id_])
        if not len(records):
            raise ConfigError(
                f"{self.url} has no document {id_!r}", hint="give an id that a search prints"
            )
        own = self.get([records.document_ids[0]])
        without = frozenset(own.document_ids)
        request = Request(
            k, offset, group_by, group_size, score_threshold, without=without, spare=len(own)
        )
        queries = self._like(records)
        if queries is None:
            candidates = "exact"
            queries = vector_queries(_mean(records), None)
        return self._search(queries, request, where, candidates, dim).run({})[0]

    def _search(
        self,
        queries: QueryBatch,
        request: Request,
        where: Where | None,
        candidates: Candidates,
        dim: int | None,
    ) -> Search:
        tree = parse_filter(where)
        matching = self._matching(tree) if candidates == "auto" else None

        def plan_of(k: int) -> SearchPlan:
            return self._plan(k, candidates, dim, matching)

        return Search(self.store, self.info(), queries, request, plan_of, tree, matching)

    def _word_index(self) -> WordIndex:
        # Here, for it brings in a library that is an extra.
        from nexus_vdb.connectors.bm25 import word_index

        with self._opening:
            self._words = word_index(self.store, self._words)
            return self._words

    def _like(self, records: Records) -> QueryBatch | None:
        """The mean of records as a query; None if there can be no hash of it."""
        info = self.info()
        if info.meta.get("hash") != "model":
            return vector_queries(_mean(records), stored_hash(info))
        if info.count <= EXACT_BELOW or self.encoder.fingerprint != info.schema.fingerprint:
            return None
        made = self.encoder.encode(records.texts)
        logits = made.hash_logits.mean(axis=0, keepdims=True)
        return QueryBatch(vector_queries(_mean(records), None).vectors, logits, made.codes[:1])

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
        queries, itq = self.encoder.encode(texts), stored_hash(info)
        if itq is None and info.schema.fingerprint:
            return queries
        return vector_queries(queries.vectors, itq)

    def plan(
        self,
        *,
        k: int = 10,
        where: Where | None = None,
        candidates: Candidates = "auto",
        dim: int | None = None,
    ) -> SearchPlan:
        """How a search would be carried out, with "auto" resolved."""
        matching = self._matching(parse_filter(where)) if candidates == "auto" else None
        return self._plan(k, candidates, dim, matching)

    def _plan(
        self, k: int, candidates: Candidates, dim: int | None, matching: int | None
    ) -> SearchPlan:
        return make_plan(
            self.info(),
            k=k,
            candidates=candidates,
            dim=dim,
            valid_dims=self._encoder.cuts if self._encoder else (),
            matching=matching,
        )

    def _matching(self, tree: Filter | None) -> int | None:
        """How many records a filter leaves, where that decides anything."""
        counted = tree is not None and self.info().count > EXACT_BELOW
        return self.store.count(tree) if counted else None

    def get(self, ids: Sequence[str]) -> Records:
        """The chunks of these documents, in their order; unknown documents are left out."""
        for _ in range(_LOOKS):
            stored = self.store.fingerprints(ids)
            records = self.store.get(_chunk_ids(ids, stored))
            # A writer may have committed between the two: then they tell of different versions.
            if _fingerprints(records) == stored:
                break
        return records

    def info(self) -> Overview:
        """What is stored; at most half a minute old, except for changes made here."""
        known = self._info
        if known is None or time.monotonic() - known[0] > _INFO_SECONDS:
            known = self._info = (time.monotonic(), Overview.of(self.store.info()))
        return known[1]

    @property
    def count(self) -> int:
        """Records stored just now."""
        return self.store.count()

    @property
    def store(self) -> Store:
        """The store itself.

        Raises:
            StoreNotFound: nothing is stored at the URL.
        """
        with self._opening:
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
        with self._opening:
            if self._encoder is None:
                # Here, for it brings in ONNX Runtime, which not everything needs.
                from nexus_vdb.encoder import load_encoder

                self._encoder = load_encoder(self._model)
            return self._encoder

    def close(self) -> None:
        """Release the store; a second call does nothing."""
        if self._store is not None:
            self._store.close()
        self._store = self._info = self._words = None

    def __enter__(self: R) -> R:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _chunk_ids(self, document_ids: Sequence[str]) -> list[str]:
        return _chunk_ids(document_ids, self.store.fingerprints(document_ids))


def _chunk_ids(document_ids: Sequence[str], stored: Mapping[str, Mapping[int, str]]) -> list[str]:
    return [
        chunk_id(document_id, ordinal)
        for document_id in dict.fromkeys(document_ids)
        for ordinal in sorted(stored.get(document_id, ()))
    ]


def _fingerprints(records: Records) -> dict[str, dict[int, str]]:
    """What a store's `fingerprints` says of these documents."""
    found: dict[str, dict[int, str]] = {}
    columns = zip(
        records.document_ids, records.ordinals.tolist(), records.content_hashes, strict=True
    )
    for document_id, ordinal, digest in columns:
        found.setdefault(document_id, {})[ordinal] = digest
    return found


def _mean(records: Records) -> Floats:
    return np.asarray(records.vectors.mean(axis=0, keepdims=True), dtype=np.float32)


def _milliseconds(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 3)
