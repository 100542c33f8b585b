from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nexus_vdb as nx
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.pipelines import _ingest_stages
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.reports import IngestReport
from nexus_vdb.settings import load_settings
from nexus_vdb.testing.compare import assert_same_records
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.tuning import fit_hash
from nexus_vdb.types import QueryBatch, Records, StoreSchema

CHUNK = {"chunk_tokens": 12, "chunk_overlap": 0}


class CountingEncoder(FakeEncoder):
    """Remembers what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__(64)
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        self.texts += texts
        return super().encode(texts)


def row(number: int, sentences: int = 1, note: str = "") -> dict[str, Any]:
    parts = [f"This is sentence {part} of document {number} {note}." for part in range(sentences)]
    return {"id": f"doc{number}", "text": " ".join(parts), "group": number % 3}


def write(folder: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    path = folder / "corpus.jsonl"
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(collection: nx.Collection, path: Path, **options: Any) -> IngestReport:
    given = {"sources": [str(path)], "quarantine": path.parent / "bad.jsonl", **CHUNK, **options}
    return ingest(collection, IngestSettings(**given))


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    return report.read, report.embedded, report.skipped, report.chunks, report.deleted


def stored(collection: nx.Collection) -> Records:
    ids = [id_ for records in collection.store.scan() for id_ in records.ids]
    return collection.store.get(sorted(ids))


def test_only_new_and_changed_documents_are_embedded(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    collection = nx.open("memory://", encoder=encoder)
    rows = [row(0), row(1, 3), row(2, 2)]
    assert counts(run(collection, write(tmp_path, rows))) == (3, 3, 0, 6, 0)
    encoder.texts.clear()
    assert counts(run(collection, write(tmp_path, rows))) == (3, 0, 3, 0, 0)
    assert encoder.texts == []

    rows[1] = row(1, 3, "changed")
    rows.append(row(3))
    assert counts(run(collection, write(tmp_path, rows))) == (4, 2, 2, 4, 0)
    assert sorted(encoder.texts) == sorted(
        [*(f"This is sentence {n} of document 1 changed." for n in range(3)), row(3)["text"]]
    )


def test_records_say_where_they_come_from(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    run(collection, write(tmp_path, [row(1, 2)]))
    found = collection.get(["doc1"])
    assert found.texts == [f"This is sentence {n} of document 1 ." for n in range(2)]
    assert found.ordinals.tolist() == [0, 1]
    assert found.metadata == [{"group": 1}] * 2
    assert len(set(found.content_hashes)) == 1
    made = FakeEncoder(64).encode(found.texts)
    assert np.allclose(found.vectors, made.vectors)
    assert (found.codes == made.codes).all()
    schema = collection.info().schema
    assert schema == StoreSchema(64, (64,), FakeEncoder(64).fingerprint, "fake-64-0")
    assert collection.info().meta["hash"] == "model"


@pytest.mark.parametrize(
    "change",
    [{"group": 9}, {"title": "new"}, {"text": "other"}, {"extra": None}],
)
def test_every_field_counts_as_a_change(tmp_path: Path, change: dict[str, Any]) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    run(collection, write(tmp_path, [row(1)]))
    assert run(collection, write(tmp_path, [row(1) | change])).embedded == 1
    assert collection.get(["doc1"]).metadata[0].items() >= (
        {key: value for key, value in change.items() if key != "text"}.items()
    )


def test_other_chunks_are_a_change(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    path = write(tmp_path, [row(1, 4)])
    assert run(collection, path).chunks == 4
    assert counts(run(collection, path, chunk_tokens=64)) == (1, 1, 0, 1, 0)
    assert collection.count == 1


def test_a_shrunken_document_loses_its_surplus_chunks(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    run(collection, write(tmp_path, [row(0, 5), row(1, 2)]))
    run(collection, write(tmp_path, [row(0, 2), row(1, 2)]))
    assert collection.get(["doc0"]).ordinals.tolist() == [0, 1]
    assert collection.count == 4


class BrittleStore(MemoryStore):
    """Dies at a given write, and remembers the order of what was written."""

    lives = 1_000_000

    def upsert(self, records: Records) -> None:
        self._live()
        super().upsert(records)

    def delete(self, **options: Any) -> int:
        self._live()
        return super().delete(**options)

    def _live(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise nx.StoreError("killed")


class BrittleCollection(nx.Collection):
    def writable(self, schema: StoreSchema) -> BrittleStore:
        if self._store is None:
            self._store = BrittleStore.open(self.url, schema)
        assert isinstance(self._store, BrittleStore)
        return self._store


def grown(rows: int) -> list[dict[str, Any]]:
    return [row(number, 1 + number % 4, "grown") for number in range(rows)]


@pytest.mark.parametrize("lives", range(6))
def test_a_kill_at_any_write_and_the_same_command_again_give_a_clean_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: int
) -> None:
    monkeypatch.setattr(_ingest_stages, "PART", 512)
    rows = 600  # more than one part of each kind
    before = write(tmp_path, [row(number, 1 + (number + 2) % 5) for number in range(rows)])
    clean = nx.open("memory://", encoder=FakeEncoder(64))
    dying = BrittleCollection("memory://", encoder=FakeEncoder(64))
    run(clean, before)
    run(dying, before)
    path = write(tmp_path, grown(rows))
    run(clean, path)
    store = dying.store
    assert isinstance(store, BrittleStore)
    store.lives = lives
    threads = threading.active_count()
    with pytest.raises(nx.StoreError, match="killed"):
        run(dying, path)
    assert threading.active_count() == threads

    store.lives = 1_000_000
    report = run(dying, path)
    assert report.embedded + report.skipped == rows
    assert_same_records(stored(dying), stored(clean))
    assert run(dying, path).embedded == 0


def test_the_first_chunk_is_written_last(tmp_path: Path) -> None:
    written: list[int] = []

    class Watched(BrittleStore):
        def upsert(self, records: Records) -> None:
            written.extend(records.ordinals.tolist())
            super().upsert(records)

    class WatchedCollection(BrittleCollection):
        def writable(self, schema: StoreSchema) -> BrittleStore:
            self._store = Watched.open("memory://", schema)
            assert isinstance(self._store, BrittleStore)
            return self._store

    corpus = write(tmp_path, [row(0, 3), row(1, 2)])
    run(WatchedCollection("memory://", encoder=FakeEncoder(64)), corpus)
    assert written == [1, 2, 0, 1, 0]


def test_bad_rows_are_set_aside_and_counted(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    path = write(tmp_path, [row(0), "{broken", row(0), {"id": "x", "text": ""}, row(1)])
    with path.open("ab") as file:
        file.write(b'{"id": "\xff", "text": "t"}\n')
    report = run(collection, path)
    assert (report.read, report.quarantined, report.embedded) == (2, 4, 2)
    lines = (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()
    bad = [json.loads(line) for line in lines]
    assert [one["row"] for one in bad] == [2, 3, 4, 6]
    assert bad[0]["raw"] == "{broken"
    assert bad[0]["file"] == str(path)
    assert bad[1]["reason"] == "duplicate id 'doc0'"
    assert bad[3]["raw_base64"] == "eyJpZCI6ICL/IiwgInRleHQiOiAidCJ9"


def test_on_error_fail_stops_at_the_first_bad_row(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    path = write(tmp_path, [row(0), "{broken", row(1)])
    with pytest.raises(nx.SourceError, match=r"corpus.jsonl, row 2: broken JSON"):
        run(collection, path, on_error="fail")
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_corpus_of_nothing_but_bad_rows_makes_no_store(tmp_path: Path) -> None:
    collection = nx.open(f"faiss://{tmp_path}/index", encoder=FakeEncoder(64))
    report = run(collection, write(tmp_path, ["{broken", "[]"]), delete_missing=True)
    assert (report.read, report.quarantined) == (0, 2)
    assert not (tmp_path / "index").exists()


def test_an_empty_corpus_is_an_error_and_deletes_nothing(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    run(collection, write(tmp_path, [row(0)]))
    with pytest.raises(nx.SourceError, match="no documents in .*corpus.jsonl"):
        run(collection, write(tmp_path, []), delete_missing=True, max_delete=1)
    assert collection.count == 1


def test_delete_missing(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    rows = [row(number, 2) for number in range(10)]
    run(collection, write(tmp_path, rows))
    fewer = write(tmp_path, rows[1:])
    assert run(collection, fewer).deleted == 0
    assert run(collection, fewer, delete_missing=True, dry_run=True).deleted == 1
    assert collection.count == 20
    report = run(collection, fewer, delete_missing=True)
    assert (report.deleted, report.refusal) == (1, "")
    assert collection.count == 18
    assert len(collection.get(["doc0"])) == 0


def test_too_much_is_not_deleted(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    rows = [row(number, 2) for number in range(10)]
    run(collection, write(tmp_path, rows))
    fewer = write(tmp_path, rows[2:])
    report = run(collection, fewer, delete_missing=True)
    assert report.deleted == 0
    assert "2 of 10 documents are missing, more than max_delete=0.1" in report.refusal
    assert collection.count == 20
    assert run(collection, fewer, delete_missing=True, max_delete=0.2).deleted == 2


def test_nothing_is_deleted_after_bad_rows(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    rows = [row(number) for number in range(20)]
    run(collection, write(tmp_path, rows))
    report = run(collection, write(tmp_path, [*rows[1:], "{broken"]), delete_missing=True)
    assert report.deleted == 0
    assert "bad rows" in report.refusal
    assert collection.count == 20


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    url = f"faiss://{tmp_path}/index"
    collection = nx.open(url, encoder=FakeEncoder(64))
    path = write(tmp_path, [row(0, 2), row(1), "{broken"])
    report = run(collection, path, dry_run=True)
    assert (counts(report), report.quarantined) == ((2, 2, 0, 3, 0), 1)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["corpus.jsonl"]
    run(collection, path)
    assert counts(run(collection, path, dry_run=True)) == (2, 0, 2, 0, 0)


def test_a_stop_leaves_the_rest_for_the_next_run(tmp_path: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    path = write(tmp_path, [row(number) for number in range(4000)])
    stop = threading.Event()
    settings = IngestSettings(sources=[str(path)], delete_missing=True)

    def progress(report: IngestReport) -> None:
        if report.embedded:
            stop.set()

    threads = threading.active_count()
    report = ingest(collection, settings, progress=progress, stop=stop)
    assert report.interrupted
    assert report.embedded == collection.count == 2048
    assert threading.active_count() == threads
    again = ingest(collection, settings)
    assert (again.skipped, again.embedded, again.interrupted) == (2048, 1952, False)


def test_an_error_of_the_model_surfaces_and_ends_the_threads(tmp_path: Path) -> None:
    class Failing(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> QueryBatch:
            raise nx.ModelError("no memory")

    threads = threading.active_count()
    path = write(tmp_path, [row(number) for number in range(3000)])
    with pytest.raises(nx.ModelError, match="no memory"):
        run(nx.open("memory://", encoder=Failing(64)), path)
    assert threading.active_count() == threads


def test_a_damaged_file_costs_no_other_file_its_rows(tmp_path: Path) -> None:
    whole = gzip.compress(write(tmp_path, [row(number) for number in range(3000)]).read_bytes())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) * 9 // 10])
    (tmp_path / "b.jsonl").write_text(json.dumps(row(9999)) + "\n", encoding="utf-8")
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    report = run(collection, tmp_path / "[ab].jsonl*", delete_missing=True)
    assert 2000 < report.read == report.embedded < 3000
    assert len(collection.get(["doc9999"])) == 1
    assert (report.quarantined, report.deleted) == (1, 0)
    [bad] = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert bad["row"] == report.read
    assert "a.jsonl.gz cannot be read after row" in bad["reason"]
    assert bad["raw"] == ""


def test_nothing_but_damaged_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more PAR1")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    collection = nx.open("memory://", encoder=FakeEncoder(64))
    with pytest.raises(nx.SourceError, match=r"a\.parquet cannot be read: "):
        run(collection, tmp_path / "*.*")


def vectors_file(folder: Path, vectors: Any) -> Path:
    path = folder / "vectors.parquet"
    ids = [f"v{number}" for number in range(len(vectors))]
    columns = {"id": ids, "text": [f"text of {id_}" for id_ in ids], "emb": list(vectors)}
    pq.write_table(pa.table(columns), path)
    return path


def test_ready_made_vectors_are_kept_and_hashed(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((6000, 64)).astype(np.float32)
    path = vectors_file(tmp_path, vectors)
    collection = nx.open("memory://")
    report = run(collection, path, vector_field="emb")
    assert counts(report) == (6000, 6000, 0, 6000, 0)
    assert report.total == 6000
    found = collection.get(["v17", "v5999"])
    expected = vectors[[17, 5999]] / np.linalg.norm(vectors[[17, 5999]], axis=1, keepdims=True)
    assert np.allclose(found.vectors, expected, atol=1e-6)
    assert found.metadata == [{}, {}]
    assert collection.info().meta["hash"] == "itq"
    assert all(found.codes)
    before = stored(collection)
    fit_hash(collection.store)
    assert_same_records(stored(collection), before)

    vectors[3] *= -1
    again = run(collection, vectors_file(tmp_path, vectors), vector_field="emb")
    assert (again.embedded, again.skipped) == (1, 5999)
    hits = collection.search_vectors(vectors[3], k=1, candidates=100)[0]
    assert hits[0].document_id == "v3"


def test_cuts_of_a_new_store(tmp_path: Path) -> None:
    path = write(tmp_path, [row(0)])
    collection = nx.open("memory://", encoder=FakeEncoder())
    run(collection, path, cuts=(768, 512))
    assert collection.info().schema.cuts == (512, 768)
    with pytest.raises(nx.ConfigError, match=r"Invalid cuts=\(100, 768\); valid: some of 256, 512"):
        run(nx.open("memory://", encoder=FakeEncoder()), path, cuts=(100, 768))


def test_titles_are_embedded(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    run(nx.open("memory://", encoder=encoder), write(tmp_path, [row(0) | {"title": "On zero"}]))
    assert encoder.texts == [f"On zero\n{row(0)['text']}"]


def test_the_shipped_settings_load() -> None:
    path = Path(__file__).parents[2] / "configs" / "ingest.toml"
    settings = load_settings(IngestSettings, path, {})
    assert settings == IngestSettings(sources=["corpus/*.parquet"], store="faiss://./index")
    text = path.read_text(encoding="utf-8")
    assert all(f"{name} = " in text for name in IngestSettings.model_fields)
