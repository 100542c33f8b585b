from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import nexus_vdb as nx
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.encoder import FakeEncoder

pytest.importorskip("bm25s")

from nexus_vdb.connectors.bm25 import WordIndex, word_index  # noqa: E402

TEXTS = {
    "a": "The pump failed with error E1047 at noon",
    "b": "Pumps are failing more often than valves",
    "c": "A valve that leaks is replaced",
    "d": "the and of",
    "e": "Nothing of the kind: pump, pump, pump and a valve",
}


def fill(url: str) -> nx.Collection:
    collection = nx.open(url, encoder=FakeEncoder())
    documents = [
        nx.Document(id_, text, {"place": place}, title="Report")
        for place, (id_, text) in enumerate(TEXTS.items())
    ]
    collection.add(documents)
    return collection


@pytest.fixture(params=["memory", "faiss", "qdrant-edge"])
def notes(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "qdrant-edge":
        pytest.importorskip("qdrant_edge")
    url = "memory://" if request.param == "memory" else f"{request.param}://{tmp_path}/index"
    with fill(url) as collection:
        yield collection


def found(collection: nx.Collection, text: str, k: int = 10, where: Any = None) -> list[str]:
    index = word_index(collection.store)
    [hits] = index.search(collection.store, [text], k, parse_filter(where))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return [hit.document_id for hit in hits]


def test_words_are_found_by_their_stems(notes: nx.Collection) -> None:
    assert found(notes, "e1047") == ["a"]
    assert found(notes, "the failing of pumps")[:2] == ["a", "b"]
    assert set(found(notes, "pumps")) == {"a", "b", "e"}
    assert found(notes, "pumps")[0] == "e"
    assert found(notes, "pumps", k=1) == ["e"]
    assert found(notes, "the of") == found(notes, "unheard") == []
    assert set(found(notes, "report")) == set(TEXTS)


def test_equal_scores_come_in_order_of_id(notes: nx.Collection) -> None:
    notes.add(["same words here"] * 6, ids=[f"s{number}" for number in range(6)])
    [hits] = word_index(notes.store).search(notes.store, ["same words"], 4)
    every = sorted(notes.get([f"s{number}" for number in range(6)]).ids)
    assert [hit.id for hit in hits] == every[:4]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"place": {"$in": [1, 2]}}, {"b"}),
        ({"place": {"$gte": 0}}, {"a", "b", "e"}),
        ({"place": 2}, set()),
    ],
)
def test_filters_hold_for_words(notes: nx.Collection, where: Any, expected: set[str]) -> None:
    assert set(found(notes, "pump", where=where)) == expected
    assert found(notes, "pump", k=1, where=where) == found(notes, "pump", where=where)[:1]


def test_a_filter_is_tried_on_the_best_or_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with nx.open("memory://", encoder=FakeEncoder()) as collection:
        ids = [f"{number:03}" for number in range(300)]
        texts = [f"pump {'pump ' * (number % 7)} number {number}" for number in range(300)]
        collection.add(texts, ids=ids, metadata=[{"n": number} for number in range(300)])
        everything = found(collection, "pump", k=300)
        assert len(everything) == 300
        # Few that match are listed; of many, the best are tried.
        for where, least, most in (({"n": {"$lt": 5}}, 0, 5), ({"n": {"$gte": 150}}, 150, 300)):
            expected = [id_ for id_ in everything if least <= int(id_) < most]
            assert found(collection, "pump", k=20, where=where) == expected[:20]


def test_the_index_follows_the_store(notes: nx.Collection) -> None:
    first = word_index(notes.store)
    assert word_index(notes.store, first) is first
    assert found(notes, "turbine") == []
    notes.add(["a turbine"], ids=["t"])
    assert word_index(notes.store, first) is not first
    assert found(notes, "turbine") == ["t"]
    notes.delete(["t"])
    assert found(notes, "turbine") == []


def test_a_hybrid_search_weighs_both(notes: nx.Collection) -> None:
    plain, hybrid = notes.search("E1047 valve", k=5), notes.search("E1047 valve", k=5, hybrid=True)
    assert {hit.id for hit in plain} == {hit.id for hit in hybrid}
    assert hybrid[0].document_id == "a"
    assert 0.5 < hybrid[0].score <= 1
    assert set(hybrid.timings_ms) == {"embed", "words", "search"}
    where = {"place": {"$gte": 1}}
    filtered = notes.search("E1047 pump", k=9, hybrid=True, where=where)
    assert {hit.document_id for hit in filtered} == set("bcde")
    groups = notes.search_batch(["pump", "valve"], k=2, hybrid=True, group_by="document")
    assert groups[0][0].document_id == "e"
    pages = [notes.search("pump valve", k=2, hybrid=True, offset=n)[:] for n in (0, 2, 4)]
    assert sum(pages, []) == notes.search("pump valve", k=5, hybrid=True)
    with pytest.raises(nx.ConfigError, match="score_threshold is a cosine"):
        notes.search("pump", hybrid=True, score_threshold=0.5)
    notes.add(["entirely new: zirconium"], ids=["z"])
    assert notes.search("zirconium", k=1, hybrid=True)[0].document_id == "z"


def test_the_index_is_kept_beside_the_segments(tmp_path: Path) -> None:
    folder = tmp_path / "index" / "words"
    with fill(f"faiss://{tmp_path}/index") as notes:
        hits = notes.search("pump", hybrid=True)
        [kept] = folder.iterdir()
        before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    with nx.open(f"faiss://{tmp_path}/index", encoder=FakeEncoder()) as notes:
        assert notes.search("pump", hybrid=True) == hits
        assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == before
        notes.add(["another pump"])
        notes.search("pump", hybrid=True)
        [newer] = folder.iterdir()
        assert newer != kept


@pytest.mark.parametrize(
    "damage", ["ids.npy", "scores/data.csc.index.npy", "scores/vocab.index.json"]
)
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    with fill(f"faiss://{tmp_path}/index") as notes:
        hits = notes.search("pump", hybrid=True)
        [kept] = (tmp_path / "index" / "words").iterdir()
        content = (kept / damage).read_bytes()
    (kept / damage).write_bytes(content[: len(content) // 2])
    with nx.open(f"faiss://{tmp_path}/index", encoder=FakeEncoder()) as notes:
        assert notes.search("pump", hybrid=True) == hits
    assert (kept / damage).read_bytes() == content


def test_no_room_to_keep_it(tmp_path: Path) -> None:
    with fill(f"faiss://{tmp_path}/index") as notes:
        (tmp_path / "index" / "words").write_text("in the way", encoding="utf-8")
        assert found(notes, "e1047") == ["a"]
        shutil.rmtree(tmp_path / "index")


def test_texts_without_a_word() -> None:
    with nx.open("memory://", encoder=FakeEncoder()) as notes:
        notes.add(["the", "of", "!?"])
        index = WordIndex.of(notes.store, "key")
        assert index.search(notes.store, ["the pump"], 3) == [[]]
        assert len(notes.search("the pump", hybrid=True)) == 3
