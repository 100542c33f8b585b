from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus_vdb import calibration
from nexus_vdb.connectors._faiss_halves import Halves
from nexus_vdb.connectors._faiss_scan import HashScan, table_scores
from nexus_vdb.connectors._faiss_state import State
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import (
    ConfigError,
    SourceError,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreNotFound,
)
from nexus_vdb.filters import parse_filter
from nexus_vdb.hashing import asymmetric_scores
from nexus_vdb.ranking import Rows
from nexus_vdb.records import take_queries
from nexus_vdb.tables import table_of
from nexus_vdb.testing.compare import Pair, assert_same_records, select
from nexus_vdb.testing.store import (
    StoreContract,
    sample_id,
    sample_queries,
    sample_records,
)
from nexus_vdb.types import Records, SearchPlan, StoreSchema

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))


class TestFaissStore(StoreContract):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"faiss://{tmp_path / 'store'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def make(folder: Path, n: int = 60) -> FaissStore:
    store = FaissStore.open(f"faiss://{folder}", SCHEMA)
    store.upsert(sample_records(n, dim=96))
    return store


def ids_of(store: FaissStore) -> list[str]:
    return sorted(id_ for batch in store.scan() for id_ in batch.ids)


# The hash scan


@pytest.mark.parametrize(("count", "rounding"), [(500, 2e-6), (4500, 0.005)])
def test_the_fast_scan_ranks_as_the_asymmetric_score_does(count: int, rounding: float) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 2**64, size=20_000, dtype=np.uint64)
    logits = random.standard_normal((8, 64)).astype(np.float32)
    expected = asymmetric_scores(logits, codes)
    live = np.sort(random.choice(20_000, size=15_000, replace=False))
    for rows in (None, live):
        allowed = np.arange(20_000) if rows is None else rows
        mask = None if rows is None else np.isin(np.arange(20_000), rows)
        for row, (found, scores) in enumerate(HashScan(codes, mask).best(logits, count)):
            ranked = allowed[np.argsort(-expected[row][allowed])]
            assert len(np.intersect1d(found, ranked[:count])) >= 0.985 * count
            assert len(found) <= 1.01 * count
            most = rounding * np.abs(logits[row]).sum()
            np.testing.assert_allclose(scores, expected[row][found], atol=most)


@pytest.mark.parametrize("n", [40_000, 40_001])
def test_the_fast_scan_never_finds_fewer_than_are_wanted(n: int) -> None:
    random = np.random.default_rng(4)
    codes = random.integers(0, 2**64, size=n, dtype=np.uint64)
    scan = HashScan(codes, None)
    for logits in random.standard_normal((20, 1, 64)).astype(np.float32):
        for count in (1, 100, 4096, 6000, 30_000, n - 1):
            ((found, scores),) = scan.best(logits, count)
            assert count <= len(found) == len(scores) < 1.01 * count + 20  # ties, too
            assert len(np.unique(found)) == len(found)
            assert found.max() < n


def test_the_fast_scan_finds_the_best_wherever_they_stand() -> None:
    codes = np.zeros(20_000, dtype=np.uint64)
    codes[1:4000:2] = 2**64 - 1  # all of them second codes of their entries
    ((found, scores),) = HashScan(codes, None).best(np.ones((1, 64), dtype=np.float32), 1500)
    assert len(found) >= 1500
    assert (scores == 64).all()
    assert (found % 2 == 1).all()


def test_table_scores_are_the_asymmetric_scores() -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 2**64, size=100, dtype=np.uint64)
    logits = random.standard_normal((1, 64)).astype(np.float32)
    expected = asymmetric_scores(logits, codes)[0]
    np.testing.assert_allclose(table_scores(logits[0], codes), expected, atol=1e-5)


def test_a_segment_large_enough_for_faiss_finds_what_memory_finds(folder: Path) -> None:
    records, queries = sample_records(6000, dim=96), sample_queries(10, dim=96)
    pair = Pair(FaissStore.open(f"faiss://{folder}", SCHEMA), MemoryStore.open("memory://", SCHEMA))
    pair.upsert(records)
    gone = records.ids[::5]
    assert pair.store.delete(ids=gone) == pair.reference.delete(ids=gone) == 1200
    plan = SearchPlan(k=10, candidates=300, cuts=(32, 96))
    shares = []
    for hits, expected in zip(
        pair.store.search(queries, plan), pair.reference.search(queries, plan), strict=True
    ):
        assert not {hit.id for hit in hits} & set(gone)
        shares.append(len({hit.id for hit in hits} & {hit.id for hit in expected}) / 10)
    assert np.mean(shares) >= 0.95
    pair.check_search(queries, SearchPlan(k=10, candidates="exact", cuts=(96,)))


def test_many_queries_of_a_writer_find_what_each_finds_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = calibration._SETTLED  # the fewest that have to be a bulk job
    store, queries = make(folder, 1500), sample_queries(count, dim=96)
    plan = SearchPlan(k=10, candidates=1000, cuts=(32, 96))
    alone = [
        store.search(take_queries(queries, [row]), plan)[0] for row in range(len(queries.vectors))
    ]
    read: list[int] = []
    halves = State.halves

    def noted(state: State, rows: Rows, cut: int) -> Halves:
        read.append(len(rows))
        return halves(state, rows, cut)

    monkeypatch.setattr(State, "halves", noted)
    assert store.search(queries, plan) == alone
    assert max(read) == 64  # a few at a time: they may be large in memory
    assert sum(read) > count * 300


# Segments


def test_small_writes_are_merged(folder: Path) -> None:
    store = FaissStore.open(f"faiss://{folder}", SCHEMA)
    for seed in range(30):
        store.upsert(sample_records(10, seed=seed, dim=96))
    assert store.count() == 300
    assert store.info().details["segments"] < 16
    assert len(list((folder / "segments").iterdir())) == store.info().details["segments"]
    expected = sorted(sample_id(row, seed) for seed in range(30) for row in range(10))
    assert ids_of(store) == expected
    store.optimize()
    assert store.info().details["segments"] == 1
    assert ids_of(store) == expected


def test_space_of_deleted_rows_is_reclaimed(folder: Path) -> None:
    store = make(folder)
    store.delete(ids=[sample_id(row) for row in range(10)])
    assert store.info().details["dead_rows"] == 10
    store.delete(ids=[sample_id(row) for row in range(10, 20)])
    assert store.info().details["dead_rows"] == 0
    assert ids_of(store) == sorted(sample_id(row) for row in range(20, 60))
    store.delete(where=parse_filter({"index": {"$gte": 0}}))
    assert store.info().details["segments"] == store.count() == 0
    store.optimize()
    store.close()
    assert FaissStore.open(f"faiss://{folder}").count() == 0


def test_copying_between_stores_loses_nothing(folder: Path, tmp_path: Path) -> None:
    first = make(folder)
    second = FaissStore.open(f"faiss://{tmp_path / 'copy'}", SCHEMA)
    for batch in first.scan(7):
        second.upsert(batch)
    ids = ids_of(first)
    np.testing.assert_array_equal(first.get(ids).vectors, second.get(ids).vectors)


# Readers, writers, and what a killed write leaves


def test_a_scan_keeps_its_state_and_the_next_call_sees_the_last_one(folder: Path) -> None:
    writer = make(folder)
    reader = FaissStore.open(f"faiss://{folder}")
    begun = reader.scan(7)
    first = next(begun)
    for seed in range(1, 12):
        writer.upsert(sample_records(10, seed=seed, dim=96))
        assert reader.count() == 60 + 10 * seed
    writer.delete(ids=[sample_id(row) for row in range(60)])
    writer.optimize()
    seen = [*first.ids, *(id_ for batch in begun for id_ in batch.ids)]
    assert sorted(seen) == sorted(sample_id(row) for row in range(60))
    assert ids_of(reader) == ids_of(writer)
    assert len(reader.get([sample_id(0), sample_id(0, 1)])) == 1
    plan = SearchPlan(k=200, candidates="exact", cuts=(96,))
    assert len(reader.search(sample_queries(1, dim=96), plan)[0]) == 110
    writer.set_meta("a", 1)
    assert reader.info().meta == {"a": 1}
    writer.close()
    shutil.rmtree(folder)
    assert reader.count() == 110  # what is open stays readable
    make(folder, 20).close()
    assert reader.count() == 20


def test_a_second_writer_is_refused_until_the_first_closes(folder: Path) -> None:
    first = make(folder)
    second = FaissStore.open(f"faiss://{folder}")
    with pytest.raises(StoreLocked, match="process"):
        second.upsert(sample_records(1, seed=2, dim=96))
    first.upsert(sample_records(5, seed=1, dim=96))
    first.close()
    second.upsert(sample_records(1, seed=2, dim=96))
    assert second.count() == 66


def test_a_forgotten_store_does_not_stay_locked(folder: Path) -> None:
    make(folder)
    FaissStore.open(f"faiss://{folder}").upsert(sample_records(1, seed=2, dim=96))


def test_leftovers_of_a_killed_write_are_ignored_and_cleaned(folder: Path) -> None:
    make(folder).close()
    segment = next((folder / "segments").iterdir())
    shutil.copytree(segment, folder / "segments" / "00000099")
    (folder / "segments" / "00000098").mkdir()
    (segment / "dead-00000099.u32").write_bytes(b"\0\0\0\0")
    (folder / "manifest.json.tmp").write_text("{")
    (folder / "meta-00000099.json").write_text("{}")
    store = FaissStore.open(f"faiss://{folder}")
    assert ids_of(store) == sorted(sample_id(row) for row in range(60))
    store.set_meta("a", 1)
    assert [path.name for path in (folder / "segments").iterdir()] == [segment.name]
    assert not list(segment.glob("dead-*"))
    names = {path.name for path in folder.iterdir()}
    (meta,) = folder.glob("meta-00000003-*.json")
    assert names == {"segments", "lock", "manifest.json", "manifest.bak", meta.name}


_WRITE_UNTIL_KILLED = """
import sys
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.testing.store import sample_id, sample_records
from nexus_vdb.types import StoreSchema

store = FaissStore.open(sys.argv[1], StoreSchema(dim=96, cuts=(32, 96)))
for seed in range(10_000):
    store.upsert(sample_records(10, seed=seed, dim=96))
    store.delete(ids=[sample_id(row, seed) for row in range(5)])
    print(seed, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 17, 40])
def test_a_killed_writer_loses_nothing_that_it_had_finished(folder: Path, lines: int) -> None:
    command = [sys.executable, "-c", _WRITE_UNTIL_KILLED, f"faiss://{folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            done = int(writer.stdout.readline())
        writer.kill()
    store = FaissStore.open(f"faiss://{folder}")
    whole, rest = divmod(store.count(), 5)
    assert rest == 0
    assert whole > done
    for seed in range(done + 1):
        expected = select(
            sample_records(10, seed, 96), [sample_id(row, seed) for row in range(5, 10)]
        )
        assert_same_records(store.get([sample_id(row, seed) for row in range(10)]), expected)
    store.upsert(sample_records(3, seed=10_001, dim=96))
    assert store.count() == len(ids_of(store)) == 5 * whole + 3
    assert len(list((folder / "segments").iterdir())) == store.info().details["segments"]


def test_a_write_that_fails_midway_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(folder)

    def full(path: Path, manifest: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("nexus_vdb.connectors.faiss.write_manifest", full)
        with pytest.raises(StoreError, match="No space left"):
            store.upsert(sample_records(10, seed=1, dim=96))
    assert store.count() == FaissStore.open(f"faiss://{folder}").count() == 60
    store.upsert(sample_records(10, seed=1, dim=96))
    assert store.count() == FaissStore.open(f"faiss://{folder}").count() == 70


def test_many_tables_are_one_commit_or_none(folder: Path) -> None:
    store = make(folder)
    before, generation = ids_of(store), store.info().details["generation"]
    newer = replace(sample_records(40, seed=5, dim=96), ids=[sample_id(n) for n in range(50, 90)])
    again = replace(sample_records(10, seed=6, dim=96), ids=[sample_id(n) for n in range(85, 95)])

    def tables(*, broken: bool) -> Iterator[Any]:
        yield table_of(newer)
        assert ids_of(FaissStore.open(store.info().url)) == before
        if broken:
            raise SourceError("no more")
        yield table_of(again)

    with pytest.raises(SourceError):
        store.upsert_tables(tables(broken=True))
    assert (ids_of(store), store.info().details["generation"]) == (before, generation)
    assert len(list((folder / "segments").iterdir())) == 1
    store.upsert_tables(tables(broken=False))
    assert store.info().details["generation"] == generation + 1
    assert ids_of(store) == sorted(map(sample_id, range(95)))
    for records in (select(newer, newer.ids[:35]), again):
        assert_same_records(store.get(records.ids), records)


# What cannot be opened


@pytest.mark.parametrize(
    "name", ["vectors.f16", "prefix.f16", "codes.u64", "lookup.bin", "rows.arrow"]
)
def test_a_missing_or_cut_file_is_named(folder: Path, name: str) -> None:
    make(folder).close()
    path = next((folder / "segments").iterdir()) / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreCorrupt, match=name):
        FaissStore.open(f"faiss://{folder}")
    path.unlink()
    with pytest.raises(StoreCorrupt, match=f"{name} is missing"):
        FaissStore.open(f"faiss://{folder}")


def test_damaged_and_future_manifests(folder: Path) -> None:
    make(folder).close()
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"format": 99}))
    with pytest.raises(StoreError, match="format 99"):
        FaissStore.open(f"faiss://{folder}")
    path.write_text(json.dumps(value | {"segments": [{"name": "x"}]}))
    with pytest.raises(StoreCorrupt, match=r"manifest\.json"):
        FaissStore.open(f"faiss://{folder}")
    for text in ("{", "[]", "null", ""):
        path.write_text(text)
        with pytest.raises(StoreCorrupt, match=r"manifest\.json"):
            FaissStore.open(f"faiss://{folder}")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreNotFound):
        FaissStore.open(f"faiss://{tmp_path}")
    with pytest.raises(StoreError, match="no store"):
        FaissStore.open(f"faiss://{tmp_path}", SCHEMA)
    with pytest.raises(StoreError, match="is a file"):
        FaissStore.open(f"faiss://{tmp_path / 'notes.txt'}", SCHEMA)
    with pytest.raises(ConfigError, match="names no folder"):
        FaissStore.open("faiss://", SCHEMA)


def test_urls_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FaissStore.open("faiss://./a", SCHEMA).close()
    assert FaissStore.open("faiss://a").count() == 0
    assert FaissStore.open(f"faiss://{tmp_path}/a").info().schema == SCHEMA


def test_values_that_cannot_be_written_are_refused(folder: Path) -> None:
    store = make(folder)
    records: Records = sample_records(1, seed=4, dim=96)
    with pytest.raises(StoreError, match="cannot be written"):
        store.upsert(replace(records, texts=["\ud800"]))
    with pytest.raises(StoreError, match="cannot be written"):
        store.upsert(replace(records, metadata=[{"a": {1, 2}}]))
    assert store.count() == 60
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count()
