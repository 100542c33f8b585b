from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nexus_vdb as nx
from nexus_vdb.testing.encoder import FakeEncoder

TEXTS = [
    "statins lower cholesterol in adults",
    "aspirin thins the blood",
    "the cat sat on the mat",
    "a dog chased the cat",
]


def make(url: str = "memory://", *, seed: int = 0) -> nx.Collection:
    return nx.open(url, encoder=FakeEncoder(seed=seed))


@pytest.fixture
def pets() -> nx.Collection:
    collection = make()
    metadata = [{"year": year} for year in (2001, 2002, 2003, 2004)]
    assert collection.add(TEXTS, ids=list("abcd"), metadata=metadata) == list("abcd")
    return collection


def test_public_names_are_there_and_light() -> None:
    assert all(hasattr(nx, name) for name in nx.__all__)
    code = "import sys, nexus_vdb; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "faiss", "onnxruntime", "qdrant_client", "sentencepiece", "pydantic", "rich"}
    assert not heavy & set(loaded.stdout.split())


def test_search_finds_the_nearest_first(pets: nx.Collection) -> None:
    hits = pets.search("cat on a mat", k=2)
    assert [hit.document_id for hit in hits] == ["c", "d"]
    assert hits[0].text == TEXTS[2]
    assert hits[0].metadata == {"year": 2003}
    assert hits[0].score == pytest.approx(_cosine("cat on a mat", TEXTS[2]), abs=1e-5)


def _cosine(one: str, other: str, dim: int = 768) -> float:
    vectors = FakeEncoder().encode([one, other]).vectors[:, :dim]
    return float(vectors[0] @ vectors[1] / np.prod(np.linalg.norm(vectors, axis=1)))


def test_search_options(pets: nx.Collection) -> None:
    assert [hit.document_id for hit in pets.search("cat", where={"year": {"$lt": 2003}})] == [
        *sorted("ab", key=lambda id_: -_cosine("cat", TEXTS["abcd".index(id_)]))
    ]
    assert pets.search("cat mat", k=1, dim=512)[0].score == pytest.approx(
        _cosine("cat mat", TEXTS[2], 512), abs=1e-5
    )
    batch = pets.search_batch(["aspirin", "dog"], k=1, candidates=2)
    assert [hits[0].document_id for hits in batch] == ["b", "d"]


def test_adding_the_same_text_twice_keeps_one(pets: nx.Collection) -> None:
    first = pets.add(["a new text"])
    assert pets.add(["a new text"]) == first
    assert pets.count == 5


def test_documents_bring_their_own_ids_and_titles() -> None:
    collection = make()
    collection.add([nx.Document("x", "about dogs", {"lang": "en"}, title="Pets")])
    found = collection.get(["x", "unknown"])
    assert found.document_ids == ["x"]
    assert found.metadata == [{"lang": "en", "title": "Pets"}]
    embedded = FakeEncoder().encode(["Pets\nabout dogs"]).vectors
    assert np.allclose(found.vectors, embedded, atol=1e-6)


def test_get_gives_chunks_in_order() -> None:
    collection = make()
    text = ". ".join(f"sentence {number} of a long text" for number in range(40))
    collection.add([nx.Document("long", text)], chunk_tokens=32, chunk_overlap=8)
    found = collection.get(["long"])
    assert found.ordinals.tolist() == list(range(len(found)))
    assert len(found) > 6
    assert all(part in text for part in found.texts)


def test_chunks_stay_as_long_as_they_are_where_nothing_is_said(tmp_path: Path) -> None:
    collection, path = make(), tmp_path / "corpus.jsonl"
    text = ". ".join(f"sentence {number} of a long text" for number in range(40))
    path.write_text(json.dumps({"id": "long", "text": text}) + "\n", encoding="utf-8")
    first = collection.ingest(path, chunk_tokens=32, chunk_overlap=8)
    again = collection.ingest(path)
    assert (first.embedded, again.embedded, again.skipped) == (1, 0, 1)
    collection.add([nx.Document("another", text)])
    assert collection.get(["another"]).texts == collection.get(["long"]).texts
    assert collection.ingest(path, chunk_tokens=64).embedded == 1


def test_delete_by_id_and_by_filter(pets: nx.Collection) -> None:
    assert pets.delete(["a", "unknown"]) == 1
    assert pets.delete(where={"year": {"$gte": 2004}}) == 1
    assert sorted(hit.document_id for hit in pets.search("cat")) == ["b", "c"]


@pytest.mark.parametrize(
    ("ids", "where", "message"),
    [
        (None, None, "ids or a filter"),
        (["a"], {"year": 2001}, "ids or a filter"),
        (None, {}, "empty filter would delete everything"),
    ],
)
def test_delete_refuses_what_is_unclear(
    pets: nx.Collection, ids: list[str] | None, where: dict[str, int] | None, message: str
) -> None:
    with pytest.raises(nx.ConfigError, match=message):
        pets.delete(ids, where=where)
    assert pets.count == 4


def test_nothing_stored_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(nx.StoreNotFound, match="nothing is stored at faiss://") as caught:
        make(f"faiss://{tmp_path}/none").search("cat")
    assert "nexus-vdb ingest" in caught.value.hint
    collection = make()
    collection.add(["one"], ids=["a"])
    collection.delete(["a"])
    with pytest.raises(nx.StoreError, match="memory:// is empty"):
        collection.search("cat")


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(pets: nx.Collection, query: str) -> None:
    with pytest.raises(nx.ConfigError, match="the query is empty"):
        pets.search(query)


def test_another_model_is_refused_for_search_and_ingest() -> None:
    make("memory://filled-by-0").add(TEXTS)
    other = make("memory://filled-by-0", seed=1)
    with pytest.raises(nx.FingerprintMismatch, match="not by fake-768-1") as caught:
        other.search("cat")
    assert caught.value.hint == "use --model fake-768-0, or ingest into a new store"
    with pytest.raises(nx.FingerprintMismatch):
        other.add(["more"])
    assert other.count == 4


def test_wrong_documents_are_refused() -> None:
    collection = make()
    with pytest.raises(nx.ConfigError, match="1 ids for 2 texts"):
        collection.add(["a", "b"], ids=["x"])
    with pytest.raises(
        nx.SourceError, match="the documents given, row 2: 'document text' is empty"
    ):
        collection.add(["a", " "])
    with pytest.raises(nx.SourceError, match="row 2: half of a surrogate pair"):
        collection.add(["a", "b \ud83d"])
    with pytest.raises(nx.SourceError, match="row 1: half of a surrogate pair"):
        collection.add(["a"], metadata=[{"deep": ["\udc00"]}])
    with pytest.raises(nx.SourceError, match="row 2: duplicate id 'x'"):
        collection.add(["a", "b"], ids=["x", "x"])
    assert collection.add([]) == []


def test_ready_made_vectors(tmp_path: Path) -> None:
    url = f"faiss://{tmp_path}/index"
    vectors = np.eye(8, dtype=np.float32)[:4] * 3
    with nx.open(url) as collection:
        collection.add(TEXTS, ids=list("abcd"), vectors=vectors)
    with nx.open(url) as collection:
        schema = collection.info().schema
        assert (schema.dim, schema.cuts, schema.fingerprint) == (8, (8,), "")
        hits = collection.search_vectors(np.array([0, 0.1, 2, 0, 0, 0, 0, 0]), k=2)[0]
        assert [(hit.document_id, hit.text) for hit in hits] == [("c", TEXTS[2]), ("b", TEXTS[1])]
        assert hits[0].score == pytest.approx(2 / np.hypot(2, 0.1), abs=1e-3)
        with pytest.raises(nx.FingerprintMismatch, match="ready-made vectors"):
            collection.search("cat")
    with nx.open(url, encoder=FakeEncoder(16)) as other, pytest.raises(nx.DimensionMismatch):
        other.search("cat")
    with nx.open(url, encoder=FakeEncoder(8)) as collection:
        assert len(collection.search("cat")) == 4
        with pytest.raises(nx.FingerprintMismatch, match="holds ready-made vectors"):
            collection.add(["more"])


def test_vectors_cannot_join_a_model(pets: nx.Collection) -> None:
    with pytest.raises(nx.FingerprintMismatch, match="holds fake-768-0"):
        pets.add(["more"], vectors=np.ones((1, 768), np.float32))
    with pytest.raises(nx.ConfigError, match="2 vectors for 1 documents"):
        pets.add(["more"], vectors=np.ones((2, 768), np.float32))


def test_vector_search_in_a_store_of_a_model_is_exact(pets: nx.Collection) -> None:
    vectors = FakeEncoder().encode(["cat on a mat"]).vectors
    assert pets.search_vectors(vectors, k=4) == [pets.search("cat on a mat", k=4)]


def test_files_are_ingested_and_copied(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"key": key, "body": text} for key, text in enumerate(TEXTS)]
    corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with make(f"faiss://{tmp_path}/index") as collection:
        report = collection.ingest(corpus, id_field="key", text_field="body")
        assert (report.read, report.embedded, report.chunks) == (4, 4, 4)
        hits = collection.search("dog", k=4)
        copied = collection.copy_to(f"faiss://{tmp_path}/copy", verify=True)
        assert (copied.copied, copied.verified) == (4, True)
    with make(f"faiss://{tmp_path}/copy") as collection:
        assert collection.search("dog", k=4) == hits
        assert collection.info().meta["hash"] == "model"


def test_info_follows_own_writes(pets: nx.Collection) -> None:
    assert pets.info().count == 4
    pets.delete(["a"])
    assert pets.info().count == 3
    pets.add(["more"])
    assert pets.info().count == 4


def test_a_closed_collection_opens_again(tmp_path: Path) -> None:
    collection = make(f"faiss://{tmp_path}/index")
    collection.add(TEXTS)
    collection.close()
    collection.close()
    assert collection.count == 4
    collection.close()
