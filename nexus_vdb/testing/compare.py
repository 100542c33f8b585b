"""Comparing a store with the reference by values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.filters import parse_filter
from nexus_vdb.interfaces import Store
from nexus_vdb.records import join_records, no_records, take_records
from nexus_vdb.types import Hit, QueryBatch, Records, SearchPlan

__all__ = ["TOLERANCE", "Pair", "assert_same_hits", "assert_same_records", "scan_all", "select"]

TOLERANCE = 2e-3
"""Of scores and coordinates: stores may keep float16."""


@dataclass
class Pair:
    """The store under test, and the reference that is given the same calls."""

    store: Store
    reference: MemoryStore

    def upsert(self, records: Records) -> None:
        """Write to both."""
        self.store.upsert(records)
        self.reference.upsert(records)

    def check_rows(self) -> None:
        """Both hold the same records."""
        found, expected = scan_all(self.store), scan_all(self.reference)
        assert_same_records(select(found, sorted(found.ids)), select(expected, sorted(found.ids)))
        assert self.store.count() == len(found) == len(expected)

    def check_search(
        self, queries: QueryBatch, plan: SearchPlan, where: dict[str, Any] | None = None
    ) -> None:
        """Both give the same hits to an exact search."""
        condition = parse_filter(where)
        found = self.store.search(queries, plan, condition)
        everything = replace(plan, k=max(1, self.reference.count()))
        expected = self.reference.search(queries, everything, condition)
        assert len(found) == len(expected) == len(queries)
        for hits, ranking in zip(found, expected, strict=True):
            assert_same_hits(hits, ranking, k=plan.k)


def select(records: Records, ids: Sequence[str]) -> Records:
    """The records of these ids, in this order."""
    row_of = {id_: row for row, id_ in enumerate(records.ids)}
    return take_records(records, [row_of[id_] for id_ in ids])


def assert_same_records(found: Records, expected: Records) -> None:
    """Every column is equal and in the same order; vectors to within `TOLERANCE`."""
    assert found.ids == expected.ids
    assert found.document_ids == expected.document_ids
    assert found.texts == expected.texts
    assert found.content_hashes == expected.content_hashes
    for one, other in zip(found.metadata, expected.metadata, strict=True):
        assert _typed(one) == _typed(other)
    np.testing.assert_array_equal(found.ordinals, expected.ordinals)
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert [found.ordinals.dtype, found.codes.dtype] == [np.dtype("int32"), np.dtype("uint64")]
    assert found.vectors.dtype == np.dtype("float32")
    assert found.vectors.shape == expected.vectors.shape
    np.testing.assert_allclose(found.vectors, expected.vectors, rtol=0, atol=TOLERANCE)


def assert_same_hits(found: list[Hit], ranking: list[Hit], *, k: int) -> None:
    """The hits are the first k of the full reference ranking, up to ties within `TOLERANCE`."""
    expected = {hit.id: hit for hit in ranking}
    assert len(found) == min(k, len(ranking))
    assert len({hit.id for hit in found}) == len(found)
    for hit, at_its_place in zip(found, ranking, strict=False):
        reference = expected[hit.id]
        assert abs(hit.score - reference.score) <= TOLERANCE
        assert abs(reference.score - at_its_place.score) <= 2 * TOLERANCE
        assert (hit.document_id, hit.text) == (reference.document_id, reference.text)
        assert _typed(hit.metadata) == _typed(reference.metadata)
    order = [(-hit.score, hit.id) for hit in found]
    assert order == sorted(order)


def _typed(value: Any) -> Any:
    # JSON tells 1 from true and from 1.0, Python's == does not; 1.0 may come back as 1.
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return (isinstance(value, bool), value)


def scan_all(store: Store) -> Records:
    """The whole store in one piece; checks the size of the batches."""
    batches = list(store.scan(64))
    assert all(0 < len(batch) <= 64 for batch in batches)
    return join_records([no_records(store.info().schema.dim), *batches])
