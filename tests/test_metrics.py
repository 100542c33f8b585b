from __future__ import annotations

import math
import random

import numpy as np
import pytest

from nexus_vdb.metrics import by_score, mrr, ndcg, recall, spearman

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


def _random_sets(seed: int) -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
    draw = random.Random(seed)
    documents = [f"d{number}" for number in range(200)]
    qrels, runs = {}, {}
    for number in range(40):
        judged = draw.sample(documents, draw.randint(1, 60))
        qrels[f"q{number}"] = {one: draw.choice([0, 0, 1, 1, 2, 3]) for one in judged}
        qrels[f"q{number}"][judged[0]] = 1  # pytrec_eval gives no mean; every query counts here
        runs[f"q{number}"] = draw.sample(documents, draw.choice([0, 3, 10, 150]))
    return qrels, runs


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_trec_eval(seed: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels, runs = _random_sets(seed)
    measures = {"ndcg_cut.10", "recall.100", "recip_rank"}
    scored = {
        query: {one: 1.0 - place / 1000 for place, one in enumerate(run)}
        for query, run in runs.items()
    }
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(scored)
    # Its reciprocal rank has no depth: asked again of the first ten.
    tops = {query: dict(list(scores.items())[:10]) for query, scores in scored.items()}
    ranks = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(tops)

    def mean(figures: dict[str, dict[str, float]], name: str) -> float:
        return sum(figures.get(query, {}).get(name, 0.0) for query in qrels) / len(qrels)

    assert ndcg(qrels, runs, k=10) == pytest.approx(mean(found, "ndcg_cut_10"), abs=1e-9)
    assert recall(qrels, runs, k=100) == pytest.approx(mean(found, "recall_100"), abs=1e-9)
    assert mrr(qrels, runs, k=10) == pytest.approx(mean(ranks, "recip_rank"), abs=1e-9)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [2, 1, 3]) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0


def test_spearman_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for _ in range(5):
        first, second = draw.integers(0, 20, 300), draw.standard_normal(300).round(1)
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
