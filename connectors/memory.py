"""`memory://` and `memory://NAME`: an exact store in this process, the reference for all others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nexus_vdb.checks import check_meta, check_plan, check_records, check_schema, check_selection
from nexus_vdb.errors import StoreError, StoreNotFound
from nexus_vdb.filters import Filter, matches
from nexus_vdb.hashing import asymmetric_scores
from nexus_vdb.ranking import TIE, Rows, best_rows, cut_vectors, in_order, rerank
from nexus_vdb.records import join_records, no_records, take_records
from nexus_vdb.types import (
    Floats,
    Hit,
    QueryBatch,
    Records,
    SearchPlan,
    StoreInfo,
    StoreSchema,
)

__all__ = ["MemoryStore"]


class _Table:
    """The rows of one store; replaced as a whole by every write."""

    def __init__(self, schema: StoreSchema) -> None:
        self.schema = schema
        self.meta: dict[str, Any] = {}
        self.writes = 0
        self.replace(no_records(schema.dim))

    def replace(self, records: Records) -> None:
        # One assignment: a search in another thread sees the old rows or the new ones.
        self.now = records, {id_: row for row, id_ in enumerate(records.ids)}
        self.writes += 1

    @property
    def records(self) -> Records:
        return self.now[0]


_SHARED: dict[str, _Table] = {}


class MemoryStore:
    """Everything in numpy arrays, every filter by `matches`, every score in float32.

    `memory://` is a new store each time; `memory://NAME` is the same one for the whole process,
    also after `close`.
    """

    def __init__(self, url: str, table: _Table) -> None:
        self._url = url
        self._held: _Table | None = table

    @classmethod
    def open(cls, url: str, schema: StoreSchema | None = None) -> MemoryStore:
        """Open the named store of this process, or make one if a schema is given.

        Raises:
            StoreNotFound: there is none of that name, and no schema was given.
            DimensionMismatch: it holds vectors of another width.
            FingerprintMismatch: it was filled by another model.
        """
        name = url.partition("://")[2]
        table = _SHARED.get(name) if name else None
        if schema is not None:
            check_schema(url, stored=None if table is None else table.schema, asked=schema)
            if table is None:
                table = _Table(schema)
                if name:
                    _SHARED[name] = table
        if table is None:
            raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
        return cls(url, table)

    @property
    def _table(self) -> _Table:
        if self._held is None:
            raise StoreError(f"{self._url} is closed", hint="open it again")
        return self._held

    def upsert(self, records: Records) -> None:
        """Write records, replacing those of the same id; the last of equal ids wins."""
        table = self._table
        check_records(records, table.schema.dim)
        if not len(records):
            return
        last = {id_: row for row, id_ in enumerate(records.ids)}
        kept = [row for row, id_ in enumerate(table.records.ids) if id_ not in last]
        new = _copy(take_records(records, list(last.values())))
        table.replace(join_records([take_records(table.records, kept), new]))

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The k best by cosine: of all for "exact", else of the best candidates of the hash."""
        table = self._table
        check_plan(queries, plan, table.schema.dim)
        records = table.records
        rows = np.array(_rows(records, where), dtype=np.int64)
        return [_search(records, queries, query, plan, rows) for query in range(len(queries))]

    def get(self, ids: Sequence[str]) -> Records:
        """The records of these ids, in this order; unknown ids are left out."""
        records, row_of = self._table.now
        return _copy(take_records(records, [row_of[id_] for id_ in ids if id_ in row_of]))

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""
        records, wanted = self._table.records, set(document_ids)
        found: dict[str, dict[int, str]] = {}
        for row, document_id in enumerate(records.document_ids):
            if document_id in wanted:
                hashes = found.setdefault(document_id, {})
                hashes[int(records.ordinals[row])] = records.content_hashes[row]
        return found

    def delete(self, *, ids: Sequence[str] | None = None, where: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many records went."""
        check_selection(ids, where)
        table = self._table
        records, row_of = table.now
        if ids is not None:
            gone = {row_of[id_] for id_ in ids if id_ in row_of}
        else:
            gone = set(_rows(records, where))
        kept = [row for row in range(len(records)) if row not in gone]
        table.replace(take_records(records, kept))
        return len(gone)

    def scan(self, batch_size: int = 1024) -> Iterator[Records]:
        """Every record once, as they were when the scan began."""
        records = self._table.records
        for start in range(0, len(records), batch_size):
            rows = list(range(start, min(start + batch_size, len(records))))
            yield _copy(take_records(records, rows))

    def document_ids(self, batch_size: int = 4096) -> Iterator[list[str]]:
        """The document of every record."""
        ids = self._table.records.document_ids
        for start in range(0, len(ids), batch_size):
            yield ids[start : start + batch_size]

    def count(self, where: Filter | None = None) -> int:
        """How many records there are, or match."""
        return len(_rows(self._table.records, where))

    def info(self) -> StoreInfo:
        """What is stored; `details` has the bytes of the vectors."""
        table = self._table
        return StoreInfo(
            url=self._url,
            schema=table.schema,
            count=len(table.records),
            meta=copy.deepcopy(table.meta),
            details={"vector_bytes": table.records.vectors.nbytes},
        )

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value with the store."""
        self._table.meta[key] = check_meta(key, value)

    @property
    def folder(self) -> None:
        """Nothing is kept on disk."""
        return None

    def state(self) -> str:
        """Another one after every write."""
        return str(self._table.writes)

    def close(self) -> None:
        """Let go of the rows; a named store stays for the next `open`."""
        self._held = None


def _rows(records: Records, where: Filter | None) -> list[int]:
    metadata = records.metadata
    return [row for row, one in enumerate(metadata) if where is None or matches(where, one)]


def _search(
    records: Records, queries: QueryBatch, query: int, plan: SearchPlan, rows: Rows
) -> list[Hit]:
    vector, cuts = queries.vectors[query], plan.cuts
    if plan.candidates == "exact":
        cuts = cuts[-1:]
        unit = cut_vectors(vector[None], cuts[0])[0]
        scores = cut_vectors(records.vectors[rows], cuts[0]) @ unit
        rows = rows[best_rows(scores, plan.k, slack=TIE)]
    else:
        logits = queries.hash_logits[query : query + 1]
        scores = asymmetric_scores(logits, records.codes[rows])[0]
        rows = rows[best_rows(scores, max(int(plan.candidates), plan.k))]

    def fetch(some: Rows, width: int) -> Floats:
        return cut_vectors(records.vectors[some], width)

    rows, scores = rerank(rows, vector, k=plan.k, cuts=cuts, fetch=fetch)
    order = in_order(scores, [records.ids[row] for row in rows], plan.k)
    return [_hit(records, int(rows[one]), float(scores[one])) for one in order]


def _hit(records: Records, row: int, score: float) -> Hit:
    metadata = copy.deepcopy(records.metadata[row])
    return Hit(records.ids[row], records.document_ids[row], score, records.texts[row], metadata)


def _copy(records: Records) -> Records:
    # What callers change in their dicts must not change the store, nor the other way round.
    return replace(records, metadata=copy.deepcopy(records.metadata))
