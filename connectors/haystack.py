"""Haystack: any store as a `DocumentStore`, with a retriever, and the shipped model as embedders.

    from haystack import Document, Pipeline
    from nexus_vdb.connectors.haystack import (
        NexusDocumentEmbedder, NexusDocumentStore, NexusEmbeddingRetriever, NexusTextEmbedder,
    )

    store = NexusDocumentStore("faiss://./notes")
    notes = [Document(content="Statins lower cholesterol.", meta={"year": 1987})]
    store.write_documents(NexusDocumentEmbedder().run(notes)["documents"])

    search = Pipeline()
    search.add_component("embed", NexusTextEmbedder())
    search.add_component("find", NexusEmbeddingRetriever(store, top_k=3))
    search.connect("embed.embedding", "find.query_embedding")
    search.run({"embed": {"text": "cholesterol"}})["find"]["documents"]

Embeddings may come from any model. They are kept as unit vectors of the store's precision, and come
back so. A pipeline that was written as YAML is read again by
`Pipeline.loads(text, allowed_modules=["nexus_vdb.connectors.haystack"])`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from nexus_vdb.collection import Collection
from nexus_vdb.connectors._haystack_filters import where_of
from nexus_vdb.connectors._haystack_model import Embedder
from nexus_vdb.connectors._haystack_records import (
    UNEMBEDDED,
    check_documents,
    document_of,
    kept,
    shown,
    vectors_of,
)
from nexus_vdb.errors import ConfigError, MissingExtra, StoreNotFound
from nexus_vdb.filters import parse_filter
from nexus_vdb.reader import Where
from nexus_vdb.records import join_records, no_records
from nexus_vdb.search import vector_queries
from nexus_vdb.types import Document as NexusDocument
from nexus_vdb.types import Floats, Records, SearchPlan

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
except ImportError as error:
    raise MissingExtra("haystack-ai", extra="haystack") from error

__all__ = [
    "NexusDocumentEmbedder",
    "NexusDocumentStore",
    "NexusEmbeddingRetriever",
    "NexusTextEmbedder",
]

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A method in a thread, so that the event loop goes on."""

    @wraps(method)
    async def awaited(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, *args, **kwargs)

    return awaited


class NexusDocumentStore:
    """A collection as Haystack's `DocumentStore`.

    Documents need text; such with a blob or a sparse embedding are refused. Documents without an
    embedding are kept, and left out when embeddings are searched. A store that is not there is
    empty, and is made by the first write. Reads may run beside one another and beside a write;
    writes wait for one another. Every method has a twin `…_async`, which is awaited.

    Args:
        url: `faiss://PATH`, `qdrant://HOST:PORT/COLLECTION`, `qdrant-edge://PATH` or `memory://`.
        embedding_dim: Width of the embeddings.

    Attributes:
        collection: The collection beneath, for whatever Haystack has no word for.
    """

    def __init__(self, url: str, *, embedding_dim: int = 768) -> None:
        self.url = url
        self.embedding_dim = embedding_dim
        self.collection = Collection(url)
        self._writing = threading.RLock()

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same store of."""
        made: dict[str, Any] = default_to_dict(self, url=self.url, embedding_dim=self.embedding_dim)
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NexusDocumentStore:
        """The inverse of `to_dict`."""
        store: NexusDocumentStore = default_from_dict(cls, data)
        return store

    def count_documents(self) -> int:
        """How many documents there are."""
        return self._count(None)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many documents match."""
        return self._count(where_of(filters))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, or all, in order of their ids.

        Raises:
            haystack.errors.FilterError: the filter cannot be understood.
        """
        records = self._records(where_of(filters))
        rows = sorted(range(len(records)), key=lambda row: records.document_ids[row])
        return [document_of(records, row) for row in rows]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents; returns how many were written.

        Args:
            documents: With text.
            policy: About ids that are there, or stand twice in the list: `FAIL` (which `NONE` is
                too) writes nothing then, `SKIP` keeps the first, `OVERWRITE` the last.

        Raises:
            ValueError: something else than a list of documents is given.
            DuplicateDocumentError: an id is there already.
            DocumentStoreError: a document has no text, or what cannot be kept.
            DimensionMismatch: an embedding is of another width than the store's.
        """
        check_documents(documents)
        with self._writing:
            chosen = self._chosen(documents, policy)
            self._write([kept(one) for one in chosen], vectors_of(chosen, self.embedding_dim))
            if any(one.embedding is None for one in chosen):
                self.collection.store.set_meta(UNEMBEDDED, True)
        return len(documents) if policy is DuplicatePolicy.OVERWRITE else len(chosen)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents by id; ids that are not there are fine."""
        with self._writing, suppress(StoreNotFound):
            self.collection.delete(document_ids)

    def delete_all_documents(self) -> None:
        """Delete every document."""
        self.delete_documents(self._records(None).document_ids)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that match; returns how many went."""
        where = where_of(filters)
        with self._writing, suppress(StoreNotFound):
            return self.collection.delete(where=where or {})
        return 0

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set fields of the metadata of all documents that match; returns how many there are."""
        with self._writing:
            records = self._records(where_of(filters))
            columns = zip(records.document_ids, records.texts, records.metadata, strict=True)
            documents = [NexusDocument(id_, text, {**old, **meta}) for id_, text, old in columns]
            self._write(documents, records.vectors)
        return len(documents)

    def embedding_retrieval(
        self,
        query_embedding: Sequence[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
    ) -> list[Document]:
        """The `top_k` documents nearest to an embedding, best first; scores are cosines.

        Raises:
            DimensionMismatch: the embedding is of another width than the store's.
            haystack.errors.FilterError: the filter cannot be understood.
        """
        where = where_of(filters)
        try:
            info = self.collection.info()
        except StoreNotFound:
            return []
        if not info.count or top_k < 1:
            return []
        if info.meta.get(UNEMBEDDED):
            embedded: Where = {UNEMBEDDED: {"$exists": False}}
            where = {"$and": [embedded, where]} if where else embedded
        vectors = np.array([query_embedding], dtype=np.float32)
        hits = self.collection.search_vectors(vectors, k=top_k, where=where)[0]
        vector_of: dict[str, Floats] = {}
        if return_embedding:
            records = self.collection.store.get([hit.id for hit in hits])
            vector_of = dict(zip(records.ids, records.vectors, strict=True))
        return [
            Document(
                id=hit.document_id,
                content=hit.text,
                meta=shown(hit.metadata),
                score=hit.score,
                embedding=vector_of[hit.id].tolist() if hit.id in vector_of else None,
            )
            for hit in hits
        ]

    count_documents_async = _awaited(count_documents)
    count_documents_by_filter_async = _awaited(count_documents_by_filter)
    filter_documents_async = _awaited(filter_documents)
    write_documents_async = _awaited(write_documents)
    delete_documents_async = _awaited(delete_documents)
    delete_all_documents_async = _awaited(delete_all_documents)
    delete_by_filter_async = _awaited(delete_by_filter)
    update_by_filter_async = _awaited(update_by_filter)
    embedding_retrieval_async = _awaited(embedding_retrieval)

    def close(self) -> None:
        """Release the store; it opens again when it is used."""
        self.collection.close()

    def _count(self, where: Where | None) -> int:
        try:
            return self.collection.store.count(parse_filter(where))
        except StoreNotFound:
            return 0

    def _records(self, where: Where | None) -> Records:
        """All records that match; found by a search for anything that is deep enough for all."""
        empty = no_records(self.embedding_dim)
        count = self._count(where)
        if not count:
            return empty
        store = self.collection.store
        if where is None:
            return join_records([empty, *store.scan()])
        plan = SearchPlan(k=count, candidates="exact", cuts=(self.embedding_dim,))
        anything = vector_queries(np.eye(1, self.embedding_dim, dtype=np.float32), None)
        return store.get([hit.id for hit in store.search(anything, plan, parse_filter(where))[0]])

    def _chosen(self, documents: list[Document], policy: DuplicatePolicy) -> list[Document]:
        """What of the documents is to be written, each id once."""
        if policy is DuplicatePolicy.OVERWRITE:
            return list({one.id: one for one in documents}.values())
        there: set[str] = set()
        with suppress(StoreNotFound):
            there = set(self.collection.store.fingerprints([one.id for one in documents]))
        chosen = []
        for one in documents:
            if one.id not in there:
                there.add(one.id)
                chosen.append(one)
            elif policy is not DuplicatePolicy.SKIP:
                raise DuplicateDocumentError(f"{self.url} has a document {one.id!r} already")
        return chosen

    def _write(self, documents: list[NexusDocument], vectors: Floats) -> None:
        if documents:
            self.collection.add(documents, vectors=vectors)


@component
class NexusEmbeddingRetriever:
    """Finds the documents of a `NexusDocumentStore` nearest to an embedding.

    Args:
        document_store: Where to look.
        filters: Haystack's, on metadata.
        top_k: Documents to find.
        return_embedding: Whether the documents come with their embeddings.
        filter_policy: Whether filters given to `run` replace these, or join them.

    Raises:
        ConfigError: `top_k` is not positive, or it is another kind of store.
    """

    def __init__(
        self,
        document_store: NexusDocumentStore,
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, NexusDocumentStore):
            raise ConfigError(f"{type(document_store).__name__} is no NexusDocumentStore")
        if top_k < 1:
            raise ConfigError(f"Invalid top_k={top_k}; valid: 1 or more")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.return_embedding = return_embedding
        self.filter_policy = FilterPolicy(filter_policy)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same retriever of."""
        made: dict[str, Any] = default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            return_embedding=self.return_embedding,
            filter_policy=self.filter_policy.value,
        )
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NexusEmbeddingRetriever:
        """The inverse of `to_dict`."""
        options = dict(data["init_parameters"])
        options["document_store"] = NexusDocumentStore.from_dict(options["document_store"])
        retriever: NexusEmbeddingRetriever = default_from_dict(
            cls, {**data, "init_parameters": options}
        )
        return retriever

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """The documents, best first; `filters` and `top_k` are taken instead of the component's."""
        documents = self.document_store.embedding_retrieval(
            query_embedding,
            filters=apply_filter_policy(self.filter_policy, self.filters, filters),
            top_k=self.top_k if top_k is None else top_k,
            return_embedding=self.return_embedding,
        )
        return {"documents": documents}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, awaited."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k)


@component
class NexusTextEmbedder(Embedder):
    """Embeds a text, such as a query, by a model of this project.

    Args:
        model: Bundle name or folder; by default the bundle that is shipped.
    """

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """The unit vector of the text, 768 numbers."""
        return {"embedding": self.embed([text])[0]}


@component
class NexusDocumentEmbedder(Embedder):
    """Embeds the texts of documents by a model of this project.

    Args:
        model: Bundle name or folder; by default the bundle that is shipped.
    """

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """The documents with unit vectors as embeddings; those given stay as they are."""
        embeddings = self.embed([one.content or "" for one in documents])
        pairs = zip(documents, embeddings, strict=True)
        return {"documents": [replace(one, embedding=vector) for one, vector in pairs]}
