"""Ranking quality: nDCG, recall and MRR at k, as trec_eval counts them; Spearman of two columns.

`qrels` are grades by document by query; `runs` are document ids by query, best first. Only queries
with a relevant document (grade above 0) count, and each counts once: a query that has no run
scores 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Qrels", "Runs", "by_score", "mrr", "ndcg", "recall", "spearman"]

Qrels = Mapping[str, Mapping[str, int]]
Runs = Mapping[str, Sequence[str]]


def ndcg(qrels: Qrels, runs: Runs, *, k: int = 10) -> float:
    """Mean nDCG@k with linear gain and a log2 discount (Järvelin and Kekäläinen 2002)."""

    def one(grades: Mapping[str, int], run: Sequence[str]) -> float:
        ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
        return _dcg([grades.get(id_, 0) for id_ in run[:k]]) / _dcg(ideal[:k])

    return _mean(qrels, runs, one)


def recall(qrels: Qrels, runs: Runs, *, k: int = 100) -> float:
    """Mean share of a query's relevant documents that stand among its first k."""

    def one(grades: Mapping[str, int], run: Sequence[str]) -> float:
        relevant = {id_ for id_, grade in grades.items() if grade > 0}
        return len(relevant & set(run[:k])) / len(relevant)

    return _mean(qrels, runs, one)


def mrr(qrels: Qrels, runs: Runs, *, k: int = 10) -> float:
    """Mean of 1 / rank of the first relevant document, 0 where it is not among the first k."""

    def one(grades: Mapping[str, int], run: Sequence[str]) -> float:
        ranks = (rank for rank, id_ in enumerate(run[:k], 1) if grades.get(id_, 0) > 0)
        return 1 / next(ranks, np.inf)

    return _mean(qrels, runs, one)


def by_score(scores: Mapping[str, float]) -> list[str]:
    """Document ids by falling score, equal ones by id: a run of one query."""
    return sorted(scores, key=lambda id_: (-scores[id_], id_))


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Rank correlation of two columns of n numbers, in [-1, 1]; equal ones share their mean rank.

    Spearman 1904, doi:10.2307/1412159. 0 where a column is constant.
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / norms.prod()) if norms.all() else 0.0


def _ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)


def _dcg(grades: Sequence[int]) -> float:
    gains = np.maximum(np.array(grades, dtype=np.float64), 0)
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())


def _mean(
    qrels: Qrels, runs: Runs, one: Callable[[Mapping[str, int], Sequence[str]], float]
) -> float:
    judged = {q: grades for q, grades in qrels.items() if any(g > 0 for g in grades.values())}
    values = [one(grades, runs.get(query, ())) for query, grades in judged.items()]
    return float(np.mean(values)) if values else 0.0
