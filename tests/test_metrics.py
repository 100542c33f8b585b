from __future__ import annotations

import math

import pytest

from nexus_vdb.metrics import by_score, mrr, ndcg, recall

QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"d": 1}, "unjudged": {"a": 0}}


def test_ndcg_has_linear_gain_and_log2_discount() -> None:
    runs = {"q1": ["b", "x", "a"], "q2": ["d"]}
    ideal = 2 + 1 / math.log2(3)
    first = (1 + 2 / math.log2(4)) / ideal
    assert ndcg(QRELS, runs) == pytest.approx((first + 1) / 2)


def test_ndcg_cuts_ideal_and_run_at_k() -> None:
    assert ndcg(QRELS, {"q1": ["a", "x"], "q2": ["x", "d"]}, k=1) == pytest.approx(0.5)


def test_recall_at_k() -> None:
    runs = {"q1": ["b", "x", "a"], "q2": ["x"]}
    assert recall(QRELS, runs, k=2) == pytest.approx(0.25)
    assert recall(QRELS, runs, k=3) == pytest.approx(0.5)


def test_mrr_at_k() -> None:
    runs = {"q1": ["c", "b"], "q2": ["x", "x", "x", "d"]}
    assert mrr(QRELS, runs) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert mrr(QRELS, runs, k=3) == pytest.approx(1 / 4)


def test_a_query_without_a_run_scores_zero_and_without_judgements_does_not_count() -> None:
    runs = {"q2": ["d"], "unjudged": ["a"], "unknown": ["a"]}
    assert ndcg(QRELS, runs) == recall(QRELS, runs) == mrr(QRELS, runs) == 0.5
    assert ndcg({}, runs) == 0.0


def test_negative_grades_gain_nothing() -> None:
    assert ndcg({"q": {"a": 1, "b": -2}}, {"q": ["b", "a"]}) == pytest.approx(1 / math.log2(3))


def test_by_score_breaks_ties_by_id() -> None:
    assert by_score({"b": 0.5, "a": 0.5, "c": 0.9}) == ["c", "a", "b"]
