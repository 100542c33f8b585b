"""Searches beyond the plain one, on the stores that answer in ways of their own."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexus_vdb as nx
from nexus_vdb.request import Request
from nexus_vdb.testing.encoder import FakeEncoder

LONG = ". ".join(f"the cat sat on mat number {number}" for number in range(60))
OTHERS = {
    "b": "a cat on a mat",
    "c": "the dog and the cat",
    "d": "a dog on a log",
    "e": "statins lower cholesterol",
}


def fill(url: str) -> nx.Collection:
    collection = nx.open(url, encoder=FakeEncoder())
    documents = [nx.Document("long", LONG, {"kind": "long"})]
    documents += [nx.Document(id_, text, {"kind": "short"}) for id_, text in OTHERS.items()]
    collection.add(documents, chunk_tokens=16, chunk_overlap=4)
    return collection


@pytest.fixture(params=["memory", "faiss", "qdrant-edge"])
def cats(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "qdrant-edge":
        pytest.importorskip("qdrant_edge")
    url = "memory://" if request.param == "memory" else f"{request.param}://{tmp_path}/index"
    with fill(url) as collection:
        yield collection


def documents(hits: list[nx.Hit]) -> list[str]:
    return [hit.document_id for hit in hits]


def test_grouping_gives_as_many_documents_as_asked_for(cats: nx.Collection) -> None:
    assert set(documents(cats.search("cat on mat number", k=4))) == {"long"}
    everything = cats.search("cat on mat number", k=1000)
    best = list(dict.fromkeys(documents(everything)))
    assert best[0] == "long"
    for k in (1, 3, 5, 50):
        hits = cats.search("cat on mat number", k=k, group_by="document")
        assert documents(hits) == best[:k]
        assert hits[0] == everything[0]
    short = cats.search("cat", k=3, group_by="document", where={"kind": "short"})
    cat_only = [hit for hit in cats.search("cat", k=1000) if hit.document_id != "long"]
    assert documents(short) == documents(cat_only)[:3]


def test_groups_hold_the_best_chunks_of_each_document(cats: nx.Collection) -> None:
    everything = cats.search("cholesterol", k=1000)
    hits = cats.search("cholesterol", k=5, group_by="document", group_size=3)
    own = [hit for hit in everything if hit.document_id == "long"][:3]
    found = [hit for hit in hits if hit.document_id == "long"]
    assert sorted(documents(hits)) == ["b", "c", "d", "e", "long", "long", "long"]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in own], abs=1e-3)
    assert len({hit.id for hit in found}) == 3


@pytest.mark.parametrize("group_by", [None, "document"])
def test_pages_fit_together(cats: nx.Collection, group_by: str | None) -> None:
    whole = cats.search("a cat and a dog", k=40, group_by=group_by)
    pages = [
        cats.search("a cat and a dog", k=7, offset=offset, group_by=group_by)
        for offset in range(0, 49, 7)
    ]
    assert [hit.id for hit in chain(*pages)][:40] == [hit.id for hit in whole]
    assert cats.search("a cat", k=7, offset=5000, group_by=group_by) == []


def test_pages_behind_the_hash_come_from_one_list() -> None:
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(40)]
    texts = [" ".join(random.choice(words, 6)) + f" n{row}" for row in range(1500)]
    with nx.open("memory://", encoder=FakeEncoder()) as collection:
        collection.add(texts)
        pages = [
            collection.search("w1 w2 w3", k=25, offset=offset, candidates=60)
            for offset in range(0, 200, 25)
        ]
        whole = collection.search("w1 w2 w3", k=200, offset=0, candidates=60)
    assert list(chain(*pages)) == list(whole)
    assert len({hit.id for hit in whole}) == 200


def test_a_threshold_cuts_the_tail(cats: nx.Collection) -> None:
    everything = cats.search("a cat on a mat", k=1000)
    threshold = everything[4].score
    assert cats.search("a cat on a mat", k=1000, score_threshold=threshold) == everything[:5]
    assert cats.search("a cat on a mat", k=2, score_threshold=threshold) == everything[:2]
    assert cats.search("a cat on a mat", score_threshold=1.0 - 1e-4)[0].document_id == "b"
    assert cats.search("cholesterol", score_threshold=0.99) == []


def test_more_like_a_document(cats: nx.Collection) -> None:
    hits = cats.search_like("b", k=3)
    own = cats.get(["b"])
    near = [hit for hit in cats.search_vectors(own.vectors, k=4)[0] if hit.document_id != "b"]
    assert [hit.id for hit in hits] == [hit.id for hit in near[:3]]
    assert cats.search_like(own.ids[0], k=3) == hits
    like_long = cats.search_like("long", k=100)
    assert sorted(documents(like_long)) == sorted(OTHERS)
    assert documents(cats.search_like("long", k=2, group_by="document")) == documents(like_long)[:2]
    assert (
        documents(cats.search_like("b", k=9, where={"kind": "short"}, offset=1))
        == [id_ for id_ in documents(cats.search_like("b", k=99)) if id_ != "long"][1:]
    )
    with pytest.raises(nx.ConfigError, match="has no document 'nobody'"):
        cats.search_like("nobody")


def test_more_like_a_document_in_a_large_store_asks_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nexus_vdb.reader.EXACT_BELOW", 10)
    with fill("memory://") as collection:
        hits = collection.search_like("b", k=3, candidates=30)
        assert hits.candidates == 30
        assert [hit.id for hit in hits] == [hit.id for hit in collection.search_like("b", k=3)]
        assert collection.search_like("long", k=2, candidates=40)[0].document_id in "bc"


def test_more_like_ready_made_vectors() -> None:
    with nx.open("memory://") as collection:
        vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
        collection.add(["a", "b", "c", "d"], ids=list("abcd"), vectors=vectors)
        assert documents(collection.search_like("a", k=2))[0] == "b"
        assert collection.search_like("a", k=1)[0].score == pytest.approx(1)


def test_hits_tell_how_they_were_found(cats: nx.Collection) -> None:
    hits = cats.search("cat", k=2)
    assert (hits.candidates, hits.expected_recall, hits.plan.k) == ("exact", 1.0, 2)
    assert set(hits.timings_ms) == {"embed", "search"}
    few = cats.search_batch(["cat", "dog"], k=2, candidates=20)
    assert [one.candidates for one in few] == [20, 20]
    assert set(cats.search_like("b").timings_ms) == {"search"}


def test_hits_show_themselves() -> None:
    with nx.open("memory://", encoder=FakeEncoder()) as collection:
        text = "<b>bold</b> & \"quoted\" 'text'\nnext"
        collection.add([text], ids=["<id>"], metadata=[{"tag": "<i>"}])
        hits = collection.search("bold", k=1)
        assert repr(hits).startswith("1 hit, exact, ")
        assert "<id>" in repr(hits)
        html = hits._repr_html_()
        assert "&lt;id&gt;" in html
        assert "&lt;b&gt;bold&lt;/b&gt; &amp; &quot;quoted&quot; &#x27;text&#x27; next" in html
        assert "&quot;tag&quot;: &quot;&lt;i&gt;&quot;" in html
        assert "<b>" not in html and "<i>" not in html  # noqa: PT018
        info = collection.info()
        assert '<td style="text-align:left">fake-768-0</td>' in info._repr_html_()
        assert "fake-768-0" in repr(info)
        collection.delete(["<id>"])
        collection.add([f"text {number}" for number in range(30)])
        assert "30 hits (20 shown)" in collection.search("text", k=30)._repr_html_()
        assert repr(collection.search("text", k=30)).endswith("…")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "Invalid k=0; valid: 1 or more"),
        ({"offset": -1}, "Invalid offset=-1; valid: 0 or more"),
        ({"group_by": "year"}, "Invalid group_by=year; valid: document"),
        ({"group_size": 0, "group_by": "document"}, "Invalid group_size=0"),
        ({"group_size": 2}, "without group_by"),
        ({"score_threshold": 1.5}, "Invalid score_threshold=1.5; valid: -1 to 1"),
        ({"score_threshold": float("nan")}, "Invalid score_threshold=nan"),
    ],
)
def test_wrong_requests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(nx.ConfigError, match=message):
        Request(**options)
