"""Carrying out a request: searches of the store until there is enough, fused, grouped, cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nexus_vdb.chunking import chunk_id
from nexus_vdb.filters import Filter, matches
from nexus_vdb.fusion import DEPTH, fuse
from nexus_vdb.hits import Hits
from nexus_vdb.interfaces import Store
from nexus_vdb.ranking import cosines, cut_vectors
from nexus_vdb.records import take_queries
from nexus_vdb.request import Request, answer
from nexus_vdb.search import expected_recall
from nexus_vdb.stages import slices
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan, StoreInfo

__all__ = ["Search"]

_CHUNKS = 2048  # of one document, read at a time: 6 MiB of vectors


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Queries, where they go, and what is asked for.

    Attributes:
        store: Where to look.
        info: What it says of itself.
        queries: What is looked for.
        request: How many, and which.
        plan_of: The plan for so many hits.
        where: Filter.
        matching: Records that it leaves, where that was counted.
        words: Hits by words, for each query, to be fused with those by meaning.
    """

    store: Store
    info: StoreInfo
    queries: QueryBatch
    request: Request
    plan_of: Callable[[int], SearchPlan]
    where: Filter | None = None
    matching: int | None = None
    words: Sequence[Sequence[Hit]] | None = None

    def run(self, timings_ms: Mapping[str, float]) -> list[Hits]:
        """The answer to each query.

        Args:
            timings_ms: Of the steps so far.
        """
        started, plan = time.perf_counter(), self.plan_of(self._depth(self.request.depth))

        def fetch(rows: Sequence[int], depth: int) -> list[list[Hit]]:
            nonlocal plan
            if self._depth(depth) != plan.k:
                plan = self.plan_of(self._depth(depth))
            found = self.store.search(take_queries(self.queries, rows), plan, self.where)
            if self.words is None:
                return found
            return [fuse(hits, self.words[row]) for row, hits in zip(rows, found, strict=True)]

        pages = answer(self.request, len(self.queries), fetch)
        if self.request.group_size > 1 and self.words is None:
            units = cut_vectors(self.queries.vectors, plan.cuts[-1])
            pages = [self._filled(page, unit) for page, unit in zip(pages, units, strict=True)]
        recall = expected_recall(self.info, plan, matching=self.matching)
        timings = {**timings_ms, "search": round(1000 * (time.perf_counter() - started), 3)}
        return [Hits(page, plan=plan, expected_recall=recall, timings_ms=timings) for page in pages]

    def _depth(self, depth: int) -> int:
        return depth if self.words is None else max(depth, DEPTH)

    def _filled(self, page: Sequence[Hit], query: Floats) -> list[Hit]:
        """The page with the best chunks of each document, also those that no search has met."""
        groups: dict[str, list[Hit]] = {}
        for hit in page:
            groups.setdefault(hit.document_id, []).append(hit)
        stored = self.store.fingerprints(list(groups))
        filled = []
        for document_id, group in groups.items():
            ordinals = stored.get(document_id, {})
            if len(group) < min(self.request.group_size, len(ordinals)):
                met = {hit.id for hit in group}
                ids = [chunk_id(document_id, ordinal) for ordinal in sorted(ordinals)]
                group += self._others([id_ for id_ in ids if id_ not in met], query)
            filled += group[: self.request.group_size]
        return filled

    def _others(self, ids: list[str], query: Floats) -> list[Hit]:
        best: list[Hit] = []
        for some in slices(ids, _CHUNKS):
            records = self.store.get(some)
            best += _hits(records, cosines(cut_vectors(records.vectors, len(query)), query))
            best = [hit for hit in best if self._fits(hit)]
            best = sorted(best, key=lambda hit: (-hit.score, hit.id))[: self.request.group_size]
        return best

    def _fits(self, hit: Hit) -> bool:
        least = self.request.score_threshold
        return (least is None or hit.score >= least) and (
            self.where is None or matches(self.where, hit.metadata)
        )


def _hits(records: Records, scores: Floats) -> list[Hit]:
    columns = zip(
        records.ids,
        records.document_ids,
        scores.tolist(),
        records.texts,
        records.metadata,
        strict=True,
    )
    return [Hit(*values) for values in columns]
