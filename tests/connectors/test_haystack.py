from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
pytest.importorskip("haystack", reason="Haystack needs Python 3.11")

from haystack import Document, Pipeline
from haystack.dataclasses import ByteStream
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    DocumentStoreBaseExtendedTests,
)
from haystack.testing.document_store_async import (
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
)

import nexus_vdb as nx
from nexus_vdb.connectors.haystack import (
    NexusDocumentEmbedder,
    NexusDocumentStore,
    NexusEmbeddingRetriever,
    NexusTextEmbedder,
)


class Contract(DocumentStoreBaseExtendedTests, CountDocumentsByFilterTest):
    """What Haystack's suite asks of a store; what it leaves to the store is decided here."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """The same in order of id, embeddings as unit vectors of the store's precision."""
        ordered = sorted(expected, key=lambda one: str(one.id))
        assert [plain(one) for one in received] == [plain(one) for one in ordered]
        for one, other in zip(received, ordered, strict=True):
            assert (one.embedding is None) == (other.embedding is None)
            if one.embedding is not None and other.embedding is not None:
                unit = np.array(other.embedding) / np.linalg.norm(other.embedding)
                np.testing.assert_allclose(one.embedding, unit, rtol=0, atol=1e-3)

    def test_write_documents(self, document_store: Any) -> None:
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])
        assert document_store.filter_documents() == [document]


class AwaitedContract(
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
):
    """The same of the awaited twins."""

    async def test_write_documents_async(self, document_store: Any) -> None:
        document = Document(content="test doc")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])
        assert await document_store.filter_documents_async() == [document]


def plain(document: Document) -> dict[str, Any]:
    return {**document.to_dict(flatten=False), "embedding": None}


class TestFaiss(Contract, AwaitedContract):
    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[NexusDocumentStore]:
        store = NexusDocumentStore(f"faiss://{tmp_path}/index")
        yield store
        store.close()


class TestQdrantEdge(Contract):
    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[NexusDocumentStore]:
        pytest.importorskip("qdrant_edge")
        store = NexusDocumentStore(f"qdrant-edge://{tmp_path}/index")
        yield store
        store.close()


DOCUMENTS = [
    Document(id="a", content="one", embedding=[3, 0, 0], meta={"year": 2001, "tags": ["x", "y"]}),
    Document(id="b", content="two", embedding=[1, 1, 0], meta={"year": 2002, "by": {"name": "B"}}),
    Document(id="c", content="three", embedding=[0, 0, 2], meta={"day": "2020-01-01T00:00:00Z"}),
    Document(id="d", content="four", meta={"year": 2004}),
]


@pytest.fixture
def store() -> NexusDocumentStore:
    store = NexusDocumentStore("memory://", embedding_dim=3)
    assert store.write_documents(DOCUMENTS) == 4
    return store


def ids(documents: list[Document]) -> list[str]:
    return [one.id for one in documents]


def test_retrieval_leaves_out_what_has_no_embedding(store: NexusDocumentStore) -> None:
    found = store.embedding_retrieval([2, 0, 0], return_embedding=True)
    assert ids(found) == ["a", "b", "c"]
    assert [one.score for one in found] == pytest.approx([1, 0.5**0.5, 0], abs=1e-6)
    assert found[0].embedding == [1, 0, 0]
    assert found[0].meta == {"year": 2001, "tags": ["x", "y"]}
    assert store.embedding_retrieval([2, 0, 0], top_k=1)[0].embedding is None
    late = {"field": "meta.year", "operator": ">", "value": 2001}
    assert ids(store.embedding_retrieval([2, 0, 0], filters=late)) == ["b"]
    assert ids(asyncio.run(store.embedding_retrieval_async([0, 0, 1], top_k=1))) == ["c"]


def test_an_embedding_may_come_later(store: NexusDocumentStore) -> None:
    later = Document(id="d", content="four", embedding=[0, 1, 0])
    assert store.write_documents([later], DuplicatePolicy.OVERWRITE) == 1
    assert ids(store.embedding_retrieval([0, 1, 0], top_k=1)) == ["d"]


def compare(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (compare("year", "==", 2001), "a"),
        (compare("meta.by.name", "==", "B"), "b"),
        (compare("meta.tags", "==", "y"), "a"),
        (compare("meta.tags", "not in", ["y"]), "bcd"),
        (compare("meta.year", "in", [None, 2004]), "cd"),
        (compare("meta.year", "not in", [None, 2004]), "ab"),
        (compare("meta.day", ">", "2019-12-31"), "c"),
        ({"operator": "NOT", "conditions": [compare("meta.year", "<", 2003)]}, "cd"),
        (
            {
                "operator": "OR",
                "conditions": [
                    compare("meta.year", "==", None),
                    {
                        "operator": "AND",
                        "conditions": [
                            compare("meta.year", ">=", 2001),
                            compare("meta.year", "<=", 2001),
                        ],
                    },
                ],
            },
            "ac",
        ),
    ],
)
def test_filters(store: NexusDocumentStore, filters: dict[str, Any], expected: str) -> None:
    assert ids(store.filter_documents(filters)) == list(expected)
    assert store.count_documents_by_filter(filters) == len(expected)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (compare("content", "==", "one"), "no field of the metadata"),
        (compare("meta.year", "~", 1), "Invalid operator='~'; valid: =="),
        (compare("meta.year", "==", {"a": 1}), "cannot compare"),
        ({"operator": "XOR", "conditions": [compare("year", "==", 1)]}, "valid: AND, OR, NOT"),
        ({"operator": "AND", "conditions": []}, "'conditions' is a list of filters"),
        ({"operator": "AND", "conditions": ["year"]}, "a filter is a dictionary"),
    ],
)
def test_filters_that_cannot_be_understood(
    store: NexusDocumentStore, filters: dict[str, Any], message: str
) -> None:
    with pytest.raises(FilterError, match=message):
        store.filter_documents(filters)


def test_duplicates_in_one_call() -> None:
    twice = [Document(id="x", content="first"), Document(id="x", content="second")]
    store = NexusDocumentStore("memory://")
    with pytest.raises(DuplicateDocumentError, match="'x'"):
        store.write_documents(twice, DuplicatePolicy.FAIL)
    assert store.count_documents() == 0
    assert store.write_documents(twice, DuplicatePolicy.SKIP) == 1
    assert store.filter_documents()[0].content == "first"
    assert store.write_documents(twice, DuplicatePolicy.OVERWRITE) == 2
    assert store.filter_documents()[0].content == "second"


def test_what_cannot_be_kept_is_refused(store: NexusDocumentStore) -> None:
    with pytest.raises(DocumentStoreError, match="'x' has no text"):
        store.write_documents([Document(id="x", content=" ")])
    with pytest.raises(DocumentStoreError, match="blob"):
        store.write_documents([Document(content="x", blob=ByteStream(b"x"))])
    with pytest.raises(nx.DimensionMismatch, match="3 dimensions, document 'x' has one of 2"):
        store.write_documents([Document(id="x", content="x", embedding=[1, 2])])
    with pytest.raises(nx.DimensionMismatch):
        store.embedding_retrieval([1, 2])
    with pytest.raises(nx.ConfigError, match="everything"):
        store.delete_by_filter({})
    with pytest.raises(nx.ConfigError, match="top_k=0"):
        NexusEmbeddingRetriever(store, top_k=0)
    assert store.count_documents() == 4


def search_pipeline(url: str) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embed", NexusTextEmbedder())
    pipeline.add_component(
        "find",
        NexusEmbeddingRetriever(
            NexusDocumentStore(url),
            top_k=2,
            filters=compare("meta.kind", "==", "drug"),
            filter_policy="merge",
        ),
    )
    pipeline.connect("embed.embedding", "find.query_embedding")
    return pipeline


def test_pipeline_written_and_read_as_yaml(tmp_path: Path) -> None:
    url = f"faiss://{tmp_path}/index"
    texts = ["Aspirin thins the blood.", "Statins lower cholesterol.", "The cat sat on the mat."]
    documents = [
        Document(id=key, content=text, meta={"kind": kind, "year": year})
        for key, text, kind, year in zip(
            "abc", texts, ["drug", "drug", "cat"], [1897, 1987, 1987], strict=True
        )
    ]
    store = NexusDocumentStore(url)
    assert store.write_documents(NexusDocumentEmbedder().run(documents)["documents"]) == 3
    assert documents[0].embedding is None
    store.close()

    written = search_pipeline(url).dumps()
    pipeline = Pipeline.loads(written, allowed_modules=["nexus_vdb.connectors.haystack"])
    question = {"embed": {"text": "what lowers high cholesterol"}}
    found = pipeline.run(question)["find"]["documents"]
    assert ids(found) == ["b", "a"]
    assert found[0].content == texts[1]
    early = {**question, "find": {"filters": compare("meta.year", "<", 1950), "top_k": 5}}
    assert ids(pipeline.run(early)["find"]["documents"]) == ["a"]


def test_an_ingested_store_is_searched(tmp_path: Path) -> None:
    url = f"faiss://{tmp_path}/index"
    with nx.open(url) as collection:
        collection.add(["statins lower cholesterol", "the cat sat"], ids=["a", "b"])
    embedding = NexusTextEmbedder().run("cholesterol")["embedding"]
    retriever = NexusEmbeddingRetriever(NexusDocumentStore(url), top_k=1)
    assert ids(asyncio.run(retriever.run_async(embedding))["documents"]) == ["a"]
    assert ids(retriever.run(embedding, top_k=2)["documents"]) == ["a", "b"]


def test_stores_are_remade_of_their_dictionaries() -> None:
    store = NexusDocumentStore("memory://name", embedding_dim=5)
    again = NexusDocumentStore.from_dict(store.to_dict())
    assert (again.url, again.embedding_dim) == ("memory://name", 5)
