"""Searching one state of the FAISS store: hash scan or exact, then cut by cut to the hits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from nexus_vdb.connectors._faiss_halves import (
    Halves,
    Scored,
    best_of,
    highest,
    highest_of,
    threads_for,
)
from nexus_vdb.connectors._faiss_lists import Lists
from nexus_vdb.connectors._faiss_scan import best_codes, scan_lists
from nexus_vdb.connectors._faiss_signs import kept
from nexus_vdb.connectors._faiss_state import State, View
from nexus_vdb.filters import Filter
from nexus_vdb.ranking import Rows, cut_vectors, in_order, rerank, shortlist
from nexus_vdb.records import take_queries
from nexus_vdb.stages import slices
from nexus_vdb.threads import in_threads
from nexus_vdb.types import Floats, Hit, QueryBatch, SearchPlan

__all__ = ["search"]

_TOGETHER, _TOGETHER_WIDE, _TOGETHER_EXACT = 16, 64, 320
"""Queries whose candidates are found at a time; whose candidates, or all rows, share a pass."""

_WIDE = 1 << 22
"""Candidates held at a time where more than `_TOGETHER` queries share a pass: 120 MB."""

_MANY, _AT_ONCE = 64, 64
"""Queries that are a bulk job, which lets go of what it has touched; whole vectors that it reads at
a time. Where the system keeps files in large pieces, each brings a megabyte or two into memory."""

_ROUNDING = 1e-3
"""By how much rounding to float16, which changes lengths as well, may move a cosine."""


def search(
    state: State,
    queries: QueryBatch,
    plan: SearchPlan,
    where: Filter | None,
    *,
    small: bool = False,
) -> list[list[Hit]]:
    """The k best by cosine: of all for "exact", else of the best candidates of the hash.

    Args:
        state: What is searched.
        queries: What is looked for.
        plan: How.
        where: A condition.
        small: Let go of what was touched if there are many queries, at the price of speed.
    """
    hits: list[list[Hit]] = []
    passes = -(-len(queries) // _together(state, plan))
    # Evenly: one query left over would touch far more of the files than it shares of a pass.
    ends = [len(queries) * (number + 1) // passes for number in range(passes)]
    for start, end in zip([0, *ends], ends, strict=False):
        some = take_queries(queries, range(start, end))
        hits += _answers(state, some, plan, where, bulk=small and len(queries) >= _MANY)
    return hits


def _together(state: State, plan: SearchPlan) -> int:
    """Queries that share a pass."""
    if plan.candidates == "exact":
        return _TOGETHER_EXACT
    signed = any(view.segment.signs is not None for view in state.views)
    held = kept(_count(plan), plan.k) if signed else _count(plan)
    if _TOGETHER_WIDE * held < state.count:
        return _TOGETHER
    return min(max(_WIDE // held, _TOGETHER), _TOGETHER_WIDE)


def _answers(
    state: State, queries: QueryBatch, plan: SearchPlan, where: Filter | None, *, bulk: bool
) -> list[list[Hit]]:
    """Many queries are answered on as many threads as FAISS may use."""
    find = _nearest if plan.candidates == "exact" else partial(_near, bulk=bulk)
    near = find(state, queries, plan, where)

    def answer(row: int) -> list[Hit]:
        hits = _hits(state, near(row), queries.vectors[row], plan)
        if bulk:
            state.let_go(vectors=True)
        return hits

    hits = in_threads(answer, range(len(queries)), threads=threads_for(len(queries)))
    if bulk:
        state.let_go()
    return hits


def _nearest(
    state: State, queries: QueryBatch, plan: SearchPlan, where: Filter | None
) -> Callable[[int], Rows]:
    """What says which rows are the best of all for a query."""
    width = plan.cuts[-1]
    units = cut_vectors(queries.vectors, width)
    found: list[list[Scored]] = [[] for _ in units]
    for view, start in state.numbered():
        segment, mask = view.segment, view.mask(where)
        if segment.prefix is not None and width == segment.prefix.shape[1]:
            among = None if mask is None else segment.by_place(mask)
            best = highest(segment.prefix.whole(), units, plan.k, slack=_ROUNDING, among=among)
            best = [(segment.rows_at(places), scores) for places, scores in best]
        else:
            halves = segment.vectors.whole()[:, :width]
            cut = width < segment.vectors.shape[1]
            best = highest(halves, units, plan.k, slack=_ROUNDING, among=mask, normalize=cut)
        for mine, (rows, scores) in zip(found, best, strict=True):
            mine.append((rows + start, scores))
    return lambda row: best_of(found[row], plan.k, slack=_ROUNDING)[0]


def _near(
    state: State, queries: QueryBatch, plan: SearchPlan, where: Filter | None, *, bulk: bool
) -> Callable[[int], Rows]:
    """What finds the best of a query's candidates."""
    units = {cut: cut_vectors(queries.vectors, cut) for cut in plan.cuts}
    candidates: list[Rows] = []
    for rows in slices(range(len(queries)), _TOGETHER):
        some = take_queries(queries, rows)
        candidates += _sifted(state, some, plan, _candidates(state, some, plan, where))
    if len(queries) >= _TOGETHER and sum(map(len, candidates)) >= state.count:
        candidates = _narrowed_together(state, candidates, units, plan.k)

    def near(row: int) -> Rows:
        mine = {cut: part[[row]] for cut, part in units.items()}
        return _narrowed(state, candidates[row], mine, plan.k, bulk=bulk)

    return near


def _sifted(
    state: State, queries: QueryBatch, plan: SearchPlan, candidates: Sequence[Rows]
) -> Sequence[Rows]:
    """What the signs leave of each query's candidates, where they are of the plan's first cut."""
    narrow = state.manifest.schema.cuts[0]
    if plan.cuts[0] != narrow:
        return candidates
    units = cut_vectors(queries.vectors, narrow)
    return in_threads(
        lambda row: state.sifted(candidates[row], units[[row]], plan.k),
        range(len(candidates)),
        threads=threads_for(len(queries)),
    )


def _candidates(
    state: State, queries: QueryBatch, plan: SearchPlan, where: Filter | None
) -> list[Rows]:
    """For each query the matching places with about the best hash scores; ties may add some."""
    count = _count(plan)
    found: list[list[Scored]] = [[] for _ in queries.vectors]
    for view, start in state.numbered():
        if where is not None:
            best = _matching(view, queries.hash_logits, count, where)
        elif plan.probes < 1 and (lists := view.segment.lists) is not None:
            best = _probed(view, lists, queries, plan)
        else:
            best = view.scan.best(queries.hash_logits, count)
        for mine, (places, scores) in zip(found, best, strict=True):
            mine.append((places + start, scores))
    return [best_of(parts, count)[0] for parts in found]


def _matching(view: View, logits: Floats, count: int, where: Filter) -> list[Scored]:
    places = view.places(where)
    codes = view.segment.codes[places]
    return [best_codes(one, codes, places, count) for one in logits]


def _probed(view: View, lists: Lists, queries: QueryBatch, plan: SearchPlan) -> list[Scored]:
    count, codes, found = _count(plan), view.segment.codes, []
    visited = lists.nearest(cut_vectors(queries.vectors, len(lists.axes)), plan.probes)
    for numbers, logits in zip(visited, queries.hash_logits, strict=True):
        best = scan_lists(lists, codes, numbers, logits, count, live=view.live_places)
        if len(best[0]) < min(plan.k, view.count):  # too few in these lists: look everywhere
            (best,) = view.scan.best(logits[None], count)
        found.append(best)
    return found


def _count(plan: SearchPlan) -> int:
    return max(int(plan.candidates), plan.k)


def _narrowed_together(
    state: State, candidates: Sequence[Rows], units: Mapping[int, Floats], k: int
) -> list[Rows]:
    """The first step of `_narrowed` for all queries, in one pass over all rows."""
    cut, unit = next(iter(units.items()))
    keep, slack = (k, _ROUNDING) if len(units) == 1 else (shortlist(k), 0.0)
    found: list[list[Scored]] = [[] for _ in candidates]
    for view, start in state.numbered():
        segment, end = view.segment, start + view.segment.rows
        inside = [one[(one >= start) & (one < end)] - start for one in candidates]
        if segment.prefix is not None and cut == segment.prefix.shape[1]:
            best = highest_of(segment.prefix.whole(), unit, inside, keep, slack=slack)
        else:
            halves = segment.vectors.whole()[:, :cut]
            by_row, whole = list(map(segment.rows_at, inside)), cut == segment.vectors.shape[1]
            best = highest_of(halves, unit, by_row, keep, slack=slack, normalize=not whole)
            best = [(segment.places_of(rows), scores) for rows, scores in best]
        for mine, (places, scores) in zip(found, best, strict=True):
            mine.append((places + start, scores))
    return [best_of(parts, keep, slack=slack)[0] for parts in found]


def _narrowed(
    state: State, places: Rows, units: Mapping[int, Floats], k: int, *, bulk: bool
) -> Rows:
    """The rows of the best candidates cut by cut: in the end k, with all that may be as good.

    Args:
        state: What is searched.
        places: The candidates.
        units: The query at each cut, narrow to wide, float32 `[1, cut]`.
        k: Hits wanted.
        bulk: See `_MANY`.
    """
    schema, cuts, short = state.manifest.schema, list(units), shortlist(k)
    if cuts[0] == schema.cuts[0] and len(places) > short:
        ((best, _),) = highest(state.prefixes(places), units[cuts[0]], short)
        places = places[best]
    rows = state.rows_at(places)
    for cut, unit in units.items():
        keep, slack = (k, _ROUNDING) if cut == cuts[-1] else (short, 0.0)
        if len(rows) > keep:
            whole = cut == schema.dim
            halves = _halves(state, rows, cut, bulk=bulk)
            found = highest(halves, unit, keep, slack=slack, normalize=not whole)
            rows = rows[found[0][0]]
    return rows


def _halves(state: State, rows: Rows, cut: int, *, bulk: bool) -> Halves:
    """The first numbers of some rows, float16 `[n, cut]`."""
    if not bulk:
        return state.halves(rows, cut)
    found = np.empty((len(rows), cut), dtype="<f2")
    for start in range(0, len(rows), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        found[some] = state.halves(rows[some], cut)
        state.let_go(vectors=True)
    return found


def _hits(state: State, rows: Rows, vector: Floats, plan: SearchPlan) -> list[Hit]:
    rows, scores = rerank(rows, vector, k=plan.k, cuts=plan.cuts[-1:], fetch=state.units)
    ids = state.column("id", rows)
    order = in_order(scores, ids, plan.k)
    best = rows[order]
    columns = *(state.column(name, best) for name in ("document_id", "text")), state.metadata(best)
    return [
        Hit(ids[place], document_id, float(scores[place]), text, metadata)
        for place, document_id, text, metadata in zip(order, *columns, strict=True)
    ]
