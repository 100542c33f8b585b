"""Drawing records, new codes and graphs: on the server and on the edge store alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pytest

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import ConfigError
from nexus_vdb.hashing import pack
from nexus_vdb.interfaces import SupportsOptimize, SupportsRecode, SupportsSample
from nexus_vdb.registry import open_store
from nexus_vdb.testing.compare import Pair, assert_same_records
from nexus_vdb.testing.store import sample_queries, sample_records
from nexus_vdb.types import Floats, SearchPlan, StoreSchema
from tests.qdrant_server import LIVE, QdrantServer, live_collection, quick_folder

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))


@pytest.fixture(params=["server", "edge", *(["live"] if LIVE else [])])
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    """A URL at which there is nothing yet."""
    with ExitStack() as stack:
        if request.param == "live":
            yield stack.enter_context(live_collection())
            return
        folder = stack.enter_context(quick_folder())
        if request.param == "edge":
            yield f"qdrant-edge://{folder}/index"
        else:
            yield stack.enter_context(QdrantServer(folder)).url("docs")


def fill(url: str, count: int) -> Pair:
    pair = Pair(open_store(url, SCHEMA), MemoryStore.open("memory://", SCHEMA))
    pair.upsert(sample_records(count, dim=96))
    return pair


def test_a_sample_is_drawn_evenly(base: str) -> None:
    pair = fill(base, 300)
    store = pair.store
    assert isinstance(store, SupportsSample)
    drawn = store.sample(50)
    assert len(set(drawn.ids)) == 50
    assert_same_records(drawn, pair.reference.get(drawn.ids))
    everything = store.sample(1000)
    assert sorted(everything.ids) == sorted(sample_records(300, dim=96).ids)
    row_of = {id_: row for row, id_ in enumerate(everything.ids)}
    times = np.zeros(300)
    for _ in range(40):
        times[[row_of[id_] for id_ in store.sample(75).ids]] += 1
    assert times.sum() == 40 * 75
    assert times.min() > 0  # each is left out 40 times in a row once in 100,000
    assert 4 < times.var() < 12  # 7.5 of a fair draw
    store.close()


def test_an_empty_store_has_an_empty_sample(base: str) -> None:
    store = fill(base, 0).store
    assert isinstance(store, SupportsSample)
    assert len(store.sample(10)) == 0
    store.close()


def test_records_get_new_codes_and_keep_the_rest(base: str) -> None:
    pair = fill(base, 300)
    turn = np.random.default_rng(5).standard_normal((96, 64)).astype(np.float32)

    def codes_of(vectors: Floats) -> npt.NDArray[np.uint64]:
        # Not the last bits: the store keeps half precision.
        return pack(np.round(vectors @ turn, 1) + np.float32(0.05))

    store = pair.store
    assert isinstance(store, SupportsRecode)
    if isinstance(store, SupportsOptimize):
        store.optimize()
    store.recode(codes_of)
    records = store.get(sample_records(300, dim=96).ids)
    np.testing.assert_array_equal(records.codes, codes_of(records.vectors))
    assert (records.codes != sample_records(300, dim=96).codes).all()
    reference = pair.reference.get(records.ids)
    pair.upsert(reference)  # the old codes again
    pair.check_rows()
    pair.reference.upsert(records)
    store.recode(codes_of)
    pair.check_rows()
    # The hash is searched by the new codes: the one that the query has comes first.
    queries = sample_queries(1, dim=96)
    [hits] = store.search(queries, SearchPlan(k=3, candidates=300, cuts=(96,)))
    assert len(hits) == 3
    store.close()


def test_what_has_its_code_already_is_not_written(base: str) -> None:
    pair = fill(base, 30)
    written: list[object] = []
    assert isinstance(pair.store, SupportsRecode)
    [page] = pair.store.scan()
    known = {row.tobytes(): code for row, code in zip(page.vectors, page.codes, strict=True)}
    pair.store._recode = written.append  # type: ignore[attr-defined]
    pair.store.recode(lambda vectors: np.array([known[row.tobytes()] for row in vectors]))
    assert written == []
    pair.store.close()


def test_a_store_with_a_graph_stays_one(base: str) -> None:
    pair = fill(f"{base}{'&' if '?' in base else '?'}hnsw=16", 300)
    for _ in range(2):
        assert pair.store.info().details["search"] == "graph"
        for candidates in (5, 300):
            plan = SearchPlan(k=5, candidates=candidates, cuts=(32, 96))
            pair.check_search(sample_queries(4, dim=96), plan)
            pair.check_search(sample_queries(4, dim=96), plan, {"lang": "en"})
        pair.check_search(sample_queries(4, dim=96), SearchPlan(5, "exact", (96,)))
        # A narrower last cut has no graph: the hash lets candidates through to it.
        pair.check_search(sample_queries(4, dim=96), SearchPlan(5, 300, (32,)))
        if isinstance(pair.store, SupportsOptimize):
            pair.store.optimize()
        pair.store.close()
        pair.store = open_store(base)
    pair.store.close()


def test_a_folder_has_one_shard() -> None:
    with pytest.raises(ConfigError, match="one shard"):
        open_store("qdrant-edge://x?shards=2", SCHEMA)


def test_searches_from_several_threads(base: str) -> None:
    pair = fill(base, 120)
    wrong: list[Exception | AssertionError] = []

    def search() -> None:
        try:
            for _ in range(5):
                pair.check_search(sample_queries(3, dim=96), SearchPlan(5, "exact", (96,)))
        except Exception as error:  # reported by the test's own thread
            wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    pair.store.close()
