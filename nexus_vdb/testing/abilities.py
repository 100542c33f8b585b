"""What a store must do whose class has optional methods, and the fixtures of all store tests."""

# ruff: noqa: D102 (the names of the tests say what they test)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import DimensionMismatch
from nexus_vdb.hashing import asymmetric_scores, pack
from nexus_vdb.interfaces import (
    SupportsDepths,
    SupportsIds,
    SupportsOptimize,
    SupportsRecode,
    SupportsSample,
    SupportsTables,
)
from nexus_vdb.records import join_records
from nexus_vdb.registry import open_store
from nexus_vdb.tables import records_of, table_of
from nexus_vdb.testing.compare import Pair, assert_same_records, select
from nexus_vdb.testing.samples import sample_id, sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema

__all__ = ["StoreAbilities"]


class StoreAbilities:
    """Tests that are skipped for stores without the method; `StoreContract` inherits them."""

    schema: ClassVar[StoreSchema] = StoreSchema(
        dim=768, cuts=(256, 512, 768), fingerprint="a" * 64, model="fake"
    )
    recall: ClassVar[float] = 0.9
    """Share of the reference's hits that a search by candidates has to find."""
    persistent: ClassVar[bool] = True
    """Whether `open_store(url)` finds what was written before `close`."""

    @pytest.fixture
    def store_url(self) -> str:
        """A URL where nothing is stored yet."""
        raise NotImplementedError("override the fixture store_url")

    @pytest.fixture
    def empty(self, store_url: str) -> Iterator[Pair]:
        """A new store and its reference."""
        pair = Pair(open_store(store_url, self.schema), MemoryStore.open("memory://", self.schema))
        yield pair
        pair.store.close()

    @pytest.fixture
    def pair(self, empty: Pair) -> Pair:
        """A store of 240 records, written in two calls."""
        records = sample_records(240)
        empty.upsert(select(records, records.ids[:100]))
        empty.upsert(select(records, records.ids[100:]))
        return empty

    def reopen(self, pair: Pair, url: str) -> Pair:
        """Close the store and open it anew, without a schema."""
        if not self.persistent:
            pytest.skip("this store does not outlive its closing")
        pair.store.close()
        pair.store = open_store(url)
        return pair

    def test_optimize_changes_no_answer(self, pair: Pair, store_url: str) -> None:
        if not isinstance(pair.store, SupportsOptimize):
            pytest.skip("this store has nothing to optimize")
        pair.upsert(sample_records(60, seed=5))
        queries, plan = sample_queries(4), SearchPlan(k=10, candidates=60)
        before = pair.store.search(queries, plan)
        pair.store.optimize()
        assert pair.store.search(queries, plan) == before
        pair.check_rows()
        self.reopen(pair, store_url).check_rows()

    def test_documents_are_listed(self, pair: Pair) -> None:
        if not isinstance(pair.store, SupportsIds):
            pytest.skip("this store lists no documents")
        for store in (pair.store, pair.reference):
            store.delete(ids=[sample_id(number) for number in range(3, 200, 3)])
        listed = list(pair.store.document_ids(50))
        assert all(0 < len(ids) <= 50 for ids in listed)
        expected = [one for records in pair.reference.scan() for one in records.document_ids]
        assert sorted(one for ids in listed for one in ids) == sorted(expected)

    def test_tables_hold_what_records_do(self, pair: Pair) -> None:
        if not isinstance(pair.store, SupportsTables):
            pytest.skip("this store has no tables")
        tables = list(pair.store.scan_tables(50))
        assert all(0 < len(table) <= 50 for table in tables)
        found = join_records([records_of(table) for table in tables])
        scanned = join_records(list(pair.store.scan(64)))
        assert_same_records(select(found, scanned.ids), scanned)
        other = replace(sample_records(50, seed=7), ids=[sample_id(n) for n in range(220, 270)])
        pair.reference.upsert(other)
        newer = replace(sample_records(9, seed=8), ids=[sample_id(n) for n in range(265, 274)])
        pair.reference.upsert(newer)
        pair.store.upsert_tables(map(table_of, (other, sample_records(0), newer)))
        pair.store.upsert_tables([])
        pair.check_rows()
        with pytest.raises(DimensionMismatch):
            pair.store.upsert_tables([table_of(sample_records(3, dim=96))])

    def test_a_sample_is_drawn_from_everything(self, pair: Pair) -> None:
        if not isinstance(pair.store, SupportsSample):
            pytest.skip("this store draws no samples")
        for store in (pair.store, pair.reference):
            store.delete(ids=[sample_id(number) for number in range(0, 240, 3)])
        samples = [pair.store.sample(60, seed=seed) for seed in range(30)]
        for sample in samples:
            assert len(set(sample.ids)) == 60
            assert_same_records(sample, pair.reference.get(sample.ids))
        assert {id_ for sample in samples for id_ in sample.ids} == set(pair.store.sample(999).ids)
        assert len(pair.store.sample(999)) == 160

    def test_depths_are_ranks_by_the_hash(self, pair: Pair) -> None:
        if not isinstance(pair.store, SupportsDepths):
            pytest.skip("this store does not tell depths")
        for store in (pair.store, pair.reference):
            store.delete(ids=[sample_id(number) for number in range(0, 240, 3)])
        queries, records = sample_queries(4), join_records(list(pair.reference.scan()))
        scores = asymmetric_scores(queries.hash_logits, records.codes)
        found = pair.store.depths(queries, [records.ids[:20], [], records.ids[-1:], []], (1.0,))
        for mine, row, ranked in ((found[0], 0, range(20)), (found[2], 2, [len(records) - 1])):
            expected = [int((scores[row] >= scores[row, one] - 1e-4).sum()) for one in ranked]
            assert mine.tolist() == [[depth] for depth in expected]
        assert [len(mine) for mine in found] == [20, 0, 1, 0]

    def test_recoding(self, pair: Pair, store_url: str) -> None:
        if not isinstance(pair.store, SupportsRecode):
            pytest.skip("this store keeps its codes")
        records = join_records(list(pair.reference.scan()))
        pair.store.recode(lambda vectors: pack(-vectors[:, :64]))
        pair.reference.upsert(replace(records, codes=pack(-records.vectors[:, :64])))
        pair.check_rows()
        queries = replace(sample_queries(4), hash_logits=-sample_queries(4).vectors[:, :64])
        pair.check_search(queries, SearchPlan(k=3, candidates=100, cuts=(768,)))
        self.reopen(pair, store_url).check_rows()
