"""Random histories of one store, compared with the reference after each step."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nexus_vdb.connectors import _faiss_state, _faiss_write
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.compare import Pair, assert_same_records, scan_all, select
from nexus_vdb.testing.store import sample_id, sample_queries, sample_records
from nexus_vdb.types import Floats, SearchPlan, StoreSchema

SCHEMA = StoreSchema(dim=8, cuts=(4, 8))
_RECORDS = sample_records(60, dim=8)
_PARTS = st.sets(st.integers(0, 59), min_size=1, max_size=25)


class History(RuleBasedStateMachine):
    """Segments are merged after few writes, and have lists from 24 rows on."""

    @initialize()
    def make(self) -> None:
        self.patch = pytest.MonkeyPatch()
        for module in (_faiss_write, _faiss_state):
            self.patch.setattr(module, "LISTED", 24)
        self.patch.setattr(_faiss_state, "_FAN", 3)
        self.patch.setattr(_faiss_state, "_FAN_LARGE", 3)
        self.patch.setattr(_faiss_state, "_SMALLEST", 8)
        self.folder = Path(tempfile.mkdtemp())
        self.url = f"faiss://{self.folder}/index"
        self.pair = Pair(FaissStore.open(self.url, SCHEMA), MemoryStore.open("memory://", SCHEMA))
        self.reader = FaissStore.open(self.url)
        self.turn = 0

    @rule(rows=_PARTS)
    def upsert(self, rows: set[int]) -> None:
        self.turn += 1
        part = select(_RECORDS, [sample_id(row) for row in sorted(rows)])
        metadata: list[dict[str, Any]] = [{"row": row, "turn": self.turn} for row in sorted(rows)]
        vectors = np.roll(part.vectors, self.turn, axis=1)
        self.pair.upsert(replace(part, metadata=metadata, vectors=vectors))

    @rule(rows=_PARTS)
    def delete_by_id(self, rows: set[int]) -> None:
        self._delete(ids=[sample_id(row) for row in rows])

    @rule(row=st.integers(0, 59), below=st.booleans())
    def delete_by_filter(self, row: int, below: bool) -> None:
        self._delete(where=parse_filter({"row": {"$lt" if below else "$eq": row}}))

    @rule()
    def delete_what_is_old(self) -> None:
        self._delete(where=parse_filter({"turn": {"$lt": self.turn}}))

    def _delete(self, **what: Any) -> None:
        assert self.pair.store.delete(**what) == self.pair.reference.delete(**what)

    @rule()
    def optimize(self) -> None:
        assert isinstance(self.pair.store, FaissStore)
        self.pair.store.optimize()
        assert self.pair.store.info().details["dead_rows"] == 0

    @rule(sign=st.booleans())
    def recode(self, sign: bool) -> None:
        def codes_of(vectors: Floats) -> Any:
            bits = (vectors > 0) == sign
            return np.packbits(np.tile(bits, 8), axis=1).view(np.uint64).ravel()

        assert isinstance(self.pair.store, FaissStore)
        self.pair.store.recode(codes_of)
        for batch in self.pair.store.scan():  # codes are made of vectors rounded to float16
            self.pair.reference.upsert(batch)

    @rule(value=st.integers())
    def set_meta(self, value: int) -> None:
        self.pair.store.set_meta("value", value)
        self.pair.reference.set_meta("value", value)

    @rule()
    def reopen(self) -> None:
        self.pair.store.close()
        self.pair.store = FaissStore.open(self.url)

    @invariant()
    def both_hold_the_same(self) -> None:
        if not hasattr(self, "pair"):
            return
        ids = sorted(scan_all(self.pair.reference).ids)
        for store in (self.pair.store, self.reader):
            assert store.count() == len(ids)
            assert_same_records(store.get(ids), self.pair.reference.get(ids))
            assert sorted(scan_all(store).ids) == ids
            assert store.info().meta == self.pair.reference.info().meta
            where = parse_filter({"turn": self.turn})
            assert store.count(where) == self.pair.reference.count(where)
        plan = SearchPlan(k=60, candidates="exact", cuts=(8,))
        Pair(self.reader, self.pair.reference).check_search(sample_queries(1, dim=8), plan)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.store.close()
            assert FaissStore.check(self.url) == []
            shutil.rmtree(self.folder)
            self.patch.undo()


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
