"""LangChain: any store as its `VectorStore`, the shipped model as its `Embeddings`.

    from langchain_core.documents import Document
    from nexus_vdb.connectors.langchain import NexusVectorStore

    notes = NexusVectorStore("faiss://./notes")
    notes.add_documents([Document("Statins lower cholesterol.", metadata={"year": 1987})])
    notes.similarity_search("cholesterol", k=1, filter={"year": {"$gte": 1950}})

Without other `Embeddings` a store is filled and searched by the model, as `nexus_vdb.open` does it:
by its own hash, and a text that is longer than the model sees is kept in chunks, which have the id
of their document in common. Other embeddings are kept as ready-made vectors, one for each text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np

from nexus_vdb.collection import Collection
from nexus_vdb.errors import ConfigError, FingerprintMismatch, MissingExtra, StoreNotFound
from nexus_vdb.interfaces import Encoder
from nexus_vdb.reader import Where
from nexus_vdb.types import Document as NexusDocument
from nexus_vdb.types import Hit

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.runnables.config import run_in_executor
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError as error:
    raise MissingExtra("langchain-core", extra="langchain") from error

__all__ = ["NexusEmbeddings", "NexusVectorStore"]


class NexusEmbeddings(Embeddings):
    """A model of this project as LangChain's `Embeddings`: unit vectors of 768 numbers.

    Args:
        model: Bundle name or folder; by default the bundle that is shipped.
        encoder: Used instead of loading a bundle.

    Attributes:
        encoder: The model itself.

    Raises:
        ModelError: there is no such bundle.
    """

    def __init__(self, model: str | None = None, *, encoder: Encoder | None = None) -> None:
        if encoder is None:
            # Here, for it brings in ONNX Runtime, which other embeddings do not need.
            from nexus_vdb.encoder import load_encoder

            encoder = load_encoder(model)
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text."""
        vectors: list[list[float]] = self.encoder.encode(texts).vectors.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text; queries and documents are embedded alike."""
        return self.embed_documents([text])[0]


class NexusVectorStore(VectorStore):
    """A collection as LangChain's `VectorStore`; scores are cosines, higher is better.

    What is awaited runs in threads, and its `Embeddings` are awaited, so nothing holds up the event
    loop. Reads may run beside one another and beside a write; writes wait for one another. A store
    that is not there is empty, and is made by the first write.

    Filters are those of `nexus_vdb.filters`: `{"year": {"$gte": 2020}, "lang": "en"}`. Metadata
    comes back as JSON values.

    Args:
        url: `faiss://PATH`, `qdrant://HOST:PORT/COLLECTION`, `qdrant-edge://PATH` or `memory://`.
        embedding: `NexusEmbeddings` by default.

    Attributes:
        collection: The collection beneath, for whatever LangChain has no word for.
    """

    def __init__(self, url: str, embedding: Embeddings | None = None) -> None:
        self._embedding = NexusEmbeddings() if embedding is None else embedding
        own = self._embedding if isinstance(self._embedding, NexusEmbeddings) else None
        self._own = own is not None
        self.collection = Collection(url, encoder=own.encoder if own else None)
        self._writing = threading.Lock()

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        url: str = "memory://",
        **kwargs: Any,
    ) -> NexusVectorStore:
        """A store at `url` with these texts, besides what it has already."""
        _refuse(kwargs)
        store = cls(url, embedding)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        url: str = "memory://",
        **kwargs: Any,
    ) -> NexusVectorStore:
        """As `from_texts`, awaited."""
        _refuse(kwargs)
        store = await run_in_executor(None, cls, url, embedding)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, replacing those of the same id; returns their ids.

        Args:
            texts: None of them empty.
            metadatas: One dict each.
            ids: A random one is given to each text without; of texts of the same id the last stays.
            batch_size: Given by LangChain's indexing, which has cut the batches itself.
            **kwargs: None are known.

        Raises:
            ConfigError: the lists differ in length, or an option is not known.
            SourceError: a text is empty.
            FingerprintMismatch: the store was filled by another model.
        """
        _refuse(kwargs)
        given, documents = _documents(texts, metadatas, ids)
        vectors = None
        if documents and not self._own:
            vectors = self._embedding.embed_documents([one.text for one in documents])
        self._write(documents, vectors)
        return given

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, awaited."""
        _refuse(kwargs)
        given, documents = _documents(texts, metadatas, ids)
        vectors = None
        if documents and not self._own:
            vectors = await self._embedding.aembed_documents([one.text for one in documents])
        await run_in_executor(None, self._write, documents, vectors)
        return given

    def _write(self, documents: list[NexusDocument], vectors: list[list[float]] | None) -> None:
        columns = None if vectors is None else np.array(vectors, dtype=np.float32)
        with self._writing:
            if columns is None:
                # Whoever uses LangChain has split the texts already.
                tokens = self.collection.encoder.max_tokens
                self.collection.add(documents, chunk_tokens=tokens)
            else:
                self.collection.add(documents, vectors=columns)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete texts by id, or all of them; ids that are not there are fine."""
        _refuse(kwargs)
        with self._writing, suppress(StoreNotFound):
            if ids is None:
                ids = _all_ids(self.collection)
            self.collection.delete(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The texts of these ids, in their order; unknown ids are left out."""
        try:
            found = self.collection.get(ids)
        except StoreNotFound:
            return []
        columns = zip(found.document_ids, found.texts, found.metadata, strict=True)
        return [Document(text, id=id_, metadata=metadata) for id_, text, metadata in columns]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Where | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k texts nearest to a query, best first.

        Raises:
            ConfigError: the query is empty, or an option is not known.
            FilterError: the filter cannot be understood.
            FingerprintMismatch: the store was filled by another model.
        """
        return _texts(self.similarity_search_with_score(query, k, filter=filter, **kwargs))

    async def asimilarity_search(
        self, query: str, k: int = 4, *, filter: Where | None = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search`, awaited."""
        return _texts(await self.asimilarity_search_with_score(query, k, filter=filter, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Where | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with the cosine of each text and the query."""
        _refuse(kwargs)
        if self._own:
            return _scored(self._hits(query, k, filter))
        return _scored(self._hits(self._embedding.embed_query(query), k, filter))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Where | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, awaited."""
        _refuse(kwargs)
        asked = query if self._own else await self._embedding.aembed_query(query)
        return _scored(await run_in_executor(None, self._hits, asked, k, filter))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Where | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k texts nearest to a vector of the store's `Embeddings`, best first."""
        _refuse(kwargs)
        return _texts(_scored(self._hits(embedding, k, filter)))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The k texts of the `fetch_k` nearest that are near the query and far from one another.

        Maximal marginal relevance: Carbonell and Goldstein 1998, doi:10.1145/290941.291025. With a
        `lambda_mult` of 1 only the query counts, with 0 only the other texts chosen.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter=filter, **kwargs
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, awaited."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter=filter, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        _refuse(kwargs)
        hits = self._hits(embedding, max(k, fetch_k), filter)
        rows = {hit.id: hit for hit in hits}
        records = self.collection.store.get(list(rows)) if rows else None
        if records is None:
            return []
        chosen = maximal_marginal_relevance(
            np.array(embedding, dtype=np.float32), list(records.vectors), lambda_mult, k
        )
        return _texts(_scored([rows[records.ids[row]] for row in chosen]))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _relevance

    def _hits(self, query: str | list[float], k: int, where: Where | None) -> Sequence[Hit]:
        """The hits of a text in a store of the model, or of a vector."""
        try:
            info = self.collection.info()
        except StoreNotFound:
            return []
        if not self._own and info.schema.fingerprint:
            raise FingerprintMismatch(
                f"{self.collection.url} was filled by {info.schema.model}, "
                f"not by {type(self._embedding).__name__}",
                hint="use NexusEmbeddings, or another store",
            )
        if not info.count:
            return []
        if isinstance(query, str):
            return self.collection.search(query, k=k, where=where)
        vectors = np.array([query], dtype=np.float32)
        return self.collection.search_vectors(vectors, k=k, where=where)[0]

    def close(self) -> None:
        """Release the store; it opens again when it is used."""
        self.collection.close()


def _documents(
    texts: Iterable[str],
    metadatas: list[dict[str, Any]] | None,
    ids: Sequence[str | None] | None,
) -> tuple[list[str], list[NexusDocument]]:
    """The id of every text; and a document for each id."""
    given = list(texts)
    for name, column in (("metadatas", metadatas), ("ids", ids)):
        if column is not None and len(column) != len(given):
            raise ConfigError(f"{len(column)} {name} for {len(given)} texts")
    keys = [id_ or str(uuid4()) for id_ in ids or [None] * len(given)]
    rows = zip(keys, given, metadatas or [{}] * len(given), strict=True)
    documents = {id_: NexusDocument(id_, text, metadata or {}) for id_, text, metadata in rows}
    return keys, list(documents.values())


def _all_ids(collection: Collection) -> list[str]:
    return list({id_: None for part in collection.store.scan() for id_ in part.document_ids})


def _scored(hits: Iterable[Hit]) -> list[tuple[Document, float]]:
    return [
        (Document(hit.text, id=hit.document_id, metadata=hit.metadata), hit.score) for hit in hits
    ]


def _texts(scored: Iterable[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in scored]


def _relevance(cosine: float) -> float:
    """A cosine as the share of 1 that LangChain's thresholds are given in."""
    return min(max((1 + cosine) / 2, 0.0), 1.0)


def _refuse(options: dict[str, Any]) -> None:
    """Options that nobody knows are mistakes: LangChain's signatures let any pass."""
    if options:
        raise ConfigError(
            f"unknown options: {', '.join(sorted(options))}", hint="a filter is given as filter={…}"
        )
