from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as engine

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.connectors.qdrant_edge import QdrantEdgeStore
from nexus_vdb.errors import (
    ConfigError,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreNotFound,
)
from nexus_vdb.testing.compare import Pair, assert_same_records, select
from nexus_vdb.testing.store import (
    StoreContract,
    sample_id,
    sample_queries,
    sample_records,
)
from nexus_vdb.types import Metadata, SearchPlan, StoreSchema
from tests.qdrant_server import quick_folder

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder / "index"


class TestQdrantEdgeStore(StoreContract):
    @pytest.fixture
    def store_url(self, folder: Path) -> str:
        return f"qdrant-edge://{folder}"


def make(folder: Path, n: int = 60, schema: StoreSchema = SCHEMA) -> QdrantEdgeStore:
    store = QdrantEdgeStore.open(f"qdrant-edge://{folder}", schema)
    store.upsert(sample_records(n, dim=schema.dim))
    return store


# What lies in the shard


def test_points_are_laid_out_for_others_to_read(folder: Path) -> None:
    records = sample_records(3, dim=96)
    make(folder, 3).close()
    shard = engine.EdgeShard.load(str(folder / "shard"))
    assert list(shard.info().payload_schema) == ["document_id"]
    [point] = shard.retrieve([records.ids[1]], True, True)
    shard.close()
    assert point.payload == {
        "document_id": "doc/0/0",
        "ordinal": 1,
        "text": records.texts[1],
        "content_hash": records.content_hashes[1],
        "hash": f"{int(records.codes[1]):016x}",
        "metadata": records.metadata[1],
        "dates": {"published": ["2020-06-01T12:00:00Z"]},
    }
    vectors: Any = point.vector
    prefix = records.vectors[1, :32] / np.linalg.norm(records.vectors[1, :32])
    np.testing.assert_allclose(vectors["d96"], records.vectors[1], atol=2e-4)
    np.testing.assert_allclose(vectors["d32"], prefix, atol=2e-4)
    bits = [int(records.codes[1]) >> bit & 1 for bit in range(64)]
    assert vectors["hash"] == [2 * bit - 1 for bit in bits]


def test_odd_metadata_come_back_as_they_were(folder: Path) -> None:
    odd: list[Metadata] = [
        {},
        {"a": {}, "b": [], "c": None, "d": [None, [], {}, [[]]], "": {"": ""}},
        {"dot.ted": 1, 'quo"ted': 2, "back\\slash": 3, "a[0]": 4, " ": 5, "東京": "🚀\x00\n"},
        {"int": 1, "float": 1.0, "bool": True, "minus": -0.0, "tiny": 5e-324, "huge": 1.7e308},
        {"least": -(2**63), "most": 2**63 - 1, "odd": 2**53 + 1, "third": 1 / 3},
    ]
    pair = Pair(make(folder, 0), MemoryStore.open("memory://", SCHEMA))
    pair.upsert(replace(sample_records(len(odd), dim=96), metadata=odd))
    pair.check_rows()
    ids = [sample_id(row) for row in range(len(odd))]
    assert json.dumps(pair.store.get(ids).metadata) == json.dumps(odd)
    hits = pair.store.search(sample_queries(1, dim=96), SearchPlan(candidates="exact", cuts=(96,)))
    metadata = {hit.id: hit.metadata for hit in hits[0]}
    assert json.dumps([metadata[id_] for id_ in ids]) == json.dumps(odd)
    pair.store.close()


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": [{"a": {1, 2}}]},
        {"metadata": [{"a": [float("nan")]}]},
        {"metadata": [{"a": float("inf")}]},
        {"metadata": [{"a": {"b": 10**400}}]},
        {"metadata": [{"a": 2**63}]},
        {"metadata": [{1: "a"}]},
        {"texts": ["\ud800"]},
        {"ids": ["abc"]},
        {"ids": ["9F829625-E9C9-4ACE-8DD0-888B93C9D0C5"]},
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused(folder: Path, change: dict[str, Any]) -> None:
    store = make(folder, 3)
    records = replace(sample_records(1, seed=4, dim=96), **change)
    with pytest.raises(StoreError, match="cannot be written"):
        store.upsert(records)
    assert store.count() == 3
    store.close()


def test_ids_that_are_no_uuids_are_unknown(folder: Path) -> None:
    store = make(folder, 3)
    asked = ["abc", "", sample_id(1).upper(), sample_id(2), "0" * 32]
    assert store.get(asked).ids == [sample_id(2)]
    assert store.delete(ids=asked) == 1
    assert store.count() == 2
    store.close()


# Search


def test_candidates_are_ranked_by_the_real_valued_logits(folder: Path) -> None:
    pair = Pair(
        QdrantEdgeStore.open(f"qdrant-edge://{folder}", SCHEMA),
        MemoryStore.open("memory://", SCHEMA),
    )
    pair.upsert(sample_records(3000, dim=96))
    queries, plan = sample_queries(10, dim=96), SearchPlan(k=10, candidates=150, cuts=(96,))
    shares = [
        len({hit.id for hit in hits} & {hit.id for hit in expected}) / 10
        for hits, expected in zip(
            pair.store.search(queries, plan), pair.reference.search(queries, plan), strict=True
        )
    ]
    assert np.mean(shares) >= 0.95
    pair.store.close()


@pytest.mark.parametrize("cuts", [(64,), (32, 64), (20,)], ids=str)
def test_widths_that_are_not_stored_are_compared_all_the_same(
    folder: Path, cuts: tuple[int, ...]
) -> None:
    pair = Pair(make(folder, 0), MemoryStore.open("memory://", SCHEMA))
    pair.upsert(sample_records(90, dim=96))
    for where in (None, {"lang": "en"}):
        for plan in (
            SearchPlan(k=7, candidates="exact", cuts=cuts),
            SearchPlan(k=7, candidates=90, cuts=cuts[-1:]),
        ):
            pair.check_search(sample_queries(3, dim=96), plan, where)
    found = pair.store.search(sample_queries(3, dim=96), SearchPlan(k=7, candidates=60, cuts=cuts))
    assert [len(hits) for hits in found] == [7, 7, 7]
    pair.store.close()


def test_equal_scores_are_cut_by_id(folder: Path) -> None:
    store = make(folder, 0)
    records = sample_records(20, dim=96)
    store.upsert(replace(records, vectors=records.vectors[[0] * 20]))
    plan = SearchPlan(k=6, candidates="exact", cuts=(96,))
    [hits] = store.search(sample_queries(1, dim=96), plan)
    assert [hit.id for hit in hits] == sorted(records.ids)[:6]
    store.close()


# One process at a time, and what a killed one leaves


def test_a_store_that_is_open_cannot_be_opened_again(folder: Path) -> None:
    store = make(folder)
    with pytest.raises(StoreLocked, match="in use by process"):
        QdrantEdgeStore.open(f"qdrant-edge://{folder}")
    with pytest.raises(StoreLocked):
        QdrantEdgeStore.open(f"qdrant-edge://{folder}", SCHEMA)
    assert store.count() == 60
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count()
    again = QdrantEdgeStore.open(f"qdrant-edge://{folder}")
    assert again.count() == 60
    del again
    gc.collect()
    last = QdrantEdgeStore.open(f"qdrant-edge://{folder}")
    assert last.count() == 60
    last.close()


_WRITE_UNTIL_KILLED = """
import sys
from nexus_vdb.connectors.qdrant_edge import QdrantEdgeStore
from nexus_vdb.testing.store import sample_id, sample_records
from nexus_vdb.types import StoreSchema

store = QdrantEdgeStore.open(sys.argv[1], StoreSchema(dim=96, cuts=(32, 96)))
for seed in range(10_000):
    store.upsert(sample_records(10, seed=seed, dim=96))
    store.delete(ids=[sample_id(row, seed) for row in range(5)])
    store.set_meta("seed", seed)
    print(seed, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 12])
def test_a_killed_writer_loses_nothing_that_it_had_finished(folder: Path, lines: int) -> None:
    command = [sys.executable, "-c", _WRITE_UNTIL_KILLED, f"qdrant-edge://{folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            done = int(writer.stdout.readline())
        with pytest.raises(StoreLocked, match=str(writer.pid)):
            QdrantEdgeStore.open(f"qdrant-edge://{folder}")
        writer.kill()
    store = QdrantEdgeStore.open(f"qdrant-edge://{folder}")
    assert store.info().meta["seed"] >= done
    for seed in range(done + 1):
        rest = [sample_id(row, seed) for row in range(5, 10)]
        expected = select(sample_records(10, seed, 96), rest)
        assert_same_records(store.get([sample_id(row, seed) for row in range(10)]), expected)
    store.upsert(sample_records(3, seed=10_001, dim=96))
    assert len(store.get([sample_id(row, 10_001) for row in range(3)])) == 3
    store.close()


def test_what_a_making_that_was_cut_off_leaves_is_cleared_away(folder: Path) -> None:
    make(folder).close()
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreNotFound):
        QdrantEdgeStore.open(f"qdrant-edge://{folder}")
    store = QdrantEdgeStore.open(f"qdrant-edge://{folder}", SCHEMA)
    assert store.count() == 0
    store.close()


def test_a_store_that_has_grown_tidies_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexus_vdb.connectors.qdrant_edge._OPTIMIZE_AFTER", 100)
    done = []
    monkeypatch.setattr(QdrantEdgeStore, "optimize", lambda store: done.append(store.count()))
    store = make(folder, 60)
    assert done == []
    store.upsert(sample_records(60, seed=1, dim=96))
    assert done == [120]
    store.close()


# What cannot be opened


def test_damaged_and_future_manifests(folder: Path) -> None:
    make(folder).close()
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"format": 99}))
    with pytest.raises(StoreError, match="format 99"):
        QdrantEdgeStore.open(f"qdrant-edge://{folder}")
    for text in ("{", "[]", "null", "", json.dumps({"meta": {}}), json.dumps(value | {"cuts": 1})):
        path.write_text(text)
        with pytest.raises(StoreCorrupt, match="damaged"):
            QdrantEdgeStore.open(f"qdrant-edge://{folder}")


def test_a_damaged_shard_is_an_error_of_ours(folder: Path) -> None:
    make(folder).close()
    (folder / "shard" / "edge_config.json").write_text("{")
    with pytest.raises(StoreCorrupt, match="cannot be opened"):
        QdrantEdgeStore.open(f"qdrant-edge://{folder}")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreNotFound):
        QdrantEdgeStore.open(f"qdrant-edge://{tmp_path}")
    with pytest.raises(StoreError, match="no store"):
        QdrantEdgeStore.open(f"qdrant-edge://{tmp_path}", SCHEMA)
    with pytest.raises(StoreError, match="is a file"):
        QdrantEdgeStore.open(f"qdrant-edge://{tmp_path / 'notes.txt'}", SCHEMA)
    with pytest.raises(ConfigError, match="names no folder"):
        QdrantEdgeStore.open("qdrant-edge://", SCHEMA)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


_WITHOUT_ENGINE = """
import sys
sys.modules["qdrant_edge"] = None
from nexus_vdb.errors import MissingExtra
from nexus_vdb.registry import open_store
try:
    open_store("qdrant-edge://x")
except MissingExtra as error:
    print(error.hint)
"""


def test_the_engine_is_an_extra() -> None:
    command = [sys.executable, "-c", _WITHOUT_ENGINE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'pip install "nexus-vdb[edge]"'
