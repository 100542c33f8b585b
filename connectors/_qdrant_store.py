"""What the two Qdrant stores have in common: all of a store except for how the engine is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from nexus_vdb.checks import check_plan, check_records, check_selection
from nexus_vdb.connectors._qdrant_filter import Json, condition_of
from nexus_vdb.connectors._qdrant_points import (
    HASH,
    HIT_FIELDS,
    Found,
    Points,
    column,
    hit_of,
    is_point_id,
    metadata_of,
    points_of,
    recoded,
    records_of,
    vector_name,
    vectors_of,
)
from nexus_vdb.connectors._qdrant_search import RANDOM, searches
from nexus_vdb.filters import Filter, matches
from nexus_vdb.ranking import best_rows, cosines, cut_vectors, in_order
from nexus_vdb.records import take_records
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan, StoreSchema

__all__ = ["PointStore"]

_FINGERPRINT_FIELDS = ["document_id", "ordinal", "content_hash"]


class PointStore(ABC):
    """A store whose records are Qdrant points.

    Args:
        url: Named in errors.
        schema: What the points have.
        graph: Whether the widest vector has a graph to search by.
    """

    def __init__(self, url: str, schema: StoreSchema, *, graph: bool = False) -> None:
        self._url = url
        self._schema = schema
        self._graph = graph
        self._page = 1024
        """Points read at once where nobody said how many, and at most."""
        self._choices = 1024
        """Values in one condition at most."""
        self._most_hits: int | None = None
        """Points that a search may ask for, where the engine sets a limit."""

    # What an engine has to do. `where` is a condition of `_qdrant_filter`.

    @abstractmethod
    def _query(self, requests: Sequence[Json]) -> list[list[Found]]:
        """Carry out searches; the requests are those of the REST interface."""

    @abstractmethod
    def _scroll(
        self,
        where: Json | None,
        *,
        limit: int,
        offset: str | None,
        payload: list[str] | bool = True,
        vectors: Sequence[str] = (),
    ) -> tuple[list[Found], str | None]:
        """Points in order of id from `offset`, and the id that comes next."""

    @abstractmethod
    def _retrieve(
        self,
        ids: Sequence[str],
        *,
        payload: list[str] | bool = True,
        vectors: Sequence[str] = (),
    ) -> list[Found]:
        """The points of these ids that are there, in any order."""

    @abstractmethod
    def _count(self, where: Json | None) -> int:
        """How many points match exactly."""

    @abstractmethod
    def _write(self, points: Points) -> None:
        """Write points durably, whatever their number."""

    @abstractmethod
    def _delete(self, where: Json) -> None:
        """Delete what matches, durably."""

    @abstractmethod
    def _recode(self, changes: Mapping[str, tuple[Floats, str]]) -> None:
        """Give points of these ids new hash vectors and hex digits, durably."""

    # The store

    def upsert(self, records: Records) -> None:
        """Write records, replacing those of the same id; durable when it returns.

        Raises:
            DimensionMismatch: the vectors are of another width than the store's.
            StoreError: an id is not a UUID, or a value cannot be kept as it is.
        """
        check_records(records, self._schema.dim)
        if len(records):
            last = {id_: row for row, id_ in enumerate(records.ids)}
            if len(last) < len(records):
                records = take_records(records, list(last.values()))
            self._write(points_of(records, self._schema))

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The k best by cosine: of all for "exact", else of the best candidates of the hash.

        The engine does all of it in one request, nested from hash to the last cut. A last cut that
        the store does not keep is compared here.
        """
        check_plan(queries, plan, self._schema.dim)
        if not len(queries):
            return []
        condition, cut = self._condition(where), plan.cuts[-1]
        stored = cut in self._schema.cuts
        if plan.candidates == "exact" and not stored:
            return self._search_all(queries, plan, condition)
        answers = self._query(searches(queries, plan, self._schema, condition, graph=self._graph))
        if not stored:
            units = cut_vectors(queries.vectors, cut)
            answers = [
                _scored(found, cosines(self._units(found, cut), unit))
                for found, unit in zip(answers, units, strict=True)
            ]
        return [_best(found, plan) for found in answers]

    def get(self, ids: Sequence[str]) -> Records:
        """The records of these ids, in this order; unknown ids are left out."""
        vectors = [vector_name(self._schema.dim)]
        found = {
            point.id: point
            for part in _parts(_known_form(ids), self._page)
            for point in self._retrieve(part, vectors=vectors)
        }
        return records_of([found[id_] for id_ in ids if id_ in found], self._schema.dim)

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""
        hashes: dict[str, dict[int, str]] = {}
        for part in _parts(document_ids, self._choices):
            where = {"must": [{"key": "document_id", "match": {"any": part}}]}
            for page in self._pages(where, payload=_FINGERPRINT_FIELDS):
                columns = (column(page, name) for name in _FINGERPRINT_FIELDS)
                for document_id, ordinal, digest in zip(*columns, strict=True):
                    hashes.setdefault(document_id, {})[ordinal] = digest
        return hashes

    def delete(self, *, ids: Sequence[str] | None = None, where: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many records went."""
        check_selection(ids, where)
        conditions: list[Json | None] = [self._condition(where)]
        if ids is not None:
            conditions = [_has_id(part) for part in _parts(_known_form(ids), self._choices)]
        gone = 0
        for condition in conditions:
            count = self._count(condition)
            if count and condition is not None:
                self._delete(condition)
                gone += count
        return gone

    def scan(self, batch_size: int = 1024) -> Iterator[Records]:
        """Every record once, in order of id."""
        for page in self._pages(None, vectors=[vector_name(self._schema.dim)], limit=batch_size):
            yield records_of(page, self._schema.dim)

    def document_ids(self, batch_size: int = 4096) -> Iterator[list[str]]:
        """The document of every record, in order of record id."""
        for page in self._pages(None, payload=["document_id"], limit=batch_size):
            yield column(page, "document_id")

    def count(self, where: Filter | None = None) -> int:
        """How many records there are, or match."""
        return self._count(self._condition(where))

    def sample(self, count: int, *, seed: int = 0) -> Records:
        """`count` different records drawn evenly, in order of id; all, if there are fewer.

        Args:
            count: How many.
            seed: Has an effect only where the server takes no draw of that size; otherwise the
                engine draws by itself, and differently each time.
        """
        wanted = min(count, self._count(None))
        if self._most_hits is None or wanted <= self._most_hits:
            request = {"query": RANDOM, "limit": max(wanted, 1), "with_payload": False}
            ids = [point.id for point in self._query([request])[0][:wanted]]
        else:
            every = [point.id for page in self._pages(None, payload=False) for point in page]
            rows = np.random.default_rng(seed).choice(len(every), wanted, replace=False)
            ids = [every[row] for row in rows]
        return self.get(sorted(ids))

    def recode(self, codes_of: Callable[[Floats], npt.NDArray[np.uint64]]) -> None:
        """Replace every code by that of its vector; nothing else of a record is written.

        Args:
            codes_of: Codes uint64 `[n]` of vectors float32 `[n, d]`.
        """
        for page in self._pages(None, payload=[HASH], vectors=[vector_name(self._schema.dim)]):
            codes = codes_of(vectors_of(page, self._schema.dim))
            if changes := recoded(page, codes):
                self._recode(changes)

    # Parts

    def _condition(self, where: Filter | None) -> Json | None:
        if where is None:
            return None
        condition, exact = condition_of(where)
        if exact:
            return condition
        # What Qdrant cannot decide is decided here, and it is told the result.
        pages = self._pages(condition, payload=["metadata"])
        points = (point for page in pages for point in page)
        return _has_id([point.id for point in points if matches(where, metadata_of(point))])

    def _pages(
        self,
        where: Json | None,
        *,
        payload: list[str] | bool = True,
        vectors: Sequence[str] = (),
        limit: int | None = None,
    ) -> Iterator[list[Found]]:
        limit, offset = min(limit or self._page, self._page), None
        while True:
            page, offset = self._scroll(
                where, limit=limit, offset=offset, payload=payload, vectors=vectors
            )
            if page:
                yield page
            if offset is None:
                return

    def _search_all(
        self, queries: QueryBatch, plan: SearchPlan, where: Json | None
    ) -> list[list[Hit]]:
        cut = plan.cuts[-1]
        best: list[list[Found]] = [[] for _ in range(len(queries))]
        for page in self._pages(where, payload=False, vectors=[vector_name(self._schema.dim)]):
            units = self._units(page, cut)
            for row, query in enumerate(cut_vectors(queries.vectors, cut)):
                found = [*best[row], *_scored(page, cosines(units, query))]
                scores = np.array([point.score for point in found], dtype=np.float32)
                best[row] = [found[one] for one in best_rows(scores, plan.k)]
        ids = {point.id for found in best for point in found}
        payload_of = {
            point.id: point.payload
            for part in _parts(sorted(ids), self._page)
            for point in self._retrieve(part, payload=HIT_FIELDS)
        }
        return [
            _best([replace(p, payload=payload_of[p.id]) for p in found if p.id in payload_of], plan)
            for found in best
        ]

    def _units(self, found: Sequence[Found], cut: int) -> Floats:
        return cut_vectors(vectors_of(found, self._schema.dim), cut)


def _scored(found: Sequence[Found], scores: Floats) -> list[Found]:
    return [
        replace(point, score=float(score), vectors={})
        for point, score in zip(found, scores, strict=True)
    ]


def _best(found: Sequence[Found], plan: SearchPlan) -> list[Hit]:
    scores = np.array([point.score for point in found], dtype=np.float32)
    order = in_order(scores, [point.id for point in found], plan.k)
    return [hit_of(found[one]) for one in order]


def _has_id(ids: Sequence[str]) -> Json:
    return {"must": [{"has_id": list(ids)}]}


def _known_form(ids: Sequence[str]) -> list[str]:
    """Each id once; without those that are no UUIDs, which engines refuse and none can have."""
    return [id_ for id_ in dict.fromkeys(ids) if is_point_id(id_)]


def _parts(values: Sequence[str], most: int) -> Iterator[list[str]]:
    rest = iter(values)
    while part := list(islice(rest, most)):
        yield part
