from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus_vdb.calibration import (
    calibrate,
    needs_calibration,
    opening_words,
    queries_as_asked,
    sample_of,
)
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.filters import Filter
from nexus_vdb.hashing import ItqHash, asymmetric_scores, pack
from nexus_vdb.interfaces import Store
from nexus_vdb.records import take_records
from nexus_vdb.search import make_plan
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.testing.samples import sample_records
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan, StoreInfo, StoreSchema

SCHEMA = StoreSchema(128, (128,))
COUNT = 3000


def info(count: int, **meta: Any) -> StoreInfo:
    return StoreInfo("memory://", SCHEMA, count, meta)


def test_calibration_is_due_for_a_large_store_that_has_grown_or_shrunk_by_a_fifth() -> None:
    point = {"candidates": 100, "probes": 1.0, "recall": 0.9, "error": 0.01}
    known = {"n": 60_000, "queries": 200, "points": [point]}
    old = {"n": 60_000, "sample": 10_000, "table": {"0.9": 50}}
    assert needs_calibration(info(20_001, hash="model"))
    assert not needs_calibration(info(20_000, hash="model"))
    assert not needs_calibration(info(100_000))
    assert not needs_calibration(info(100_000, hash=None))
    assert needs_calibration(info(60_000, hash="itq", calibration=old))
    assert not needs_calibration(info(72_000, hash="itq", calibration=known))
    assert needs_calibration(info(72_001, hash="itq", calibration=known))
    assert not needs_calibration(info(50_000, hash="itq", calibration=known))
    assert needs_calibration(info(49_999, hash="itq", calibration=known))


def test_opening_words() -> None:
    assert opening_words(["one  two\nthree", "w " * 40]) == ["one two three", " ".join(["w"] * 16)]


def test_queries_are_made_as_searching_makes_them() -> None:
    records, encoder = sample_records(5, dim=128), FakeEncoder(128)
    words = encoder.encode(opening_words(records.texts))
    itq = ItqHash.fit(sample_records(300, dim=128).vectors, iterations=2)
    rotated = info(5, hash="itq", itq=itq.to_json())
    asked = queries_as_asked(info(5, hash="model"), encoder)(records)
    np.testing.assert_array_equal(asked.hash_logits, words.hash_logits)
    asked = queries_as_asked(rotated, encoder)(records)
    np.testing.assert_allclose(asked.hash_logits, itq.logits(words.vectors), atol=1e-6)
    asked = queries_as_asked(rotated, None)(records)
    np.testing.assert_allclose(asked.hash_logits, itq.logits(records.vectors), atol=1e-5)


def centres() -> Floats:
    return np.random.default_rng(3).standard_normal((COUNT // 20, 128)).astype(np.float32)


def points() -> Floats:
    """Unit vectors around the centres, far enough from them to be hard to hash."""
    vectors = np.repeat(centres(), 20, axis=0)
    vectors += 1.5 * np.random.default_rng(4).standard_normal(vectors.shape, dtype=np.float32)
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def fill(store: Store) -> tuple[Records, ItqHash]:
    vectors = points()
    itq = ItqHash.fit(vectors, iterations=5)
    sample = sample_records(COUNT, dim=128)
    records = Records(
        sample.ids,
        sample.document_ids,
        sample.ordinals,
        sample.texts,
        [{} for _ in sample.ids],
        sample.content_hashes,
        vectors,
        pack(itq.logits(vectors)),
    )
    store.upsert(records)
    store.set_meta("itq", itq.to_json())
    store.set_meta("hash", "itq")
    return records, itq


def recall(records: Records, queries: QueryBatch, own: list[int], candidates: int) -> float:
    rows = np.arange(len(own))
    cosines = queries.vectors @ records.vectors.T
    hashed = asymmetric_scores(queries.hash_logits, records.codes)
    cosines[rows, own] = -2
    top = np.argsort(-cosines, axis=1)[:, :10]
    kept = np.argsort(-hashed, axis=1)[:, :candidates]
    return float(np.mean([np.isin(t, c).mean() for t, c in zip(top, kept, strict=True)]))


def test_points_hold_the_recall_of_their_candidates() -> None:
    store = MemoryStore.open("memory://", SCHEMA)
    records, _ = fill(store)
    queries_of = queries_as_asked(store.info(), None)
    asked: list[Records] = []

    def queries(some: Records) -> QueryBatch:
        asked.append(some)
        return queries_of(some)

    found = calibrate(store, queries)
    assert store.info().meta["calibration"] == found
    assert (found["n"], found["queries"], len(asked)) == (COUNT, 300, 1)
    row_of = {id_: row for row, id_ in enumerate(records.ids)}
    own = [row_of[id_] for id_ in asked[0].ids]
    assert 3 <= len(found["points"]) <= 15
    for point in found["points"]:
        assert point["probes"] == 1  # this store has no lists
        # Of codes that tie at the edge, a store may take any.
        expected = recall(records, queries_of(asked[0]), own, point["candidates"])
        assert point["recall"] == pytest.approx(expected, abs=0.03)
        assert 0 <= point["error"] < 0.03
    depths = [point["candidates"] for point in found["points"]]
    recalls = [point["recall"] for point in found["points"]]
    assert depths == sorted(set(depths))
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.95 < recalls[-1]


class ListStore(MemoryStore):
    """Hits outside of the lists nearest to the query are missed, as a store with lists does."""

    lists = centres()
    searches = 0

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        ListStore.searches += 1
        answers = super().search(queries, plan, where)
        if plan.candidates == "exact":
            return answers
        visited = max(round(plan.probes * len(self.lists)), 1)
        near = np.argsort(-(queries.vectors @ self.lists.T), axis=1)[:, :visited]
        return [
            [hit for hit in hits if self._list(hit.id) in mine]
            for hits, mine in zip(answers, near, strict=True)
        ]

    def _list(self, id_: str) -> int:
        return int(np.argmax(self.lists @ self.get([id_]).vectors[0]))


def test_fewer_lists_are_probed_where_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ListStore.open("memory://", SCHEMA)
    fill(store)
    monkeypatch.setattr("nexus_vdb.search.EXACT_BELOW", 0)
    found = calibrate(store, queries_as_asked(store.info(), None))
    assert ListStore.searches <= 16
    few = [point for point in found["points"] if point["probes"] < 1]
    assert len(few) >= 3
    plan = make_plan(store.info(), target_recall=0.9)
    assert plan.probes in {point["probes"] for point in few}
    assert make_plan(store.info(), target_recall=0.9, matching=COUNT).probes == 1


@pytest.mark.parametrize(("cuts", "most_too_low"), [((128,), 0.003), ((64, 128), 0.02)])
def test_depths_do_not_say_more_than_searches_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...], most_too_low: float
) -> None:
    for module in ("_faiss_write", "_faiss_state"):
        monkeypatch.setattr(f"nexus_vdb.connectors.{module}.LISTED", 100)
    store = FaissStore.open(f"faiss://{tmp_path / 'store'}", StoreSchema(128, cuts))
    fill(store)
    asked: list[Records] = []

    def queries_of(some: Records) -> QueryBatch:
        asked.append(some)
        return queries_as_asked(store.info(), None)(some)

    def found(plan: SearchPlan) -> list[set[str]]:
        answers = store.search(queries_of(asked[0]), plan)
        return [
            set([hit.id for hit in hits if hit.id != own][:10])
            for hits, own in zip(answers, asked[0].ids, strict=True)
        ]

    calibration = calibrate(store, queries_of)
    assert any(point["probes"] < 1 for point in calibration["points"])
    exact = found(SearchPlan(11, "exact", cuts))
    for point in calibration["points"]:
        plan = SearchPlan(11, point["candidates"], cuts, probes=point["probes"])
        shares = [len(mine & right) / 10 for mine, right in zip(found(plan), exact, strict=True)]
        # What 64 dimensions lose of many candidates is taken off those of few as well.
        assert point["error"] < 0.02
        assert -2 * point["error"] <= np.mean(shares) - point["recall"] <= most_too_low


class DrawingStore(MemoryStore):
    def sample(self, count: int, *, seed: int = 0) -> Records:
        return take_records(self.get([sample_records(20, dim=128).ids[-1]]), [0])


def test_a_sample_is_drawn_by_the_store_if_it_can() -> None:
    for kind, expected in ((DrawingStore, 1), (MemoryStore, 7)):
        store = kind.open("memory://", SCHEMA)
        store.upsert(sample_records(20, dim=128))
        assert len(set(sample_of(store, 7).ids)) == expected
