from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexus_vdb as nx
import nexus_vdb.encoder
from nexus_vdb.chunking import chunk_id
from nexus_vdb.cli import run
from nexus_vdb.pipelines._ingest_parts import digest, how_made
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.pipelines.verify import VerifySettings, verify
from nexus_vdb.reports import VerifyReport
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import Document, Records

COUNT = 60
KINDS = ("missing", "stale", "incomplete", "wrong_fingerprint", "extra", "bad_vectors", "differing")


def row(number: int, note: str = "") -> dict[str, Any]:
    sentences = [f"Sentence {part} of document {number}{note}." for part in range(1 + number % 4)]
    return {"key": f"d{number}", "body": " ".join(sentences), "group": number % 3}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", [row(number) for number in range(COUNT)])


@pytest.fixture
def store(tmp_path: Path, corpus: Path) -> Iterator[nx.Collection]:
    """Made with settings that are not the usual ones."""
    with nx.open(f"faiss://{tmp_path}/index", encoder=FakeEncoder()) as collection:
        settings = IngestSettings(
            sources=[str(corpus)],
            id_field="key",
            text_field="body",
            chunk_tokens=12,
            chunk_overlap=3,
        )
        assert ingest(collection, settings).chunks > COUNT
        yield collection


def check(store: nx.Collection, corpus: Path, **options: Any) -> VerifyReport:
    return verify(store, VerifySettings(sources=[str(corpus)], **options))


def found(report: VerifyReport) -> dict[str, int]:
    return {kind: getattr(report, kind) for kind in KINDS if getattr(report, kind)}


def one(store: nx.Collection, document_id: str, ordinal: int) -> Records:
    return store.store.get([chunk_id(document_id, ordinal)])


def damage(store: nx.Collection) -> None:
    """One document or record of each kind; `d7` and `d11` have four chunks, or near to."""
    old = digest(Document("d4", row(4)["body"], {"group": 1}), None, how_made("old", 12, 3))
    vectors = one(store, "d9", 0).vectors
    extra = replace(one(store, "d1", 0), ids=[chunk_id("x", 0)], document_ids=["x"])
    for changed in (
        replace(one(store, "d3", 1), content_hashes=["0" * 32], texts=["Another text."]),
        replace(one(store, "d4", 0), content_hashes=[old]),
        replace(one(store, "d9", 0), vectors=vectors * 3),
        replace(one(store, "d13", 0), vectors=-one(store, "d13", 0).vectors),
        replace(one(store, "d14", 0), codes=~one(store, "d14", 0).codes),
        extra,
        replace(extra, ids=["foreign"], document_ids=["d5"], ordinals=np.array([0], np.int32)),
    ):
        store.store.upsert(changed)
    last = max(store.store.fingerprints(["d7"])["d7"])
    store.store.delete(ids=[chunk_id("d7", last)])
    store.delete(["d11"])


def test_a_store_that_is_as_it_should_be(store: nx.Collection, corpus: Path) -> None:
    assert store.info().meta["ingest"] == {
        "id_field": "key",
        "text_field": "body",
        "title_field": "title",
        "vector_field": None,
        "chunk_tokens": 12,
        "chunk_overlap": 3,
    }
    report = check(store, corpus, deep=1000)
    assert (report.read, report.checked, report.share, report.faults) == (COUNT, COUNT, 1.0, 0)
    assert report.sound
    assert report.extra == 0
    assert report.records == report.embedded_again == store.count
    assert report.least_cosine is not None
    assert report.least_cosine > 0.999


def test_each_kind_of_damage_is_told_apart_and_mended(store: nx.Collection, corpus: Path) -> None:
    whole = {id_: None for records in store.store.scan() for id_ in records.ids}
    before = store.store.get(sorted(whole))
    damage(store)
    report = check(store, corpus, deep=1000)
    assert found(report) == dict.fromkeys(KINDS, 1) | {"extra": 2, "differing": 2}
    assert {kind: set(names) for kind, names in report.examples.items()} == {
        "missing": {"d11"},
        "stale": {"d3"},
        "incomplete": {"d7"},
        "wrong_fingerprint": {"d4"},
        "extra": {"x", "d5"},
        "bad_vectors": {chunk_id("d9", 0)},
        "differing": {chunk_id("d13", 0), chunk_id("d14", 0)},
    }
    assert not report.sound
    mended = check(store, corpus, deep=1000, fix=True)
    assert found(mended) == found(report)
    assert (mended.deleted, mended.refusal, mended.sound) == (2, "", True)
    assert mended.repaired == 7
    assert check(store, corpus, deep=1000).faults == 0
    after = store.store.get(sorted(whole))
    assert store.count == len(before)
    assert after.ids == before.ids
    assert after.content_hashes == before.content_hashes
    np.testing.assert_allclose(after.vectors, before.vectors, atol=1e-3)
    np.testing.assert_array_equal(after.codes, before.codes)


def test_changed_new_and_gone_documents(store: nx.Collection, corpus: Path) -> None:
    rows = [row(n, " now" if n in (4, 8) else "") for n in range(1, COUNT + 2)]
    write(corpus, rows)
    report = check(store, corpus)
    assert found(report) == {"missing": 2, "stale": 2, "extra": 1}
    assert report.examples["missing"] == ["d60", "d61"]
    refused = check(store, corpus, fix=True, max_delete=0.01)
    assert refused.refusal.startswith("nothing was deleted: 1 of 60 documents")
    assert (refused.repaired, refused.deleted, refused.sound) == (4, 0, False)
    assert found(check(store, corpus)) == {"extra": 1}
    assert check(store, corpus, fix=True).sound
    assert found(check(store, corpus)) == {}


def test_nothing_is_deleted_after_bad_rows(store: nx.Collection, corpus: Path) -> None:
    lines = corpus.read_text().splitlines()
    lines[3] = "{"
    corpus.write_text("\n".join(lines))
    report = check(store, corpus, fix=True)
    assert (report.quarantined, report.extra, report.deleted) == (1, 2, 0)
    assert "bad rows may be documents" in report.refusal
    assert set(store.store.fingerprints(["d3"])["d3"]) == {0, 1}


def test_another_model(store: nx.Collection, corpus: Path) -> None:
    other = nx.open(store.url, encoder=FakeEncoder(seed=1))
    report = check(other, corpus)
    assert found(report) == {"wrong_fingerprint": COUNT}
    with pytest.raises(nx.FingerprintMismatch):
        check(other, corpus, fix=True)
    assert check(store, corpus).faults == 0


def test_other_settings_than_the_ingest_had(store: nx.Collection, corpus: Path) -> None:
    assert check(store, corpus, chunk_tokens=13).faults == COUNT
    with pytest.raises(nx.SourceError, match="'text'"):
        check(store, corpus, text_field="text")


@pytest.mark.parametrize(("sample", "least", "most"), [("20", 20, 20), ("30%", 8, 30)])
def test_a_sample_is_always_the_same(
    store: nx.Collection, corpus: Path, sample: str, least: int, most: int
) -> None:
    store.delete([f"d{number}" for number in range(0, COUNT, 2)])
    report = check(store, corpus, sample=sample)
    assert least <= report.checked <= most
    assert report.share == report.checked / COUNT
    assert report.extra is None
    assert 0 < report.missing < report.checked
    again, other = check(store, corpus, sample=sample), check(store, corpus, sample=sample, seed=1)
    assert again.examples == report.examples != other.examples
    reversed_rows = [row(number) for number in reversed(range(COUNT))]
    write(corpus, reversed_rows)
    backwards = check(store, corpus, sample=sample)
    assert sorted(backwards.examples["missing"]) != [] and backwards.missing == report.missing
    mended = check(store, corpus, sample=sample, fix=True)
    assert (mended.repaired, mended.sound) == (report.missing, True)
    assert check(store, corpus, sample=sample).faults == 0
    assert check(store, corpus).missing == COUNT // 2 - report.missing


@pytest.mark.parametrize("sample", ["0", "-1", "0%", "101%", "few", "1.5"])
def test_a_sample_that_makes_no_sense(store: nx.Collection, corpus: Path, sample: str) -> None:
    with pytest.raises(nx.ConfigError, match="sample"):
        check(store, corpus, sample=sample)


def test_ready_made_vectors_and_their_hash(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((4200, 64)).round(3)
    rows = [row(number) | {"v": vectors[number].tolist()} for number in range(4200)]
    corpus = write(tmp_path / "corpus.jsonl", rows)
    given = {"id_field": "key", "text_field": "body", "vector_field": "v"}
    with nx.open(f"faiss://{tmp_path}/index") as store:
        ingest(store, IngestSettings(sources=[str(corpus)], **given))
        assert store.info().meta["hash"] == "itq"
        report = check(store, corpus, deep=500)
        assert (report.faults, report.embedded_again) == (0, 500)
        store.store.upsert(replace(one(store, "d9", 0), codes=~one(store, "d9", 0).codes))
        store.store.upsert(replace(one(store, "d8", 0), vectors=one(store, "d7", 0).vectors))
        report = check(store, corpus, deep=4200, fix=True)
        assert found(report) == {"differing": 2}
        assert (report.repaired, report.sound) == (2, True)
        assert check(store, corpus, deep=4200).faults == 0
        rows[5]["v"][0] += 1
        write(corpus, rows)
        assert found(check(store, corpus)) == {"stale": 1}


def test_stopping(store: nx.Collection, corpus: Path) -> None:
    stop = threading.Event()
    stop.set()
    settings = VerifySettings(sources=[str(corpus)])
    report = verify(store, settings, stop=stop)
    assert (report.interrupted, report.extra) == (True, None)


def test_the_command(
    store: nx.Collection,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nexus_vdb.encoder, "load_encoder", lambda name, **_: FakeEncoder())
    store.close()
    words = ["verify", str(corpus), "--store", store.url]
    assert run([*words, "--deep", "5"]) == 0
    said = capsys.readouterr().out
    assert "60 of 60 documents compared (100.0%)" in said
    assert "5 records embedded again, least cosine " in said
    assert "nothing is amiss" in said
    damage(store)
    store.close()
    assert run([*words, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["missing"], report["stale"], report["store"]) == (1, 1, store.url)
    assert set(asdict(VerifyReport())) < set(report)
    assert run([*words, "--fix"]) == 0
    said = capsys.readouterr().out
    assert "1 documents are missing: d11" in said
    assert "2 records are not in the corpus: x, d5" in said
    assert "mended: 5 documents ingested again, 2 records deleted" in said
    assert run([*words, "--sample", "10"]) == 0
    assert "10 of 60 documents compared (16.7%)" in capsys.readouterr().out
    assert run(["verify", str(corpus)]) == 2
    assert run(["verify", "--store", store.url]) == 2
    assert run([*words, "--sample", "few"]) == 2
