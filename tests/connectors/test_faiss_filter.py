"""Whatever is asked, the same rows as the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from nexus_vdb.connectors import _faiss_lists, _faiss_state, _faiss_write
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.filters import And, Or, parse_filter
from nexus_vdb.testing.compare import Pair
from nexus_vdb.testing.store import sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema
from tests.random_filters import ALIKE, FILTERS, ODD

SCHEMA = StoreSchema(dim=4, cuts=(4,))


@pytest.fixture(scope="module", params=["segments", "lists"])
def odd_pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Fields of one type in some segments and of many in others; or all in one, with lists."""
    folder = tmp_path_factory.mktemp("filters")
    store = FaissStore.open(f"faiss://{folder}/index", SCHEMA)
    pair = Pair(store, MemoryStore.open("memory://", SCHEMA))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_faiss_state, "_FAN", 99)
        for seed, metadata in enumerate([ODD, *ALIKE]):
            records = sample_records(len(metadata), seed=seed, dim=4)
            pair.upsert(replace(records, metadata=metadata))
            gone = records.ids[1::7]
            assert store.delete(ids=gone) == pair.reference.delete(ids=gone) == len(gone)
        if request.param == "lists":
            for module in (_faiss_lists, _faiss_write, _faiss_state):
                patch.setattr(module, "LISTED", 100)
            store.optimize()
        segments = store.info().details["segments"]
        assert segments == (1 if request.param == "lists" else 1 + len(ALIKE))
        yield pair
    store.close()


@settings(max_examples=520, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=FILTERS)
def test_random_filters_match_the_same_rows(odd_pair: Pair, where: dict[str, Any]) -> None:
    condition = parse_filter(where)
    expected = odd_pair.reference.count(condition)
    assert odd_pair.store.count(condition) == expected
    plan = SearchPlan(k=1000, candidates="exact", cuts=(4,))
    queries = sample_queries(1, dim=4)
    found = {hit.id for hit in odd_pair.store.search(queries, plan, condition)[0]}
    assert found == {hit.id for hit in odd_pair.reference.search(queries, plan, condition)[0]}
    by_hash = SearchPlan(k=1000, candidates=1000, cuts=(4,))
    assert {hit.id for hit in odd_pair.store.search(queries, by_hash, condition)[0]} == found


def test_no_parts_at_all(odd_pair: Pair) -> None:
    for store in (odd_pair.store, odd_pair.reference):
        assert store.count(Or(())) == 0
        assert store.count(And(())) == store.count()
        plan = SearchPlan(k=3, candidates=3, cuts=(4,))
        assert store.search(sample_queries(1, dim=4), plan, Or(())) == [[]]


def test_many_rows_of_changing_types(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, n = tmp_path_factory.mktemp("types"), 12_000
    schema = StoreSchema(dim=4, cuts=(4,))
    pair = Pair(FaissStore.open(f"faiss://{folder}", schema), MemoryStore.open("memory://", schema))
    kinds: tuple[Callable[[int], Any], ...]
    kinds = (lambda row: row, lambda row: row / 2, str, lambda row: [row, row + 0.5])
    metadata: list[dict[str, Any]] = [
        {"v": kinds[row // 3000](row), "day": f"2020-01-{row % 28 + 1:02}"} for row in range(n)
    ]
    metadata[-1]["v"] = {"not": "a number"}
    records = replace(sample_records(n, dim=4), metadata=metadata)
    pair.upsert(records)
    rows = np.random.default_rng(0).integers(n, size=9).tolist()
    wheres: list[dict[str, Any]] = [
        {"v": value} for row in rows for value in (row, row / 2, str(row))
    ]
    wheres += [{"v": {"$gte": 1500, "$lt": 4000.5}}, {"day": {"$gt": "2020-01-27T12:00:00+02:00"}}]
    for where in [*wheres, {"v": {"$exists": True}}, {"v.not": "a number"}]:
        condition = parse_filter(where)
        assert pair.store.count(condition) == pair.reference.count(condition)
