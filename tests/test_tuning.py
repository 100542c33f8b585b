from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import nexus_vdb as nx
from nexus_vdb import tuning
from nexus_vdb.calibration import queries_as_asked
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.hashing import ItqHash, pack
from nexus_vdb.search import has_hash, make_plan, stored_hash, vector_queries
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.testing.samples import sample_records
from nexus_vdb.tuning import choose_hash, coding_hash, declare_hash, fit_hash, switch_hash, tune
from nexus_vdb.types import Floats, Records, StoreSchema

ENCODER = FakeEncoder(96)
COUNT = 1200


def plain(count: int, dim: int) -> Records:
    """Records without metadata, which take a store no time to copy."""
    return replace(sample_records(count, dim=dim), metadata=[{} for _ in range(count)])


def foreign(count: int, dim: int) -> tuple[MemoryStore, Records]:
    store = MemoryStore.open("memory://", StoreSchema(dim, (dim,)))
    records = replace(plain(count, dim), codes=np.zeros(count, np.uint64))
    store.upsert(records)
    return store, records


def texts(count: int) -> list[str]:
    words = np.random.default_rng(1).zipf(1.3, size=(count, 30)) % 3000
    return [" ".join(f"w{word}" for word in row) for row in words]


def filled(kind: type[MemoryStore] = MemoryStore, count: int = COUNT) -> MemoryStore:
    """A store whose codes are those of a poor model: half of the bits say nothing."""
    schema = StoreSchema(96, (96,), ENCODER.fingerprint, ENCODER.name)
    store = kind.open("memory://", schema)
    made, sample = ENCODER.encode(texts(count)), plain(count, 96)
    codes = made.codes & np.uint64(0xFFFFFFFF)
    store.upsert(replace(sample, texts=texts(count), vectors=made.vectors, codes=codes))
    store.set_meta("hash", "model")
    return store


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand records count as many."""
    monkeypatch.setattr(tuning, "EXACT_BELOW", 1000)
    monkeypatch.setattr("nexus_vdb.calibration.EXACT_BELOW", 1000)
    monkeypatch.setattr(tuning, "_FIT_FROM", 1000)
    monkeypatch.setattr(tuning, "_BATCH", 1000)


def assert_rotated(store: MemoryStore) -> None:
    """Every code is that of the rotation which the store names."""
    info = store.info()
    itq = stored_hash(info)
    assert itq is not None
    records = next(store.scan(info.count))
    assert (records.codes == pack(itq.logits(records.vectors))).all()


def test_ready_made_vectors_get_a_hash_once_there_are_enough() -> None:
    assert fit_hash(foreign(999, 64)[0]) is None
    assert fit_hash(foreign(1000, 63)[0]) is None
    store, records = foreign(1000, 64)
    itq = fit_hash(store)
    assert itq is not None
    assert_rotated(store)
    made = vector_queries(records.vectors, stored_hash(store.info()))
    assert (store.get(records.ids).codes == made.codes).all()
    assert len(set(made.codes.tolist())) > 500
    again = fit_hash(store)
    assert again is not None
    np.testing.assert_array_equal(again.projection, itq.projection)


def test_a_store_with_poor_codes_switches_to_a_rotation_of_its_own() -> None:
    store = filled()
    assert choose_hash(store, queries_as_asked(store.info(), ENCODER))
    assert_rotated(store)
    choice = store.info().meta["hash_choice"]
    assert choice["needed"]["fitted"] <= 0.8 * choice["needed"]["before"]
    assert (choice["n"], choice["sample"], len(choice["at"])) == (COUNT, 333, 10)
    # Not looked at again before the store has grown to four times its size.
    store.set_meta("hash_choice", {**choice, "n": COUNT // 4 + 1})
    assert not choose_hash(store, queries_as_asked(store.info(), ENCODER))
    assert store.info().meta["hash_choice"]["n"] == COUNT // 4 + 1


def test_codes_that_serve_well_stay() -> None:
    store = filled()
    vectors = next(store.scan(COUNT)).vectors
    switch_hash(store, ItqHash.fit(vectors, seed=7))
    store.set_meta("hash_choice", None)
    before = next(store.scan(COUNT)).codes
    assert not choose_hash(store, queries_as_asked(store.info(), ENCODER))
    assert (next(store.scan(COUNT)).codes == before).all()
    assert store.info().meta["hash_choice"]["n"] == COUNT


def test_a_small_store_keeps_its_codes() -> None:
    store = filled(count=1000)
    tune(store, ENCODER)
    assert store.info().meta == {"hash": "model"}


class RecodingStore(MemoryStore):
    recoded = 0

    def recode(self, codes_of: Callable[[Floats], npt.NDArray[np.uint64]]) -> None:
        RecodingStore.recoded += 1
        assert not has_hash(self.info())
        for records in list(self.scan()):
            super().upsert(replace(records, codes=codes_of(records.vectors)))

    def upsert(self, records: Records) -> None:
        assert self.count() == 0
        super().upsert(records)


def test_a_store_that_can_recode_is_not_rewritten() -> None:
    store = filled(RecodingStore)
    tune(store, ENCODER)
    assert RecodingStore.recoded == 1
    assert_rotated(store)


class Killed(Exception):
    pass


class MortalStore(MemoryStore):
    """Dies instead of carrying out its nth write."""

    left = 10**9

    def upsert(self, records: Records) -> None:
        self._live()
        super().upsert(records)

    def set_meta(self, key: str, value: Any) -> None:
        self._live()
        super().set_meta(key, value)

    def _live(self) -> None:
        MortalStore.left -= 1
        if MortalStore.left < 0:
            raise Killed


@pytest.mark.parametrize("writes", range(8))
def test_a_kill_at_any_write_leaves_a_store_that_the_next_run_puts_right(writes: int) -> None:
    MortalStore.left = 10**9
    store = filled(MortalStore)
    MortalStore.left = writes
    with pytest.raises(Killed):
        tune(store, ENCODER)
    MortalStore.left = 10**9
    info = store.info()
    codes = next(store.scan(COUNT)).codes
    if info.meta["hash"] == "model":
        assert writes == 0
        assert (codes == ENCODER.encode(texts(COUNT)).codes & np.uint64(0xFFFFFFFF)).all()
    elif info.meta["hash"] == "itq":
        assert_rotated(store)
    else:
        assert make_plan(replace(info, count=10**6)).candidates == "exact"
    # What is written meanwhile fits what will be declared.
    itq = coding_hash(info)
    assert (itq is None) == ("itq" not in info.meta)

    tune(store, ENCODER)
    assert_rotated(store)
    assert store.info().meta["calibration"]["n"] == COUNT
    assert store.count() == COUNT


def test_a_hash_that_was_cut_short_is_finished_with_the_same_rotation() -> None:
    store, records = foreign(1000, 64)
    itq = ItqHash.fit(records.vectors, seed=3)
    store.set_meta("itq", itq.to_json())
    assert stored_hash(store.info()) is None
    declare_hash(store)
    assert (store.get(records.ids).codes == pack(itq.logits(records.vectors))).all()
    assert store.info().meta["hash"] == "itq"


def test_later_ingests_code_by_the_rotation_and_texts_are_searched_by_it() -> None:
    with nx.open("memory://tuned-by-ingest", encoder=ENCODER) as collection:
        ids = [f"d{row}" for row in range(COUNT)]
        collection.add(texts(COUNT), ids=ids)
        switch_hash(collection.store, ItqHash.fit(ENCODER.encode(texts(COUNT)).vectors))
        collection.add(["an addition about nothing else"], ids=["new"])
        assert isinstance(collection.store, MemoryStore)
        assert_rotated(collection.store)
        assert collection.count == COUNT + 1
        hits = collection.search("an addition about nothing else", k=1, candidates=5)
        assert hits[0].document_id == "new"
        hits = collection.search(texts(COUNT)[700], k=3, candidates=30)
        assert hits[0].document_id == "d700"
