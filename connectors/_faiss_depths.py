"""How deep in the ranking by hash some records lie, found by one scan and no reranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_scan import table_scores
from nexus_vdb.connectors._faiss_state import State, View
from nexus_vdb.ranking import Rows, cut_vectors
from nexus_vdb.threads import in_threads
from nexus_vdb.types import Floats, QueryBatch

__all__ = ["depths"]

Levels: TypeAlias = npt.NDArray[np.int64]
"""The first of some shares with which a list or place is visited; past the last for none."""

_ROUNDING = 1e-6
"""What sums of a few tables of logits may differ by, beside the sum of all logits."""


def depths(
    state: State, queries: QueryBatch, ids: Sequence[Sequence[str]], shares: Sequence[float]
) -> list[Rows]:
    """For each query how many live rows rank at least as high by the hash as some records do.

    Args:
        state: What is searched.
        queries: What is looked for.
        ids: Of each query: the records.
        shares: Of the lists that are visited, rising.

    Returns:
        For each query int64 `[k, s]`: with so many candidates or more, a search that visits this
        share of the lists has the record among them; more than any search has where it has not.
    """
    row_of = state.rows_of_ids([id_ for some in ids for id_ in some])
    rows = [np.array([row_of[id_] for id_ in some], dtype=np.int64) for some in ids]
    return in_threads(
        lambda number: _depths(state, queries, number, rows[number], shares),
        range(len(queries)),
        threads=faiss.omp_get_max_threads(),
    )


def _depths(
    state: State, queries: QueryBatch, number: int, rows: Rows, shares: Sequence[float]
) -> Rows:
    logits, unit = queries.hash_logits[number], queries.vectors[[number]]
    scores, levels = np.empty(len(rows), dtype=np.float32), np.empty(len(rows), dtype=np.int64)
    scanned: list[tuple[View, Levels | None]] = []
    for view, start in state.numbered():
        at = np.flatnonzero((rows >= start) & (rows < start + view.segment.rows))
        places, by_list = view.segment.places_of(rows[at] - start), _by_list(view, unit, shares)
        scores[at] = table_scores(logits, view.segment.codes[places])
        levels[at] = _levels(view, places, by_list)
        scanned.append((view, by_list))
    floor = scores - _ROUNDING * float(np.abs(logits).sum())
    found = np.zeros((len(rows), len(shares)), dtype=np.int64)
    for view, by_list in scanned:
        found += _above(view, logits, floor, by_list, len(shares))
    found[levels[:, None] > np.arange(len(shares))] = np.iinfo(np.int64).max
    return found


def _by_list(view: View, unit: Floats, shares: Sequence[float]) -> Levels | None:
    """The level of each list of a segment; None where it has none, and is always searched whole."""
    lists = view.segment.lists
    if lists is None:
        return None
    narrow = cut_vectors(unit, len(lists.axes))
    levels = np.full(len(lists), len(shares), dtype=np.int64)
    for level in reversed(range(len(shares))):
        levels[lists.nearest(narrow, shares[level])[0]] = level
    return levels


def _levels(view: View, places: Rows, by_list: Levels | None) -> Levels:
    lists = view.segment.lists
    if lists is None or by_list is None:
        return np.zeros(len(places), dtype=np.int64)
    return by_list[lists.of(places)]


def _above(view: View, logits: Floats, floor: Floats, by_list: Levels | None, shares: int) -> Rows:
    """How many live places of a segment reach each score, `[k, s]`."""
    scores = table_scores(logits, view.segment.codes)
    near = scores >= floor.min(initial=np.inf)
    places = np.flatnonzero(near if view.live_places is None else near & view.live_places)
    levels = _levels(view, places, by_list)
    found = np.empty((len(floor), shares), dtype=np.int64)
    for share in range(shares):
        rising = np.sort(scores[places[levels <= share]])
        found[:, share] = len(rising) - np.searchsorted(rising, floor)
    return found
