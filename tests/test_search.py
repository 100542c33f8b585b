from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.errors import ConfigError, DimensionMismatch, FingerprintMismatch
from nexus_vdb.hashing import asymmetric_scores
from nexus_vdb.search import (
    calibrate,
    check_model,
    choose_candidates,
    fit_hash,
    make_plan,
    needs_calibration,
    opening_words,
    stored_hash,
    vector_queries,
)
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.testing.samples import sample_records
from nexus_vdb.types import Floats, QueryBatch, Records, StoreInfo, StoreSchema

CALIBRATION = {"n": 50_000, "sample": 10_000, "table": {"0.9": 50, "0.98": 200, "0.99": 3000}}


def info(count: int = 100_000, **meta: Any) -> StoreInfo:
    schema = StoreSchema(fingerprint=FakeEncoder().fingerprint, model="fake-768-0")
    return StoreInfo("memory://", schema, count, meta)


def test_cuts_lead_up_to_the_dimension_asked_for() -> None:
    assert make_plan(info()).cuts == (256, 768)
    assert make_plan(info(), dim=512, valid_dims=(256, 512, 768)).cuts == (256, 512)
    assert make_plan(info(), dim=256).cuts == (256,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 512}, "Invalid dim=512; valid: 256, 768"),
        ({"dim": 300, "valid_dims": (256, 512, 768)}, "Invalid dim=300; valid: 256, 512, 768"),
        ({"k": 0}, "Invalid k=0; valid: 1 or more"),
        ({"candidates": 0}, "Invalid candidates=0; valid: a number, auto, exact"),
        ({"candidates": "many"}, "Invalid candidates=many; valid: a number, auto, exact"),
        ({"target_recall": 1.5}, "Invalid target_recall=1.5; valid: above 0, at most 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(info(), **options)
    assert str(caught.value) == message


def test_candidates_given_are_kept_but_never_fewer_than_hits() -> None:
    assert make_plan(info(hash="model"), candidates=500).candidates == 500
    assert make_plan(info(hash="model"), k=50, candidates=20).candidates == 50
    assert make_plan(info(hash="model"), candidates="exact").candidates == "exact"


def test_a_store_without_a_hash_is_searched_exactly() -> None:
    assert make_plan(info(), candidates=500).candidates == "exact"
    assert make_plan(info()).candidates == "exact"


def test_auto_scales_the_calibration_with_the_records_searched() -> None:
    calibrated = info(hash="model", calibration=CALIBRATION)
    assert choose_candidates(calibrated, k=10, target_recall=0.9) == 500
    assert choose_candidates(calibrated, k=10, target_recall=0.98) == 2000
    assert choose_candidates(calibrated, k=10, target_recall=0.98, matching=40_000) == 800
    assert choose_candidates(calibrated, k=300, target_recall=0.98) == 3000
    assert make_plan(calibrated).candidates == 2000


def test_auto_is_exact_where_that_is_cheaper() -> None:
    calibrated = info(hash="model", calibration=CALIBRATION)
    assert choose_candidates(calibrated, k=10, target_recall=0.99) == "exact"
    assert choose_candidates(calibrated, k=10, target_recall=0.995) == "exact"
    assert choose_candidates(calibrated, k=10, matching=20_000) == "exact"
    assert choose_candidates(info(20_000, hash="model"), k=10) == "exact"


def test_auto_takes_three_percent_of_what_was_not_calibrated() -> None:
    assert choose_candidates(info(hash="model"), k=10) == 3000


def test_calibration_is_due_when_a_store_is_large_and_has_grown() -> None:
    assert needs_calibration(info(20_001, hash="model"))
    assert not needs_calibration(info(20_000, hash="model"))
    assert not needs_calibration(info(100_000))
    assert not needs_calibration(info(60_000, hash="model", calibration=CALIBRATION))
    assert needs_calibration(info(60_001, hash="model", calibration=CALIBRATION))


def texts(count: int) -> list[str]:
    random = np.random.default_rng(1)
    words = random.zipf(1.3, size=(count, 30)) % 3000
    return [" ".join(f"w{word}" for word in row) for row in words]


def embedded(count: int) -> Records:
    made, sample = FakeEncoder().encode(texts(count)), sample_records(count)
    return Records(
        sample.ids,
        sample.document_ids,
        sample.ordinals,
        texts(count),
        sample.metadata,
        sample.content_hashes,
        made.vectors,
        made.codes,
    )


def test_calibration_finds_the_depth_that_holds_the_exact_answer() -> None:
    store = MemoryStore.open("memory://", info().schema)
    records = embedded(1200)
    store.upsert(records)
    asked: list[QueryBatch] = []

    def queries(some: Records) -> QueryBatch:
        assert len(some) == 256
        asked.append(FakeEncoder().encode(opening_words(some.texts)))
        return asked[0]

    found = calibrate(store, queries)
    assert store.info().meta["calibration"] == found
    assert (found["n"], found["sample"]) == (1200, 1200)
    depths = list(found["table"].values())
    assert depths == sorted(depths)
    recalls = [_recall(records, asked[0], depth) for depth in depths]
    # Here a query's own record counts as well, which the calibration leaves out.
    for level, recall in zip((0.9, 0.95, 0.98, 0.99), recalls, strict=True):
        assert level - 0.02 < recall < level + 0.03


def _recall(records: Records, queries: QueryBatch, depth: int) -> float:
    top = np.argsort(-(queries.vectors @ records.vectors.T), axis=1)[:, :10]
    hashed = asymmetric_scores(queries.hash_logits, records.codes)
    kept = np.argsort(-hashed, axis=1)[:, :depth]
    return float(np.mean([np.isin(t, c).mean() for t, c in zip(top, kept, strict=True)]))


def test_opening_words() -> None:
    assert opening_words(["one  two\nthree", "w " * 40]) == ["one two three", " ".join(["w"] * 16)]


def test_another_model_is_refused() -> None:
    check_model(info(), FakeEncoder())
    with pytest.raises(FingerprintMismatch, match="filled by fake-768-0 .* not by fake-768-1"):
        check_model(info(), FakeEncoder(seed=1))
    with pytest.raises(DimensionMismatch, match="768 dimensions, fake-96-0 makes 96"):
        check_model(info(), FakeEncoder(96))


def foreign(count: int, dim: int) -> tuple[MemoryStore, Records]:
    store = MemoryStore.open("memory://", StoreSchema(dim, (dim,)))
    records = sample_records(count, dim=dim)
    records = Records(
        records.ids,
        records.document_ids,
        records.ordinals,
        records.texts,
        records.metadata,
        records.content_hashes,
        records.vectors,
        np.zeros(count, np.uint64),
    )
    store.upsert(records)
    return store, records


def test_ready_made_vectors_get_a_hash_once_there_are_enough() -> None:
    assert fit_hash(foreign(4095, 64)[0]) is None
    assert fit_hash(foreign(4096, 63)[0]) is None
    store, records = foreign(4096, 64)
    itq = fit_hash(store)
    assert itq is not None
    assert store.info().meta["hash"] == "itq"
    made = vector_queries(records.vectors, stored_hash(store.info()))
    codes = store.get(records.ids).codes
    assert (codes == made.codes).all()
    assert len(set(codes.tolist())) > 2000


def test_a_hash_that_was_cut_short_is_finished_with_the_same_rotation() -> None:
    store, records = foreign(4096, 64)
    itq = fit_hash(store)
    assert itq is not None
    half, _ = foreign(4096, 64)
    half.set_meta("itq", itq.to_json())
    assert stored_hash(half.info()) is None
    fit_hash(half)
    assert (half.get(records.ids).codes == store.get(records.ids).codes).all()


def test_vector_queries_are_unit_rows() -> None:
    vectors: Floats = np.array([[3, 4], [0, -2]], dtype=np.float32)
    queries = vector_queries(vectors, None)
    assert np.allclose(queries.vectors, [[0.6, 0.8], [0.0, -1.0]])
    assert not queries.hash_logits.any()
