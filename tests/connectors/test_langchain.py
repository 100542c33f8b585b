from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    VectorStoreIntegrationTests,
)

import nexus_vdb as nx
from nexus_vdb.connectors.langchain import NexusEmbeddings, NexusVectorStore
from nexus_vdb.testing.encoder import FakeEncoder

TEXTS = [
    "statins lower cholesterol in adults",
    "aspirin thins the blood",
    "the cat sat on the mat",
    "a dog chased the cat",
]
METADATA: list[dict[str, Any]] = [{"year": year} for year in (2001, 2002, 2003, 2004)]


class TestFaiss(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[NexusVectorStore]:
        store = NexusVectorStore(f"faiss://{tmp_path}/index", self.get_embeddings())
        yield store
        store.close()


class TestQdrantEdge(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[NexusVectorStore]:
        pytest.importorskip("qdrant_edge")
        store = NexusVectorStore(f"qdrant-edge://{tmp_path}/index", self.get_embeddings())
        yield store
        store.close()


class TestFaissWithTheModel(VectorStoreIntegrationTests):
    """The suite's order of hits holds for any embeddings that know a text again."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[NexusVectorStore]:
        embeddings = NexusEmbeddings(encoder=FakeEncoder())
        store = NexusVectorStore(f"faiss://{tmp_path}/index", embeddings)
        yield store
        store.close()


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return NexusEmbeddings


def with_model(url: str = "memory://") -> NexusVectorStore:
    return NexusVectorStore(url, NexusEmbeddings(encoder=FakeEncoder()))


@pytest.fixture
def pets() -> NexusVectorStore:
    store = with_model()
    assert store.add_texts(TEXTS, METADATA, ids=list("abcd")) == list("abcd")
    return store


def test_the_shipped_model_is_the_default(tmp_path: Path) -> None:
    url = f"faiss://{tmp_path}/index"
    store = NexusVectorStore(url)
    store.add_texts(TEXTS, METADATA, ids=list("abcd"))
    assert store.similarity_search("medicine against high cholesterol", k=1) == [
        Document("statins lower cholesterol in adults", id="a", metadata={"year": 2001})
    ]
    store.close()
    with nx.open(url) as collection:
        assert collection.info().schema.model == "nexus-emb-edge"
        assert collection.search("medicine against high cholesterol")[0].document_id == "a"


def test_an_ingested_store_is_searched(tmp_path: Path) -> None:
    url = f"faiss://{tmp_path}/index"
    with nx.open(url, encoder=FakeEncoder()) as collection:
        collection.add(TEXTS, ids=list("abcd"), metadata=METADATA)
        hits = collection.search("cat on a mat", k=3)
    found = with_model(url).similarity_search_with_score("cat on a mat", k=3)
    assert [(one.id, one.page_content, score) for one, score in found] == [
        (hit.document_id, hit.text, hit.score) for hit in hits
    ]


def test_filters_and_scores(pets: NexusVectorStore) -> None:
    found = pets.similarity_search_with_score("cat on a mat", filter={"year": {"$gt": 2003}})
    vectors = FakeEncoder().encode(["cat on a mat", TEXTS[3]]).vectors
    assert [one.id for one, _ in found] == ["d"]
    assert found[0][1] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    by_vector = pets.similarity_search_by_vector(
        vectors[0].tolist(), k=2, filter={"year": {"$in": [2001, 2003]}}
    )
    assert [one.id for one in by_vector] == ["c", "a"]
    relevant = pets.similarity_search_with_relevance_scores(TEXTS[2], k=4, score_threshold=0.9)
    assert [one.id for one, _ in relevant] == ["c"]
    assert relevant[0][1] == pytest.approx(1, abs=1e-5)


def test_retriever(pets: NexusVectorStore) -> None:
    retriever = pets.as_retriever(search_kwargs={"k": 1, "filter": {"year": {"$lt": 2003}}})
    assert [one.id for one in retriever.invoke("aspirin")] == ["b"]
    assert [one.id for one in asyncio.run(retriever.ainvoke("statins"))] == ["a"]


def test_maximal_marginal_relevance_prefers_what_differs() -> None:
    store = with_model()
    store.add_texts(["red apple pie", "red apple pie !", "green car"], ids=["1", "2", "3"])
    query = "red apple pie"
    assert [one.id for one in store.similarity_search(query, k=2)] == ["1", "2"]
    chosen = store.max_marginal_relevance_search(query, k=2, lambda_mult=0.3)
    assert [one.id for one in chosen] == ["1", "3"]
    near = asyncio.run(store.amax_marginal_relevance_search(query, k=2, fetch_k=2))
    assert [one.id for one in near] == ["1", "2"]
    only = store.max_marginal_relevance_search(query, k=2, filter={"year": 1})
    assert only == []


def test_from_texts_and_documents(tmp_path: Path) -> None:
    embeddings = DeterministicFakeEmbedding(size=6)
    url = f"faiss://{tmp_path}/index"
    documents = [Document("one", id="1"), Document("two", metadata={"n": 2})]
    store = NexusVectorStore.from_documents(documents, embeddings, url=url)
    assert isinstance(store, NexusVectorStore)
    (two,) = store.similarity_search("two", k=1)
    assert (two.page_content, two.metadata) == ("two", {"n": 2})
    assert store.get_by_ids(["1"]) == documents[:1]
    store.close()
    again = asyncio.run(NexusVectorStore.afrom_texts(["three"], embeddings, ids=["3"], url=url))
    assert again.collection.count == 3
    assert again.embeddings is embeddings


def test_long_texts_are_kept_whole_with_other_embeddings() -> None:
    text = "word " * 5000
    store = NexusVectorStore("memory://", DeterministicFakeEmbedding(size=6))
    assert store.add_texts([text], ids=["long"]) == ["long"]
    assert [one.page_content for one in store.get_by_ids(["long"])] == [text]


def test_the_last_text_of_an_id_stays(pets: NexusVectorStore) -> None:
    assert pets.add_texts(["first", "second"], ids=["x", "x"]) == ["x", "x"]
    assert [one.page_content for one in pets.get_by_ids(["x"])] == ["second"]


def test_deleting_everything(pets: NexusVectorStore) -> None:
    assert pets.delete() is True
    assert pets.collection.count == 0
    assert pets.similarity_search("cat") == []


def test_other_embeddings_are_refused(tmp_path: Path) -> None:
    url = f"faiss://{tmp_path}/index"
    with nx.open(url, encoder=FakeEncoder(8)) as collection:
        collection.add(TEXTS)
    store = NexusVectorStore(url, DeterministicFakeEmbedding(size=8))
    with pytest.raises(nx.FingerprintMismatch, match="not by DeterministicFakeEmbedding"):
        store.similarity_search("cat")
    with pytest.raises(nx.FingerprintMismatch, match="holds fake-8-0"):
        store.add_texts(["more"])
    store.close()


def test_mistakes_are_told(pets: NexusVectorStore) -> None:
    with pytest.raises(nx.ConfigError, match="unknown options: where"):
        pets.similarity_search("cat", where={"year": 2001})
    with pytest.raises(nx.ConfigError, match="unknown options: metadata"):
        pets.add_texts(["a"], metadata=[{}])
    with pytest.raises(nx.ConfigError, match="1 ids for 2 texts"):
        pets.add_texts(["a", "b"], ids=["x"])
    with pytest.raises(nx.SourceError, match="row 1: 'document text' is empty"):
        pets.add_texts([""])
    with pytest.raises(nx.FilterError):
        pets.similarity_search("cat", filter={"year": {"$near": 2001}})


def state(**counts: int) -> dict[str, int]:
    names = ("num_added", "num_updated", "num_skipped", "num_deleted")
    return {name: counts.get(name.removeprefix("num_"), 0) for name in names}


def test_indexing_adds_skips_and_cleans_up(tmp_path: Path) -> None:
    embeddings = DeterministicFakeEmbedding(size=6)
    store = NexusVectorStore(f"faiss://{tmp_path}/index", embeddings)
    records = InMemoryRecordManager("test")
    records.create_schema()
    documents = [Document(text, metadata={"source": text[:1]}) for text in ("a1", "a2", "b1")]

    def run(given: list[Document], cleanup: Any) -> dict[str, Any]:
        how = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
        return dict(index(given, records, store, **how))

    def kept() -> list[str]:
        return sorted(one.page_content for one in store.similarity_search("a", k=10))

    assert run(documents, None) == state(added=3)
    assert run(documents, None) == state(skipped=3)
    changed = [documents[0], Document("a3", metadata={"source": "a"})]
    assert run(changed, "incremental") == state(added=1, skipped=1, deleted=1)
    assert kept() == ["a1", "a3", "b1"]
    assert run(documents[2:], "full") == state(skipped=1, deleted=2)
    assert kept() == ["b1"]
    store.close()


def test_indexing_awaited() -> None:
    async def main() -> None:
        store, records = with_model(), InMemoryRecordManager("test")
        await records.acreate_schema()
        documents = [Document(text, metadata={"source": "s"}) for text in TEXTS]
        for given, expected in (
            (documents, state(added=4)),
            (documents[:2], state(skipped=2, deleted=2)),
        ):
            result = await aindex(given, records, store, cleanup="full", key_encoder="sha256")
            assert {**result} == expected
        assert store.collection.count == 2

    asyncio.run(main())


class Awaited(Embeddings):
    """Embeddings that only an event loop can ask."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError(texts)

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return FakeEncoder(8).encode(texts).vectors.tolist()  # type: ignore[no-any-return]

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]


def test_embeddings_are_awaited() -> None:
    async def main() -> None:
        store = NexusVectorStore("memory://", Awaited())
        assert await store.aadd_texts(TEXTS, METADATA, ids=list("abcd")) == list("abcd")
        hits = await asyncio.gather(*(store.asimilarity_search(text, k=1) for text in TEXTS))
        assert [one.id for (one,) in hits] == list("abcd")
        chosen = await store.amax_marginal_relevance_search(TEXTS[0], k=1)
        assert [one.id for one in chosen] == ["a"]

    asyncio.run(main())


class Slow(FakeEncoder):
    """Goes on when it is told to."""

    go = threading.Event()

    def encode(self, texts: Any) -> Any:
        assert self.go.wait(30)
        return super().encode(texts)


def test_the_event_loop_goes_on_meanwhile() -> None:
    async def main() -> None:
        encoder = Slow()
        encoder.go.clear()
        store = NexusVectorStore("memory://", NexusEmbeddings(encoder=encoder))
        writing = asyncio.create_task(store.aadd_texts(TEXTS, ids=list("abcd")))
        await asyncio.sleep(0)
        assert not writing.done()
        encoder.go.set()  # by the very loop that a blocking call would hold up
        await writing
        encoder.go.clear()
        searching = asyncio.create_task(store.asimilarity_search(TEXTS[1], k=1))
        await asyncio.sleep(0)
        encoder.go.set()
        assert [one.id for one in await searching] == ["b"]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_vectors_are_those_of_the_encoder() -> None:
    embeddings = NexusEmbeddings(encoder=FakeEncoder())
    expected = FakeEncoder().encode(TEXTS).vectors
    assert np.array_equal(np.array(embeddings.embed_documents(TEXTS), np.float32), expected)
    assert embeddings.embed_query(TEXTS[1]) == expected[1].tolist()
