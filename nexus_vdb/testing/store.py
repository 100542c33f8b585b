"""`StoreContract`: what every store must do, with its values compared to those of `MemoryStore`."""

# ruff: noqa: D102 (the names of the tests say what they test)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import (
    ConfigError,
    DimensionMismatch,
    FingerprintMismatch,
    StoreError,
    StoreNotFound,
)
from nexus_vdb.filters import parse_filter
from nexus_vdb.registry import open_store
from nexus_vdb.testing.abilities import StoreAbilities
from nexus_vdb.testing.compare import (
    TOLERANCE,
    Pair,
    assert_same_hits,
    assert_same_records,
    select,
)
from nexus_vdb.testing.samples import (
    SAMPLE_FILTERS,
    sample_id,
    sample_metadata,
    sample_queries,
    sample_records,
)
from nexus_vdb.types import QueryBatch, SearchPlan, StoreSchema

__all__ = [
    "SAMPLE_FILTERS",
    "Pair",
    "StoreContract",
    "assert_same_hits",
    "assert_same_records",
    "select",
    "sample_id",
    "sample_metadata",
    "sample_queries",
    "sample_records",
]


class StoreContract(StoreAbilities):
    """Subclass it in a test file and override the fixture `store_url`; the rest is inherited."""

    # Writing and reading

    def test_an_empty_store_answers(self, empty: Pair) -> None:
        assert empty.store.count() == 0
        assert list(empty.store.scan()) == []
        assert len(empty.store.get([sample_id(0)])) == 0
        assert empty.store.fingerprints(["doc/0/0"]) == {}
        assert empty.store.delete(ids=[sample_id(0)]) == 0
        for candidates in (5, "exact"):
            plan = SearchPlan(k=3, candidates=candidates)
            assert empty.store.search(sample_queries(2), plan) == [[], []]

    def test_values_come_back(self, pair: Pair) -> None:
        pair.check_rows()

    def test_upsert_is_idempotent(self, pair: Pair) -> None:
        pair.upsert(sample_records(240))
        pair.check_rows()

    def test_upsert_replaces_whole_records(self, pair: Pair) -> None:
        other = sample_records(50, seed=7)
        pair.upsert(replace(other, ids=[sample_id(index) for index in range(90, 140)]))
        pair.check_rows()
        assert pair.store.count() == 240
        pair.check_search(sample_queries(3), SearchPlan(k=20, candidates="exact"))

    def test_last_of_equal_ids_wins(self, empty: Pair) -> None:
        records = sample_records(9)
        ids = [records.ids[row] for row in (0, 1, 2, 0, 3, 1, 4, 0, 5)]
        empty.upsert(replace(records, ids=ids))
        empty.check_rows()
        assert empty.store.get([ids[0]]).texts == [records.texts[7]]

    def test_no_records_are_fine(self, pair: Pair) -> None:
        pair.upsert(sample_records(0))
        pair.check_rows()

    def test_many_small_writes(self, empty: Pair) -> None:
        for start in range(12):
            records = sample_records(20, seed=start)
            overlapping = [sample_id(start * 14 + index, seed=99) for index in range(20)]
            empty.upsert(replace(records, ids=overlapping))
        empty.check_rows()
        empty.check_search(sample_queries(3), SearchPlan(k=30, candidates="exact"))

    def test_get_keeps_order_and_leaves_out_unknown(self, pair: Pair) -> None:
        asked = [
            sample_id(200),
            "00000000-0000-0000-0000-000000000000",
            sample_id(3),
            sample_id(99),
        ]
        found = pair.store.get(asked)
        assert found.ids == [sample_id(200), sample_id(3), sample_id(99)]
        assert_same_records(found, pair.reference.get(asked))
        assert len(pair.store.get([])) == 0

    def test_fingerprints(self, pair: Pair) -> None:
        asked = ["doc/0/0", "doc/0/79", "doc/0/33", "doc/0/80", "nobody"]
        found = pair.store.fingerprints(asked)
        assert found == pair.reference.fingerprints(asked)
        assert set(found) == set(asked[:3])
        assert sorted(found["doc/0/33"]) == [0, 1, 2]
        assert pair.store.fingerprints([]) == {}

    def test_delete_by_id(self, pair: Pair) -> None:
        gone = [sample_id(index) for index in range(80, 130)]
        asked = [*gone, gone[0], "00000000-0000-0000-0000-000000000000"]
        assert pair.store.delete(ids=asked) == 50
        assert pair.reference.delete(ids=asked) == 50
        pair.check_rows()
        assert len(pair.store.get(gone)) == 0
        pair.check_search(sample_queries(3), SearchPlan(k=240, candidates="exact"))
        assert pair.store.delete(ids=gone) == 0
        assert pair.store.delete(ids=[]) == 0

    def test_delete_by_filter(self, pair: Pair) -> None:
        where = parse_filter({"$or": [{"lang": "en"}, {"year": {"$gte": 2009}}]})
        assert pair.store.delete(where=where) == pair.reference.delete(where=where) > 0
        pair.check_rows()
        assert pair.store.count(where) == 0
        pair.upsert(sample_records(240))
        pair.check_rows()

    # Search

    @pytest.mark.parametrize("cuts", [(256, 768), (256, 512, 768), (768,), (512,), (256,)], ids=str)
    def test_exact_search(self, pair: Pair, cuts: tuple[int, ...]) -> None:
        pair.check_search(sample_queries(5), SearchPlan(k=12, candidates="exact", cuts=cuts))

    @pytest.mark.parametrize("cuts", [(256, 768), (256, 512, 768), (768,), (512,), (256,)], ids=str)
    def test_search_by_candidates(self, pair: Pair, cuts: tuple[int, ...]) -> None:
        queries = sample_queries(20)
        plan = SearchPlan(k=5, candidates=80, cuts=cuts)
        found = pair.store.search(queries, plan)
        shares = []
        for hits, expected in zip(found, pair.reference.search(queries, plan), strict=True):
            assert len(hits) == 5
            shares.append(len({hit.id for hit in hits} & {hit.id for hit in expected}) / 5)
        assert np.mean(shares) >= self.recall
        everything = SearchPlan(k=240, candidates="exact", cuts=cuts[-1:])
        for hits, ranking in zip(found, pair.reference.search(queries, everything), strict=True):
            score = {hit.id: hit.score for hit in ranking}
            assert all(abs(hit.score - score[hit.id]) <= TOLERANCE for hit in hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    def test_enough_candidates_are_as_good_as_all(self, pair: Pair) -> None:
        pair.check_search(sample_queries(5), SearchPlan(k=10, candidates=240, cuts=(768,)))

    @pytest.mark.parametrize("candidates", ["exact", 50, 1000])
    def test_more_asked_than_there_is(self, pair: Pair, candidates: Any) -> None:
        plan = SearchPlan(k=500, candidates=candidates, cuts=(256, 768))
        pair.check_search(sample_queries(2), plan)

    def test_fewer_candidates_than_hits(self, pair: Pair) -> None:
        hits = pair.store.search(sample_queries(2), SearchPlan(k=10, candidates=3))
        assert [len(one) for one in hits] == [10, 10]

    def test_equal_scores_come_in_order_of_id(self, empty: Pair) -> None:
        records = sample_records(40)
        same = replace(records, vectors=records.vectors[[0] * 40], codes=records.codes[[0] * 40])
        empty.upsert(same)
        hits = empty.store.search(sample_queries(1), SearchPlan(k=40, candidates="exact"))[0]
        assert [hit.id for hit in hits] == sorted(records.ids)

    def test_a_batch_answers_as_its_queries_do(self, pair: Pair) -> None:
        queries, plan = sample_queries(7), SearchPlan(k=6, candidates="exact")
        together = pair.store.search(queries, plan)
        for row in range(7):
            part = slice(row, row + 1)
            one = QueryBatch(queries.vectors[part], queries.hash_logits[part], queries.codes[part])
            alone = pair.store.search(one, plan)[0]
            assert [hit.id for hit in alone] == [hit.id for hit in together[row]]
        assert pair.store.search(sample_queries(0), plan) == []

    # Filters

    @pytest.mark.parametrize("where", SAMPLE_FILTERS, ids=str)
    def test_filter(self, pair: Pair, where: dict[str, Any]) -> None:
        condition = parse_filter(where)
        assert pair.store.count(condition) == pair.reference.count(condition)
        pair.check_search(sample_queries(2), SearchPlan(k=240, candidates="exact"), where)

    def test_filter_applies_before_the_scan(self, pair: Pair) -> None:
        where = {"index": {"$in": [5, 130, 239]}}
        far = -pair.reference.get([sample_id(5)]).vectors
        logits = -sample_queries(1).hash_logits
        queries = QueryBatch(far, logits, sample_queries(1).codes)
        for cuts in ((256, 768), (768,)):
            pair.check_search(queries, SearchPlan(k=3, candidates=5, cuts=cuts), where)

    # Keeping

    def test_info(self, pair: Pair, store_url: str) -> None:
        info = pair.store.info()
        assert (info.url, info.schema, info.count) == (store_url, self.schema, 240)

    def test_everything_survives_reopening(self, pair: Pair, store_url: str) -> None:
        pair.store.delete(ids=[sample_id(4)])
        pair.reference.delete(ids=[sample_id(4)])
        pair = self.reopen(pair, store_url)
        pair.check_rows()
        pair.check_search(sample_queries(3), SearchPlan(k=10, candidates="exact"))
        assert pair.store.info().schema == self.schema
        pair.upsert(sample_records(30, seed=3))
        pair.check_rows()

    def test_meta_survives_reopening(self, pair: Pair, store_url: str) -> None:
        value = {"rotation": [[0.1, -2.5e-7], [1, None]], "näme": {"x": True}}
        pair.store.set_meta("first", 1)
        pair.store.set_meta("hash", value)
        pair.store.set_meta("first", 2)
        assert pair.store.info().meta == {"first": 2, "hash": value}
        pair = self.reopen(pair, store_url)
        assert pair.store.info().meta == {"first": 2, "hash": value}
        pair.check_rows()

    def test_closing_twice(self, pair: Pair) -> None:
        pair.store.close()
        pair.store.close()

    def test_another_width(self, store_url: str) -> None:
        schema = StoreSchema(dim=96, cuts=(96,))
        pair = Pair(open_store(store_url, schema), MemoryStore.open("memory://", schema))
        pair.upsert(sample_records(120, dim=96))
        pair.check_rows()
        for candidates in ("exact", 120):
            plan = SearchPlan(k=7, candidates=candidates, cuts=(96,))
            pair.check_search(sample_queries(3, dim=96), plan)
        assert pair.store.info().schema == schema
        pair.store.close()

    # Refusing

    def test_nothing_there(self, store_url: str) -> None:
        with pytest.raises(StoreNotFound):
            open_store(store_url)

    def test_wrong_width(self, pair: Pair, store_url: str) -> None:
        with pytest.raises(DimensionMismatch):
            pair.store.upsert(sample_records(3, seed=8, dim=96))
        with pytest.raises(DimensionMismatch):
            pair.store.search(sample_queries(1, dim=96), SearchPlan(candidates="exact"))
        pair = self.reopen(pair, store_url)
        pair.check_rows()
        pair.store.close()
        with pytest.raises(DimensionMismatch):
            open_store(store_url, StoreSchema(dim=96, cuts=(96,), fingerprint="a" * 64))

    def test_vectors_without_direction(self, pair: Pair) -> None:
        records, queries = sample_records(2, seed=8), sample_queries(1)
        records.vectors[1, 3] = np.nan
        queries.vectors[0, 0] = np.inf
        with pytest.raises(StoreError, match="vector 1 "):
            pair.store.upsert(records)
        with pytest.raises(StoreError, match="vector 0 "):
            pair.store.search(queries, SearchPlan(candidates="exact"))
        pair.check_rows()

    def test_meta_must_be_json(self, pair: Pair) -> None:
        with pytest.raises(ConfigError, match="JSON"):
            pair.store.set_meta("a", {1, 2})

    def test_deleting_takes_ids_or_a_filter(self, pair: Pair) -> None:
        with pytest.raises(ConfigError):
            pair.store.delete()
        with pytest.raises(ConfigError):
            pair.store.delete(ids=[], where=parse_filter({"lang": "en"}))
        assert pair.store.count() == 240

    def test_another_model(self, pair: Pair, store_url: str) -> None:
        self.reopen(pair, store_url).store.close()
        with pytest.raises(FingerprintMismatch):
            open_store(store_url, replace(self.schema, fingerprint="b" * 64))
        store = open_store(store_url, replace(self.schema, fingerprint=""))
        assert (store.count(), store.info().schema) == (240, self.schema)
        store.close()
