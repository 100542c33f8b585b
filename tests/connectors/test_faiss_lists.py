from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexus_vdb.connectors import _faiss_search
from nexus_vdb.connectors._faiss_lists import list_rows, read_lists
from nexus_vdb.connectors._faiss_scan import HashScan, table_scores
from nexus_vdb.connectors._faiss_signs import signs_of, signs_width
from nexus_vdb.connectors._faiss_state import State
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.filters import Range
from nexus_vdb.hashing import ItqHash, asymmetric_scores, hamming, pack, signs
from nexus_vdb.ranking import Rows, cut_vectors
from nexus_vdb.records import take_queries, take_records
from nexus_vdb.testing.compare import Pair
from nexus_vdb.testing.store import StoreContract, sample_records
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan, StoreSchema

SCHEMA = StoreSchema(dim=96, cuts=(64, 96))


@pytest.fixture
def from_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_faiss_write", "_faiss_state"):
        for name in ("LISTED", "SIGNED"):
            monkeypatch.setattr(f"nexus_vdb.connectors.{module}.{name}", 100)


@pytest.mark.usefixtures("from_a_hundred")
class TestFaissStoreWithLists(StoreContract):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return f"faiss://{tmp_path / 'store'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def near_each_other(n: int, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, 96))
    noise = 1.5 * random.standard_normal((n, 96))
    return cut_vectors(centres[random.integers(50, size=n)] + noise, 96)


class Filled:
    """A store of 6000 records in one segment with lists, its reference, and queries."""

    def __init__(self, folder: Path) -> None:
        vectors = near_each_other(6000)
        itq = ItqHash.fit(vectors)
        self.records: Records = replace(
            sample_records(6000, dim=96), vectors=vectors, codes=pack(itq.logits(vectors))
        )
        store = FaissStore.open(f"faiss://{folder}", SCHEMA)
        self.pair = Pair(store, MemoryStore.open("memory://", SCHEMA))
        self.pair.upsert(self.records)
        asked = near_each_other(20, seed=1)
        self.queries = QueryBatch(asked, itq.logits(asked), pack(itq.logits(asked)))

    def recall(self, plan: SearchPlan) -> float:
        exact = self.pair.reference.search(self.queries, replace(plan, candidates="exact"))
        found = self.pair.store.search(self.queries, plan)
        shares = [
            len({hit.id for hit in mine} & {hit.id for hit in right}) / plan.k
            for mine, right in zip(found, exact, strict=True)
        ]
        return float(np.mean(shares))


@pytest.fixture
def filled(folder: Path, from_a_hundred: None) -> Iterator[Filled]:
    filled = Filled(folder)
    yield filled
    filled.pair.store.close()


# The lists themselves


def test_every_row_has_one_place_near_its_centroid(tmp_path: Path) -> None:
    rows = near_each_other(3000).astype(np.float16)
    order, count = list_rows(tmp_path / "lists.npz", rows)
    lists = read_lists(tmp_path / "lists.npz")
    assert sorted(order.tolist()) == list(range(3000))
    assert len(lists) == count == len(lists.starts) - 1
    assert (lists.starts[0], lists.starts[-1]) == (0, 3000)
    assert 150 < count < 300
    own = np.repeat(np.arange(count), np.diff(lists.starts))
    projected = cut_vectors(rows[order].astype(np.float32) @ lists.axes, lists.axes.shape[1])
    scores = projected @ lists.centroids.astype(np.float32).T
    ranks = (scores > scores[np.arange(3000), own][:, None] + 1e-3).sum(axis=1)
    assert np.mean(ranks == 0) > 0.8
    again, _ = list_rows(tmp_path / "again.npz", rows)
    np.testing.assert_array_equal(order, again)


def test_nearest_lists_are_visited_first(tmp_path: Path) -> None:
    rows = near_each_other(3000).astype(np.float16)
    order, count = list_rows(tmp_path / "lists.npz", rows)
    lists = read_lists(tmp_path / "lists.npz")
    asked = near_each_other(5, seed=1)
    for share, expected in ((1e-9, 1), (0.1, round(0.1 * count + 0.5)), (1.0, count)):
        for numbers, query in zip(lists.nearest(asked, share), asked, strict=True):
            assert len(numbers) == expected
            assert (np.diff(numbers) > 0).all()
            slices, places = lists.places(numbers)
            assert places.tolist() == [p for part in slices for p in range(part.start, part.stop)]
            if share == 0.1:
                exact = np.argsort(-(rows.astype(np.float32) @ query))[:10]
                assert len(np.intersect1d(order[places], exact)) >= 6


# Searching a store that has them


def test_few_lists_hold_most_of_the_answer(filled: Filled) -> None:
    plan = SearchPlan(k=10, candidates=600, cuts=(64, 96))
    everything = filled.recall(plan)
    assert everything > 0.9
    assert filled.recall(replace(plan, probes=0.3)) > everything - 0.05
    assert filled.recall(replace(plan, probes=0.02)) < everything
    assert filled.recall(replace(plan, candidates=6000, cuts=(96,))) == 1


def test_signs_leave_the_best_of_many_candidates(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SearchPlan(k=10, candidates=3000, cuts=(64, 96))
    before = filled.recall(plan)
    monkeypatch.setattr("nexus_vdb.connectors._faiss_signs._LEAST", 600)
    left: list[int] = []
    sift = State.sifted

    def watched(state: State, places: Rows, unit: Floats, k: int) -> Rows:
        found = sift(state, places, unit, k)
        assert np.isin(found, places).all()
        left.append(len(found))
        return found

    monkeypatch.setattr(State, "sifted", watched)
    assert before - 0.05 < filled.recall(plan) <= before
    assert len(left) == 20
    assert 600 <= min(left) < max(left) < 900  # with ties
    hits = filled.pair.store.search(filled.queries, replace(plan, k=2000))
    assert [len(mine) for mine in hits] == [2000] * 20


def test_signs_of_vectors() -> None:
    vectors = np.array([[0.5, -0.5, 0.0] * 5, [-1.0] * 15, [1.0] * 15], dtype=np.float16)
    found = signs_of(vectors)
    assert found.shape == (3, signs_width(15)) == (3, 2)
    bits = np.unpackbits(found, axis=1, bitorder="little")
    np.testing.assert_array_equal(bits[:, :15], vectors < 0)
    assert not bits[:, 15].any()


def test_a_batch_is_probed_as_its_queries_are(filled: Filled) -> None:
    plan = SearchPlan(k=10, candidates=200, cuts=(64, 96), probes=0.1)
    together = filled.pair.store.search(filled.queries, plan)
    for row in range(len(filled.queries)):
        part = slice(row, row + 1)
        logits, codes = filled.queries.hash_logits[part], filled.queries.codes[part]
        one = QueryBatch(filled.queries.vectors[part], logits, codes)
        (alone,) = filled.pair.store.search(one, plan)
        assert [hit.id for hit in alone] == [hit.id for hit in together[row]]


@pytest.mark.parametrize("cuts", [(64, 96), (96,), (64,), (32, 96)])
def test_many_candidates_are_compared_in_one_pass_with_the_same_answer(
    filled: Filled, cuts: tuple[int, ...]
) -> None:
    store = filled.pair.store
    store.delete(ids=filled.records.ids[::7])
    store.upsert(replace(filled.records, vectors=near_each_other(6000, seed=2)))
    store.delete(ids=filled.records.ids[::5])
    plan = SearchPlan(10, 500, cuts)
    for where in (None, Range(("index",), lt=4000)):
        together = store.search(filled.queries, plan, where)  # 20 queries x 500 > 4,800 rows
        ones = [store.search(take_queries(filled.queries, [n]), plan, where) for n in range(20)]
        assert together == [hits for (hits,) in ones]


@pytest.mark.parametrize(("added", "probes"), [(0, (0.02, 0.3, 1.0)), (50, (1.0,))])
def test_a_record_is_found_from_its_depth_on(
    filled: Filled, added: int, probes: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexus_vdb.connectors._faiss_scan._MANY_WANTED", 10_000)  # in exact order
    store, ids = filled.pair.store, filled.records.ids
    assert isinstance(store, FaissStore)
    store.delete(ids=ids[::7])
    store.upsert(take_records(filled.records, range(1, added)))
    asked = [ids[1 + 7 * number :: 1400] for number in range(20)]
    depths = store.depths(filled.queries, asked, probes)
    assert all(len(mine) == 5 for mine in depths)
    for place, share in enumerate(probes):
        for row, some in list(enumerate(asked))[::5]:
            query = take_queries(filled.queries, [row])
            for id_, depth in zip(some, depths[row][:, place].tolist(), strict=True):
                for count in (depth, depth - 3):  # near ties count as no worse
                    if 0 < count <= len(ids):
                        plan = SearchPlan(count, count, (96,), probes=share)
                        found = {hit.id for hit in store.search(query, plan)[0]}
                        assert (id_ in found) == (count == depth)
    held = np.mean(np.concatenate(depths) <= len(ids), axis=0)
    assert held[-1] == 1
    assert (np.diff(held) > 0).all()


def test_k_hits_are_found_where_lists_hold_fewer(filled: Filled) -> None:
    plan = SearchPlan(k=900, candidates=900, cuts=(64, 96), probes=1e-6)
    assert [len(hits) for hits in filled.pair.store.search(filled.queries, plan)] == [900] * 20


def test_deleted_rows_are_not_found_in_lists(filled: Filled) -> None:
    gone = filled.records.ids[::5]
    for store in (filled.pair.store, filled.pair.reference):
        assert store.delete(ids=gone) == 1200
    plan = SearchPlan(k=10, candidates=600, cuts=(64, 96), probes=0.3)
    for hits in filled.pair.store.search(filled.queries, plan):
        assert not {hit.id for hit in hits} & set(gone)
    assert filled.recall(plan) > 0.85
    filled.pair.check_search(filled.queries, replace(plan, candidates="exact"))
    filled.pair.check_search(filled.queries, replace(plan, candidates="exact", cuts=(64,)))


def test_probing_finds_what_was_added_since(filled: Filled) -> None:
    new, same = sample_records(50, seed=5, dim=96), [0] * 50
    vectors, codes = filled.queries.vectors[same], filled.queries.codes[same]
    new = replace(new, vectors=vectors, codes=codes)
    filled.pair.upsert(new)
    plan = SearchPlan(k=50, candidates=100, cuts=(64, 96), probes=0.01)
    hits = filled.pair.store.search(filled.queries, plan)[0]
    assert [hit.id for hit in hits] == sorted(new.ids)
    filled.pair.store.optimize()  # type: ignore[attr-defined]
    hits = filled.pair.store.search(filled.queries, plan)[0]
    assert [hit.id for hit in hits] == sorted(new.ids)
    filled.pair.check_rows()


def test_optimize_gives_lists_to_an_older_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaissStore.open(f"faiss://{folder}", SCHEMA)
    store.upsert(sample_records(300, dim=96))
    assert not list(folder.rglob("lists.npz"))
    for module in ("_faiss_write", "_faiss_state"):
        for name in ("LISTED", "SIGNED"):
            monkeypatch.setattr(f"nexus_vdb.connectors.{module}.{name}", 100)
    store.optimize()
    assert len(list(folder.rglob("lists.npz"))) == 1
    generation = store.info().details["generation"]
    store.optimize()
    assert store.info().details["generation"] == generation


def test_vectors_of_one_cut_have_lists_too(folder: Path, from_a_hundred: None) -> None:
    schema = StoreSchema(dim=96, cuts=(96,))
    store = FaissStore.open(f"faiss://{folder}", schema)
    pair = Pair(store, MemoryStore.open("memory://", schema))
    vectors = near_each_other(800)
    pair.upsert(replace(sample_records(800, dim=96), vectors=vectors))
    assert len(list(folder.rglob("lists.npz"))) == 1
    pair.check_rows()
    queries = QueryBatch(vectors[:3], np.zeros((3, 64), np.float32), np.zeros(3, np.uint64))
    plan = SearchPlan(k=1, candidates=800, cuts=(96,), probes=0.2)
    found = [hits[0].id for hits in store.search(queries, plan)]
    assert found == sample_records(3, dim=96).ids


def test_no_query_of_a_large_batch_is_left_to_pass_over_the_files_alone(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_faiss_search, "kept", lambda candidates, k: candidates)
    passes: list[int] = []

    def counted(state: State, queries: QueryBatch, *rest: Any, **options: Any) -> list[list[Hit]]:
        passes.append(len(queries))
        return [[] for _ in queries.vectors]

    monkeypatch.setattr(_faiss_search, "_answers", counted)
    rows = np.arange(16 * 3 + 1)
    queries = QueryBatch(
        filled.records.vectors[rows], np.zeros((49, 64), np.float32), filled.records.codes[rows]
    )
    assert (
        len(filled.pair.store.search(queries, SearchPlan(k=1, candidates=10, cuts=(64, 96)))) == 49
    )
    assert passes == [12, 12, 12, 13]


def test_a_seed_gives_the_same_sample(filled: Filled) -> None:
    store = filled.pair.store
    assert isinstance(store, FaissStore)
    one = store.sample(300, seed=3).ids
    assert one == store.sample(300, seed=3).ids != store.sample(300, seed=4).ids
    rows = [filled.records.ids.index(id_) for id_ in one]
    assert 2500 < np.mean(rows) < 3500


# What goes wrong


@pytest.mark.parametrize("name", ["lists.npz", "order.u32", "signs.u8"])
def test_a_missing_or_cut_list_file_is_named(filled: Filled, folder: Path, name: str) -> None:
    filled.pair.store.close()
    (path,) = folder.rglob(name)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreCorrupt, match=name):
        FaissStore.open(f"faiss://{folder}")
    path.unlink()
    with pytest.raises(StoreCorrupt, match=f"{name} is missing"):
        FaissStore.open(f"faiss://{folder}")


def test_codes_stay_as_they_are_if_recoding_is_cut_short(
    filled: Filled, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled.pair.store
    assert isinstance(store, FaissStore)

    def full(path: Path, manifest: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("nexus_vdb.connectors.faiss.write_manifest", full)
        with pytest.raises(StoreError, match="No space left"):
            store.recode(lambda vectors: pack(-vectors[:, :64]))
    for one in (store, FaissStore.open(f"faiss://{folder}")):
        found = one.get(filled.records.ids[:40])
        np.testing.assert_array_equal(found.codes, filled.records.codes[:40])
    store.recode(lambda vectors: pack(-vectors[:, :64]))
    assert len(list(folder.rglob("codes*"))) == 1
    found = FaissStore.open(f"faiss://{folder}").get(filled.records.ids[:40])
    np.testing.assert_array_equal(found.codes, pack(-filled.records.vectors[:40, :64]))


# The hash scan


def test_many_codes_are_scored_as_few_are() -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 2**64, size=20_000, dtype=np.uint64)
    logits = random.standard_normal((1, 64)).astype(np.float32)
    expected = asymmetric_scores(logits, codes)[0]
    np.testing.assert_allclose(table_scores(logits[0], codes), expected, atol=1e-4)
    np.testing.assert_allclose(table_scores(logits[0], codes[:99]), expected[:99], atol=1e-4)


@pytest.mark.parametrize("n", [900, 20_000])
def test_signs_as_logits_rank_by_hamming_distance(n: int) -> None:
    random = np.random.default_rng(2)
    codes = random.integers(0, 2**64, size=n, dtype=np.uint64)
    asked = random.integers(0, 2**64, size=3, dtype=np.uint64)
    distances = hamming(asked, codes)
    found = HashScan(codes, None).best(signs(asked), 50)
    for (rows, scores), mine in zip(found, distances, strict=True):
        np.testing.assert_array_equal((64 - scores) / 2, mine[rows])
        assert mine[rows].max() <= np.sort(mine)[50]
        assert len(rows) >= 50
