from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import ConfigError, StoreError, StoreNotFound
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.store import (
    StoreContract,
    sample_queries,
    sample_records,
)
from nexus_vdb.types import SearchPlan, StoreSchema

SCHEMA = StoreSchema()


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"memory://{tmp_path}"


def test_exact_search_is_the_sorted_matrix_product() -> None:
    store = MemoryStore.open("memory://", SCHEMA)
    records, queries = sample_records(300), sample_queries(4)
    store.upsert(records)
    scores = queries.vectors.astype(np.float64) @ records.vectors.T.astype(np.float64)
    for row, hits in enumerate(store.search(queries, SearchPlan(k=8, candidates="exact"))):
        best = np.argsort(-scores[row])[:8]
        assert [hit.id for hit in hits] == [records.ids[one] for one in best]
        np.testing.assert_allclose([hit.score for hit in hits], scores[row][best], atol=1e-6)


def test_nameless_stores_are_new_each_time_and_named_ones_shared() -> None:
    MemoryStore.open("memory://", SCHEMA).upsert(sample_records(3))
    assert MemoryStore.open("memory://", SCHEMA).count() == 0
    MemoryStore.open("memory://shared", SCHEMA).upsert(sample_records(3))
    assert MemoryStore.open("memory://shared").count() == 3
    with pytest.raises(StoreNotFound):
        MemoryStore.open("memory://")


def test_what_a_caller_changes_does_not_change_the_store() -> None:
    store = MemoryStore.open("memory://", SCHEMA)
    records = sample_records(3)
    store.upsert(records)
    records.metadata[0]["lang"] = "xx"
    store.get(records.ids).metadata[1]["author"]["name"] = "xx"
    store.search(sample_queries(1), SearchPlan(candidates="exact"))[0][0].metadata.clear()
    fresh = sample_records(3)
    assert store.get(records.ids).metadata == fresh.metadata


def test_misuse_is_refused_in_one_line() -> None:
    store = MemoryStore.open("memory://", SCHEMA)
    with pytest.raises(ConfigError, match="either ids or a filter"):
        store.delete()
    with pytest.raises(ConfigError, match="either ids or a filter"):
        store.delete(ids=[], where=parse_filter({"a": 1}))
    with pytest.raises(ConfigError, match="auto"):
        store.search(sample_queries(1), SearchPlan())
    with pytest.raises(ConfigError, match="k=0"):
        store.search(sample_queries(1), SearchPlan(k=0, candidates="exact"))
    with pytest.raises(ConfigError, match="cuts"):
        store.search(sample_queries(1), SearchPlan(candidates="exact", cuts=(256, 1024)))
    with pytest.raises(ConfigError, match="cuts"):
        MemoryStore.open("memory://", StoreSchema(dim=768, cuts=(256,)))
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count()
