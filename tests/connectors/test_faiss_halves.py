from __future__ import annotations

import numpy as np
import pytest

from nexus_vdb.connectors._faiss_halves import Halves, best_of, floats, highest
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import Floats


def rows_and_queries(n: int, d: int, q: int) -> tuple[Halves, Floats]:
    random = np.random.default_rng(0)
    rows = cut_vectors(random.standard_normal((n, d)), d).astype(np.float16)
    return rows, cut_vectors(random.standard_normal((q, d)), d)


def test_floats_are_the_halves() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = every[np.isfinite(every)].reshape(-1, 64)
    np.testing.assert_array_equal(floats(halves), halves.astype(np.float32))
    assert np.signbit(floats(np.array([[-0.0]], dtype=np.float16)))[0, 0]
    np.testing.assert_array_equal(floats(halves[:, 3:9]), halves[:, 3:9].astype(np.float32))
    assert floats(halves[:0]).shape == (0, 64)


@pytest.mark.parametrize("queries", [1, 3, 9])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("n", [30, 1500])
def test_the_highest_products_are_found(queries: int, filtered: bool, n: int) -> None:
    rows, asked = rows_and_queries(n, 32, queries)
    among = np.random.default_rng(1).random(n) < 0.4 if filtered else None
    scores = asked @ rows.astype(np.float32).T
    if among is not None:
        scores[:, ~among] = -np.inf
    for k in (1, 10, n):
        found = highest(rows, asked, k, among=among)
        assert len(found) == queries
        for (places, products), right in zip(found, scores, strict=True):
            best = np.argsort(-right)[: min(k, int(np.isfinite(right).sum()))]
            assert set(places.tolist()) == set(best.tolist())
            np.testing.assert_allclose(products, right[places], atol=1e-6)


@pytest.mark.parametrize("queries", [1, 9])
def test_ties_and_near_ties_come_along(queries: int) -> None:
    rows, asked = rows_and_queries(600, 16, queries)
    rows[100:300] = rows[7]
    asked[:] = rows[7].astype(np.float32)
    for places, _ in highest(rows, asked, 5):
        assert sorted(places) == [7, *range(100, 300)]
    exact = rows.astype(np.float32) @ asked[0]
    for places, _ in highest(rows, asked, 5, slack=0.5):
        assert sorted(places) == sorted(np.flatnonzero(exact >= exact.max() - 0.5))


def test_rows_may_be_made_unit_rows() -> None:
    rows, asked = rows_and_queries(400, 48, 2)
    cut = cut_vectors(asked, 24)
    right = cut @ cut_vectors(rows, 24).T
    for (places, scores), expected in zip(
        highest(rows[:, :24], cut, 9, normalize=True), right, strict=True
    ):
        assert set(places.tolist()) == set(np.argsort(-expected)[:9].tolist())
        np.testing.assert_allclose(scores, expected[places], atol=1e-6)


def test_nothing_among_nothing() -> None:
    rows, asked = rows_and_queries(20, 8, 2)
    for found in (highest(rows[:0], asked, 3), highest(rows, asked, 3, among=np.zeros(20, bool))):
        assert [len(places) for places, _ in found] == [0, 0]
    assert highest(rows, asked[:0], 3) == []
    assert len(best_of([], 3)[0]) == 0
