from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexus_vdb as nx
from nexus_vdb import cli
from nexus_vdb.chunking import chunk_id
from nexus_vdb.hashing import pack
from nexus_vdb.pipelines import dedupe as job
from nexus_vdb.pipelines.dedupe import dedupe, delete_duplicates
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.testing.samples import sample_records
from nexus_vdb.types import Floats, Records, StoreSchema

DIM = 64


def stored(records: Records, *, hashed: bool = True) -> nx.Collection:
    collection = nx.Collection("memory://")
    store = collection.writable(StoreSchema(dim=DIM, cuts=(DIM,)))
    store.upsert(records)
    if hashed:
        store.set_meta("hash", "model")
    return collection


def records_of(vectors: Floats, document_ids: list[str]) -> Records:
    """One chunk for each vector; the codes are the signs of the vectors."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    blank = sample_records(len(vectors), dim=DIM)
    seen: dict[str, int] = {}
    ordinals = []
    for id_ in document_ids:
        ordinals.append(seen.get(id_, 0))
        seen[id_] = ordinals[-1] + 1
    return replace(
        blank,
        ids=[chunk_id(*pair) for pair in zip(document_ids, ordinals, strict=True)],
        document_ids=document_ids,
        ordinals=np.array(ordinals, np.int32),
        vectors=unit.astype(np.float32),
        codes=pack(vectors),
    )


def normal(rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def names(count: int) -> list[str]:
    return [f"{row:06}" for row in range(count)]


def groups_of(report: job.DedupeReport) -> dict[str, list[str]]:
    return {group.first: [id_ for id_, _ in group.others] for group in report.groups}


@pytest.mark.parametrize("radius", [None, 3, 7])
def test_copies_are_found_with_their_scores(radius: int | None) -> None:
    base = normal(200)
    noise = normal(200, seed=1) * 0.02
    vectors = np.concatenate([base, base[:30] + noise[:30]])
    collection = stored(records_of(vectors, names(230)))
    report = dedupe(collection, radius=radius)
    expected = {f"{row:06}": [f"{200 + row:06}"] for row in range(30)}
    if radius == 3:  # a small change may flip more bits than that
        assert groups_of(report).items() <= expected.items()
        assert len(report.groups) > 20
    else:
        assert groups_of(report) == expected
    assert (report.documents, report.radius) == (230, radius)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for group in report.groups:
        [(other, score)] = group.others
        assert score == pytest.approx(float(unit[int(group.first)] @ unit[int(other)]), abs=1e-5)


def test_the_hash_finds_what_comparing_all_does() -> None:
    random = np.random.default_rng(2)
    centres = normal(40)
    vectors = centres[random.integers(40, size=600)] + normal(600, seed=3) * 0.05
    collection = stored(records_of(vectors, names(600)))
    everything = dedupe(collection, min_score=0.99)
    hashed = dedupe(collection, min_score=0.99, radius=15)
    assert groups_of(hashed) == groups_of(everything)
    assert everything.groups[0].others == hashed.groups[0].others
    sizes = [len(group.others) for group in everything.groups]
    assert sizes == sorted(sizes, reverse=True)


def test_groups_are_stars_and_not_chains() -> None:
    angles = np.deg2rad([0, 15, 30, 45, 60])
    vectors = np.zeros((5, DIM), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    report = dedupe(stored(records_of(vectors, list("abcde"))), min_score=0.9)
    assert groups_of(report) == {"a": ["b"], "c": ["d"]}


def test_very_many_equal_texts_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_ALL_BELOW", 0)
    vectors = np.repeat(normal(3), [10_000, 1, 2], axis=0)
    report = dedupe(stored(records_of(vectors, names(10_003))))
    assert report.radius == 3
    assert [len(group.others) for group in report.groups] == [9_999, 1]
    other, score = report.groups[0].others[0]
    assert other == "000001"
    assert score == pytest.approx(1.0)
    assert len(report.duplicates) == 10_000


def test_documents_of_several_chunks_count_as_their_mean() -> None:
    base = normal(6)
    vectors = np.concatenate([base[:3], base[:3], base[:2], base[3:4], base[:1]])
    ids = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"]
    for radius in (None, 3):
        report = dedupe(stored(records_of(vectors, ids)), radius=radius)
        assert groups_of(report) == {"a": ["b"]}
        assert report.documents == 4


def test_without_a_hash_all_are_compared_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.concatenate([normal(20), normal(5)])
    collection = stored(records_of(vectors, names(25)), hashed=False)
    report = dedupe(collection, radius=3)
    assert report.radius is None
    assert groups_of(report) == {f"{row:06}": [f"{20 + row:06}"] for row in range(5)}
    monkeypatch.setattr(job, "_ALL_BELOW", 10)
    with pytest.raises(nx.ConfigError, match="has no hash"):
        dedupe(collection)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"radius": 16}, "Invalid radius=16; valid: 0 to 15"), ({"min_score": 0.0}, "Invalid min_sc")],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(nx.ConfigError, match=message):
        dedupe(stored(records_of(normal(3), list("abc"))), **options)


def test_nothing_stored_has_no_duplicates() -> None:
    collection = stored(records_of(normal(1), ["a"]))
    assert dedupe(collection).groups == []
    collection.delete(["a"])
    assert dedupe(collection).documents == 0


def test_deleting_keeps_the_first() -> None:
    collection = stored(records_of(np.repeat(normal(2), 3, axis=0), list("abcdef")))
    report = dedupe(collection)
    assert delete_duplicates(collection, report) == 4
    assert sorted(id_ for page in collection.store.scan() for id_ in page.document_ids) == [
        "a",
        "d",
    ]
    assert dedupe(collection).groups == []


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"faiss://{tmp_path}/index"
    with nx.open(url, encoder=FakeEncoder()) as collection:
        collection.add(
            ["the same text", "the same text.", "another", "The same, text!"], ids=list("abcd")
        )
    return url


def test_command_line(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.run(["dedupe", "--store", store, *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, _ = call()
    assert code == 0
    assert out == "a\n  1.000  b\n  1.000  d\n4 documents: 2 repeat another, in 1 groups\n"
    assert call("--csv")[1] == "group,document,score\na,a,1\na,b,1.0\na,d,1.0\n"
    report = json.loads(call("--json", "--delete", "--dry-run")[1])
    assert report["groups"] == [
        {"first": "a", "others": [{"id": "b", "score": 1.0}, {"id": "d", "score": 1.0}]}
    ]
    assert (report["duplicates"], report["deleted"], report["dry_run"]) == (2, 0, True)
    assert "2 documents would be deleted" in call("--delete", "--dry-run")[2]

    monkeypatch.setattr("click.confirm", lambda text, err: False)
    assert "0 deleted" in call("--delete")[2]
    code, _, err = call("--delete", "--json")
    assert (code, "--delete asks first" in err) == (2, True)
    assert "is not in the range" in call("--radius", "99")[2]
    assert call("--csv", "--json")[0] == 2
    assert json.loads(call("--delete", "--yes", "--json")[1])["deleted"] == 2
    assert call()[1] == "2 documents: 0 repeat another, in 0 groups\n"
