"""One `FaissStore` that some threads read while another writes to it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nexus_vdb.connectors import _faiss_state
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.interfaces import SupportsConcurrentReads
from nexus_vdb.testing.store import sample_id, sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))
_WRITES, _ROWS = 40, 25


def test_reads_find_all_that_was_written_before_they_began(tmp_path: Path) -> None:
    store = FaissStore.open(f"faiss://{tmp_path / 'store'}", SCHEMA)
    assert isinstance(store, SupportsConcurrentReads)
    store.upsert(sample_records(_ROWS, dim=96))
    written = 1
    done = threading.Event()
    plan = SearchPlan(k=_ROWS * _WRITES, candidates="exact", cuts=(96,))

    def read() -> int:
        rounds = 0
        while not done.is_set():
            least, number = written, rounds % written
            ids = [sample_id(row, number) for row in range(_ROWS)]
            documents = sorted(set(store.get(ids).document_ids))
            assert set(store.fingerprints(documents)) == set(documents)
            assert len(store.get(ids)) == _ROWS
            assert store.count() >= _ROWS * least
            assert len(store.search(sample_queries(1, dim=96), plan)[0]) >= _ROWS * least
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for seed in range(1, _WRITES):  # enough for segments to be merged
                store.upsert(sample_records(_ROWS, seed=seed, dim=96))
                written = seed + 1
        finally:
            done.set()
        assert min(reader.result() for reader in readers) > 3
    assert store.count() == _ROWS * _WRITES


def test_a_read_that_comes_late_does_not_bring_back_an_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"faiss://{tmp_path / 'store'}"
    store = FaissStore.open(url, SCHEMA)
    store.close()
    store, other = FaissStore.open(url), FaissStore.open(url)
    other.upsert(sample_records(5, seed=1, dim=96))
    other.close()
    reading, go_on = threading.Event(), threading.Event()
    load = _faiss_state.load_state

    def slow(*args: Any, **options: Any) -> Any:
        state = load(*args, **options)
        if threading.current_thread() is reader:
            reading.set()
            assert go_on.wait(10)
        return state

    monkeypatch.setattr(_faiss_state, "load_state", slow)
    reader = threading.Thread(target=store.count)
    reader.start()
    assert reading.wait(10)
    writer = threading.Thread(target=store.upsert, args=(sample_records(7, seed=2, dim=96),))
    writer.start()
    writer.join(0.3)
    go_on.set()
    for thread in (reader, writer):
        thread.join(10)
    store.upsert(sample_records(9, seed=3, dim=96))
    assert store.count() == FaissStore.open(url).count() == 5 + 7 + 9
