from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nexus_vdb.errors import ConfigError, DimensionMismatch, FingerprintMismatch
from nexus_vdb.search import (
    check_model,
    choose_depth,
    expected_recall,
    make_plan,
    vector_queries,
)
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import Floats, SearchPlan, StoreInfo, StoreSchema

POINTS = [
    {"candidates": 200, "probes": 0.02, "recall": 0.93, "error": 0.01},
    {"candidates": 400, "probes": 1.0, "recall": 0.95, "error": 0.01},
    {"candidates": 1000, "probes": 0.02, "recall": 0.97, "error": 0.005},
    {"candidates": 1000, "probes": 1.0, "recall": 0.985, "error": 0.004},
    {"candidates": 30_000, "probes": 1.0, "recall": 0.995, "error": 0.001},
]
CALIBRATION = {"n": 100_000, "queries": 200, "points": POINTS}
OLD_CALIBRATION = {"n": 100_000, "sample": 10_000, "table": {"0.9": 50, "0.98": 200}}


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


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.9, (200, 0.02)),
        (0.92, (200, 0.02)),
        (0.96, (1000, 0.02)),
        (0.98, (1000, 1.0)),
        (0.99, ("exact", 1.0)),  # 30,000 of 100,000 records
        (0.999, ("exact", 1.0)),  # never measured
    ],
)
def test_auto_takes_the_cheapest_point_that_reaches_the_target(
    target: float, expected: tuple[int | str, float]
) -> None:
    calibrated = info(hash="itq", calibration=CALIBRATION)
    assert choose_depth(calibrated, k=10, target_recall=target) == expected
    plan = make_plan(calibrated, target_recall=target)
    assert (plan.candidates, plan.probes) == expected


def test_candidates_grow_with_the_store_and_shrink_more_slowly() -> None:
    def depth(count: int, k: int = 10, matching: int | None = None) -> int | str:
        calibrated = info(count, hash="itq", calibration=CALIBRATION)
        return choose_depth(calibrated, k=k, target_recall=0.97, matching=matching)[0]

    assert depth(120_000) == 1200
    assert depth(50_000) == math.ceil(1000 * 0.5**0.6)
    assert depth(100_000, matching=50_000) == math.ceil(1000 * 0.5**0.6)
    assert depth(100_000, k=1) == 1000
    assert depth(100_000, k=30) == math.ceil(1000 * 3**0.4)
    assert depth(100_000, k=1000) == 10_000
    assert depth(100_000, k=10_000) == "exact"


def test_a_filtered_search_probes_everything() -> None:
    calibrated = info(hash="itq", calibration=CALIBRATION)
    plan = make_plan(calibrated, target_recall=0.96, matching=100_000)
    assert (plan.candidates, plan.probes) == (1000, 1.0)


def test_auto_is_exact_where_that_is_cheaper() -> None:
    calibrated = info(hash="model", calibration=CALIBRATION)
    assert make_plan(calibrated, matching=20_000).candidates == "exact"
    assert make_plan(info(20_000, hash="model")).candidates == "exact"
    assert make_plan(info(hash=None, calibration=CALIBRATION)).candidates == "exact"


@pytest.mark.parametrize("calibration", [None, OLD_CALIBRATION])
def test_auto_takes_three_percent_of_what_was_not_measured(calibration: Any) -> None:
    unknown = info(hash="model", calibration=calibration)
    assert choose_depth(unknown, k=10) == (3000, 1.0)
    assert expected_recall(unknown, make_plan(unknown)) is None


def test_expected_recall_is_that_of_the_deepest_point_no_deeper_than_the_plan() -> None:
    def expected(count: int = 100_000, **changes: Any) -> float | None:
        calibrated = info(count, hash="itq", calibration=CALIBRATION)
        return expected_recall(calibrated, replace(SearchPlan(10, 1000), **changes))

    assert expected() == 0.985
    assert expected(probes=0.02) == 0.97
    assert expected(candidates=999) == 0.95
    assert expected(candidates=100, probes=0.02) is None
    assert expected(candidates="exact") == 1.0
    assert expected(cuts=(256,)) is None
    assert expected(count=200_000) == 0.95
    assert expected(k=100) == 0.93


@pytest.mark.parametrize("target", [0.9, 0.95, 0.96, 0.98])
@pytest.mark.parametrize(("count", "k"), [(100_000, 10), (83_000, 25), (119_999, 70)])
def test_auto_expects_to_reach_its_target(target: float, count: int, k: int) -> None:
    calibrated = info(count, hash="itq", calibration=CALIBRATION)
    plan = make_plan(calibrated, k=k, target_recall=target)
    assert (expected_recall(calibrated, plan) or 0) >= target
    filtered = make_plan(calibrated, k=k, target_recall=target, matching=count // 2)
    assert (expected_recall(calibrated, filtered, matching=count // 2) or 0) >= target


def test_another_model_is_refused() -> None:
    check_model(info(), FakeEncoder())
    with pytest.raises(FingerprintMismatch, match="filled by fake-768-0 .* not by fake-768-1"):
        check_model(info(), FakeEncoder(seed=1))
    with pytest.raises(DimensionMismatch, match="768 dimensions, fake-96-0 makes 96"):
        check_model(info(), FakeEncoder(96))


def test_vector_queries_are_unit_rows() -> None:
    vectors: Floats = np.array([[3, 4], [0, -2]], dtype=np.float32)
    queries = vector_queries(vectors, None)
    assert np.allclose(queries.vectors, [[0.6, 0.8], [0.0, -1.0]])
    assert not queries.hash_logits.any()
