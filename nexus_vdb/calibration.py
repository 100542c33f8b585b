"""What "auto" rests on: how much of the exact answer a store finds, by candidates and probes.

Measured by searching the store itself, so that everything a store does is in it. Of a store that
can tell how deep the exact answers lie (`SupportsDepths`) that says all but what is lost after the
hash, for which one search of a few queries is enough. Kept as the meta value "calibration": `n`
records at the time, `queries`, and `points`, each with `candidates`, `probes`, `recall` of the
exact top 10, and the standard `error` of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from nexus_vdb.interfaces import Encoder, Store, SupportsDepths, SupportsSample
from nexus_vdb.ranking import TIE, Rows
from nexus_vdb.records import join_records, take_queries, take_records
from nexus_vdb.search import (
    EXACT_BELOW,
    EXACT_SHARE,
    calibration_points,
    cost,
    has_hash,
    reaches,
    stored_hash,
    vector_queries,
)
from nexus_vdb.types import Hit, QueryBatch, Records, SearchPlan, StoreInfo

__all__ = [
    "Point",
    "QueriesOf",
    "calibrate",
    "needs_calibration",
    "opening_words",
    "queries_as_asked",
    "sample_of",
]

QueriesOf: TypeAlias = Callable[[Records], QueryBatch]
"""Turns sampled records into queries, as searching would."""

Point: TypeAlias = dict[str, Any]

_GROWTH = 1.2
_FIRST = 20_000  # records read of a store that draws none
_QUERIES, _QUERY_WORDS, _TOP = 300, 16, 10
_FIRST_SHARE, _LEAST = 1 / 256, 100
_LOW = 0.9  # recall below which nobody needs a measurement
_WORTH = 0.002  # gained by twice the candidates; below, what is lost is lost elsewhere
_BETWEEN = (0.95, 0.98)  # targets around which candidates are told apart more finely
_TARGETS = (0.9, 0.95, 0.98, 0.99)
_PROBES = (0.03, 0.1, 0.3)
_SHARES = (*_PROBES, 1.0)
_SETTLED = 64  # queries that show what is lost after the hash: one pass of the FAISS store
_SEARCHES, _FOR_PROBES = 15, len(_PROBES) + len(_TARGETS)


def needs_calibration(info: StoreInfo) -> bool:
    """Whether a store is large enough, and has grown or shrunk by a fifth since it was measured."""
    if not has_hash(info) or info.count <= EXACT_BELOW:
        return False
    if not calibration_points(info):
        return True
    measured = info.meta["calibration"]["n"]
    return not measured / _GROWTH <= info.count <= measured * _GROWTH


def opening_words(texts: Sequence[str]) -> list[str]:
    """The first words of each text: about as long as what people ask."""
    return [" ".join(text.split()[:_QUERY_WORDS]) for text in texts]


def queries_as_asked(info: StoreInfo, encoder: Encoder | None) -> QueriesOf:
    """Queries made of records: of their opening words, or of their vectors without a model."""
    itq = stored_hash(info)

    def queries_of(records: Records) -> QueryBatch:
        if encoder is None:
            return vector_queries(records.vectors, itq)
        queries = encoder.encode(opening_words(records.texts))
        return queries if itq is None else vector_queries(queries.vectors, itq)

    return queries_of


def sample_of(store: Store, count: int, *, seed: int = 0) -> Records:
    """Records drawn from the whole store, where it can do that; otherwise from its first ones."""
    if isinstance(store, SupportsSample):
        return store.sample(count, seed=seed)
    parts: list[Records] = []
    for records in store.scan():
        parts.append(records)
        if sum(map(len, parts)) >= max(count, _FIRST):
            break
    first = join_records(parts)
    rows = np.random.default_rng(seed).permutation(len(first))[:count]
    return take_records(first, rows.tolist())


def calibrate(store: Store, queries_of: QueriesOf, *, seed: int = 0) -> dict[str, Any]:
    """Measure recall over candidates and probes, and keep it as the meta value "calibration".

    Queries are made of some of the store's records; a record is left out of its own answer. They
    are searched exactly once, and then at most fifteen times with few candidates or probes; some of
    them once where the store has `depths`.

    Args:
        store: Has a hash and more than ten records.
        queries_of: Turns sampled records into queries; see `queries_as_asked`.
        seed: Of the sample.

    Returns:
        What is kept.
    """
    count = store.count()
    drawn = sample_of(store, _QUERIES, seed=seed)
    own = take_records(drawn, np.random.default_rng(seed).permutation(len(drawn)).tolist())
    measure = _Measure(store, queries_of(own), own.ids)
    _over_candidates(measure, count)
    _over_probes(measure, count)
    measure.settle()
    points = sorted(measure.points, key=lambda point: cost(point, count))
    found = {"n": count, "queries": len(own), "points": points}
    store.set_meta("calibration", found)
    return found


class _Measure:
    """What a store finds of the same queries' answers, again and again.

    Args:
        store: What is measured.
        queries: What is asked.
        own: Id of the record that each query was made of.
    """

    def __init__(self, store: Store, queries: QueryBatch, own: Sequence[str]) -> None:
        self._store, self._queries, self._own = store, queries, own
        self._cuts = store.info().schema.cuts
        exact = self._hits(SearchPlan(_TOP + 1, "exact", self._cuts))
        # By score and not by id: of equal texts it does not matter which are found.
        self._right = [
            (len(hits), min((hit.score for hit in hits), default=0) - TIE) for hits in exact
        ]
        self._depths = None
        if isinstance(store, SupportsDepths):
            ids = [[hit.id for hit in hits] for hits in exact]
            self._depths = store.depths(queries, ids, _SHARES)
        self.points: list[Point] = []

    @property
    def left(self) -> int:
        """Searches that may still be made."""
        return _SEARCHES - len(self.points)

    def at(self, candidates: int, probes: float = 1.0) -> Point:
        """Recall at some candidates and probes; measured once."""
        for point in self.points:
            if (point["candidates"], point["probes"]) == (candidates, probes):
                return point
        if self._depths is None:
            shares = self._found(candidates, probes)
        else:
            shares = self._held(self._depths, candidates, probes)
        point = {
            "candidates": candidates,
            "probes": probes,
            "recall": round(float(np.mean(shares)), 5),
            "error": round(float(np.std(shares)) / math.sqrt(len(shares)), 5),
        }
        self.points.append(point)
        return point

    def settle(self) -> None:
        """Take off what a search loses besides, where points are of depths."""
        if self._depths is None:
            return
        tried = max(self.points, key=lambda point: int(point["candidates"]))  # most to lose among
        candidates, probes = tried["candidates"], tried["probes"]
        held = self._held(self._depths[:_SETTLED], candidates, probes)
        lost = np.subtract(held, self._found(candidates, probes, first=_SETTLED))
        mean, error = max(float(lost.mean()), 0.0), float(lost.std()) / math.sqrt(len(lost))
        for point in self.points:
            point["recall"] = round(max(point["recall"] - mean, 0.0), 5)
            point["error"] = round(math.hypot(point["error"], error), 5)

    def _held(self, depths: Sequence[Rows], candidates: int, probes: float) -> list[float]:
        """For each query the share of the answers that are among so many candidates."""
        place = _SHARES.index(probes)
        return [
            float(np.mean(mine[:, place] <= candidates)) if len(mine) else 0.0 for mine in depths
        ]

    def _found(self, candidates: int, probes: float, first: int = _QUERIES) -> list[float]:
        """For each of the first queries the share of the answers that a search finds."""
        found = self._hits(SearchPlan(_TOP + 1, candidates, self._cuts, probes=probes), first)
        return [
            sum(hit.score >= least for hit in hits) / max(count, 1)
            for hits, (count, least) in zip(found, self._right[:first], strict=True)
        ]

    def _hits(self, plan: SearchPlan, first: int = _QUERIES) -> list[list[Hit]]:
        """Of each of the first queries the ten best hits but the record that it was made of."""
        own = self._own[:first]
        answers = self._store.search(take_queries(self._queries, range(len(own))), plan)
        return [
            [hit for hit in hits if hit.id != mine][:_TOP]
            for hits, mine in zip(answers, own, strict=True)
        ]


def _over_candidates(measure: _Measure, count: int) -> None:
    """Double and halve the candidates until recall is good and poor, then look between."""
    most = max(count // EXACT_SHARE, 1)
    least = min(_LEAST, most)
    first = min(max(int(count * _FIRST_SHARE), least), most)
    point, gained = measure.at(first), 1.0
    while not reaches(point, _TARGETS[-1]) and gained > _WORTH and measure.left > _FOR_PROBES:
        depth, before = 2 * point["candidates"], point["recall"]
        if depth > most:
            break
        point = measure.at(depth)
        gained = point["recall"] - before
    point = measure.at(first)
    while point["recall"] > _LOW and measure.left > _FOR_PROBES + len(_BETWEEN):
        if point["candidates"] == least:
            break
        point = measure.at(max(point["candidates"] // 2, least))
    for target in _BETWEEN:
        below = [one["candidates"] for one in measure.points if not reaches(one, target)]
        above = [one["candidates"] for one in measure.points if reaches(one, target)]
        if below and above:
            measure.at(round(math.sqrt(max(below) * min(above))))


def _over_probes(measure: _Measure, count: int) -> None:
    """See what is lost by visiting few lists, and measure what then seems best for each target."""
    whole = sorted(measure.points, key=lambda point: int(point["candidates"]))
    base = next((point for point in whole if point["recall"] >= _BETWEEN[-1]), whole[-1])
    if base["recall"] < _LOW:
        return  # fewer lists would only find less
    lost = {1.0: 0.0}
    for probes in _PROBES:
        point = measure.at(base["candidates"], probes)
        lost[probes] = base["recall"] - point["recall"]
        if probes == _PROBES[0] and point["recall"] == base["recall"]:
            measure.points.remove(point)  # this store has no lists
            return
    for target in _TARGETS:
        likely = [
            {"candidates": point["candidates"], "probes": probes}
            for point in whole
            for probes in lost
            if reaches(point, target + lost[probes])
        ]
        if likely and measure.left:
            best = min(likely, key=lambda one: cost(one, count))
            measure.at(best["candidates"], best["probes"])
