from __future__ import annotations

import numpy as np
import pytest

from nexus_vdb.ranking import Rows, best_rows, cosines, cut_vectors, in_order, rerank
from nexus_vdb.testing.store import sample_queries, sample_records
from nexus_vdb.types import Floats


def test_a_cut_is_the_renormalised_prefix() -> None:
    vectors = np.array([[3, 4, 12], [0, 0, 5]], dtype=np.float32)
    expected = np.array([[0.6, 0.8], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(cut_vectors(vectors, 2), expected)
    assert cut_vectors(vectors.astype(np.float16), 3).dtype == np.float32
    np.testing.assert_array_equal(vectors[0], [3, 4, 12])


def test_equal_rows_have_equal_cosines_wherever_they_stand() -> None:
    vector = sample_records(1).vectors
    query = sample_queries(1).vectors[0]
    scores = cosines(np.repeat(vector, 1001, axis=0), query)
    assert len(np.unique(scores)) == 1
    assert scores[0] == pytest.approx(float(vector[0] @ query), abs=1e-6)


@pytest.mark.parametrize(
    ("k", "slack", "expected"),
    [(1, 0.0, [2]), (2, 0.0, [1, 2, 4]), (3, 0.0, [1, 2, 4]), (1, 0.2, [1, 2, 4])],
)
def test_best_rows_take_ties_in(k: int, slack: float, expected: list[int]) -> None:
    scores = np.array([0.1, 0.8, 0.9, -0.5, 0.8, 0.3], dtype=np.float32)
    assert sorted(best_rows(scores, k, slack=slack).tolist()) == expected


def test_best_rows_of_few_are_all() -> None:
    assert best_rows(np.array([0.5, 0.1], dtype=np.float32), 5).tolist() == [0, 1]
    assert best_rows(np.zeros(0, dtype=np.float32), 5).tolist() == []


def test_order_is_by_score_and_then_by_id() -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.1], dtype=np.float32)
    assert in_order(scores, ["d", "c", "b", "a"], 3) == [1, 2, 0]


def test_rerank_narrows_before_it_decides() -> None:
    vectors = sample_records(2000).vectors
    query = sample_queries(1).vectors[0]
    asked: list[tuple[int, int]] = []

    def fetch(rows: Rows, width: int) -> Floats:
        asked.append((len(rows), width))
        return cut_vectors(vectors[rows], width)

    rows, scores = rerank(np.arange(2000), query, k=20, cuts=(256, 768), fetch=fetch)
    assert asked == [(2000, 256), (400, 768)]
    exact = vectors @ query
    np.testing.assert_allclose(scores, exact[rows], atol=1e-6)
    best = np.argsort(-exact)[:20]
    assert len(np.intersect1d(rows, best)) >= 18


def test_few_candidates_skip_the_narrow_cut() -> None:
    vectors = sample_records(50).vectors
    widths: list[int] = []

    def fetch(rows: Rows, width: int) -> Floats:
        widths.append(width)
        return cut_vectors(vectors[rows], width)

    query = sample_queries(1).vectors[0]
    rows, scores = rerank(np.arange(50), query, k=3, cuts=(256, 512), fetch=fetch)
    assert widths == [512]
    expected = cut_vectors(vectors, 512) @ cut_vectors(query[None], 512)[0]
    assert sorted(rows.tolist()) == sorted(np.argsort(-expected)[:3].tolist())
    np.testing.assert_allclose(scores, expected[rows], atol=1e-6)
