"""One consistent state of the Parquet store, read and searched; writes make a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nexus_vdb.connectors._parquet_parts import (
    GROUP,
    Manifest,
    Part,
    read_facts,
    read_manifest,
    schema_from,
)
from nexus_vdb.errors import StoreCorrupt
from nexus_vdb.filters import Filter, matches
from nexus_vdb.ranking import TIE, Rows, best_rows, cosines, cut_vectors, in_order
from nexus_vdb.tables import vectors_of
from nexus_vdb.types import Floats, Hit, StoreSchema

__all__ = ["Mask", "State", "load_file", "load_state", "search"]

_HIT = ["id", "document_id", "text", "metadata", "vector"]

Mask = npt.NDArray[np.bool_]


class State:
    """What the store holds after one commit; its rows are numbered through the parts.

    Args:
        manifest: The commit.
        parts: Its parts, in the same order.
    """

    def __init__(self, manifest: Manifest, parts: Sequence[Part]) -> None:
        self.manifest = manifest
        self.parts = tuple(parts)
        self.starts = np.cumsum([0] + [part.rows for part in parts])

    @property
    def count(self) -> int:
        """Rows of all parts."""
        return int(self.starts[-1])

    def batches(self, batch_size: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Every row once, in batches of some columns; all of them by default."""
        for part in self.parts:
            yield from part.batches(batch_size, columns)

    def among(self, column: str, values: Any) -> list[Mask]:
        """For each part, which rows have one of the values in a key column."""
        return [
            pc.is_in(part.keys.column(column), value_set=values).to_numpy() for part in self.parts
        ]

    def matching(self, where: Filter) -> list[Mask]:
        """For each part, which rows match."""
        return [
            np.array(
                [
                    matches(where, json.loads(text))
                    for batch in part.batches(GROUP, ["metadata"])
                    for text in batch.column("metadata").to_pylist()
                ],
                dtype=bool,
            )
            for part in self.parts
        ]

    def take(self, rows: Rows, columns: Sequence[str] | None = None) -> Any:
        """Some rows, one at least, which must rise, as one batch."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        found = [
            self.parts[number].take(rows[numbers == number] - self.starts[number], columns)
            for number in np.unique(numbers).tolist()
        ]
        return pa.concat_batches(found)


def load_state(folder: Path) -> State | None:
    manifest = read_manifest(folder)
    while manifest is not None:
        try:
            dim = manifest.schema.dim
            parts = [
                Part(folder / name, dim=dim, rows=rows) for name, rows in manifest.parts.items()
            ]
            return State(manifest, parts)
        except StoreCorrupt:
            # A writer may have replaced these files between the two reads: look again.
            newer = read_manifest(folder)
            if newer is None or newer.generation == manifest.generation:
                raise
            manifest = newer
    return None


def load_file(path: Path) -> State:
    """A single file, ours or of the same columns; without our metadata the vectors tell the width.

    Its store's meta stands elsewhere, so its hash is not declared and every search is exact.
    """
    try:
        columns = pq.read_schema(path)
        facts = read_facts(columns, path)
        if "schema" in facts:
            schema = schema_from(facts["schema"])
        else:
            first = next(pq.ParquetFile(path).iter_batches(1, columns=["vector"]))
            dim = len(first.column("vector")[0])
            schema = StoreSchema(dim, (dim,))
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise StoreCorrupt(f"{path} is not a Parquet file of records: {error}") from error
    part = Part(path, dim=schema.dim)
    return State(Manifest(schema, parts={part.name: part.rows}), [part])


def search(
    state: State, vectors: Floats, *, k: int, cut: int, where: Filter | None
) -> list[list[Hit]]:
    """The k best for each query by cosine at a cut, in order; everything is compared.

    Args:
        state: What is searched.
        vectors: Queries, float32 `[q, d]`.
        k: Hits for each.
        cut: Width at which is compared.
        where: Applied before.
    """
    units = cut_vectors(vectors, cut)
    found = [_best(parts, k) for parts in _nearest(state, units, k, where)]
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
    if not len(rows):
        return [[] for _ in found]
    table = state.take(rows, _HIT)
    near = cut_vectors(vectors_of(table), cut)
    places = [np.searchsorted(rows, mine) for mine in found]
    return [
        _hits(table, mine, cosines(near[mine], unit), k)
        for mine, unit in zip(places, units, strict=True)
    ]


def _nearest(
    state: State, units: Floats, k: int, where: Filter | None
) -> list[list[tuple[Rows, Floats]]]:
    """For each query, batch by batch, the k nearest rows and near ties with them."""
    found: list[list[tuple[Rows, Floats]]] = [[] for _ in units]
    masks = None if where is None else state.matching(where)
    for number, part in enumerate(state.parts):
        start = 0
        for table in part.batches(GROUP, ["vector"]):
            rows = np.arange(start, start + len(table))
            start += len(table)
            vectors = vectors_of(table)
            if masks is not None:
                kept = masks[number][rows]
                rows, vectors = rows[kept], vectors[kept]
            scores = units @ cut_vectors(vectors, units.shape[1]).T
            for mine, one in zip(found, scores, strict=True):
                best = best_rows(one, k, slack=TIE)
                mine.append((rows[best] + state.starts[number], one[best]))
    return found


def _best(parts: list[tuple[Rows, Floats]], k: int) -> Rows:
    if not parts:
        return np.zeros(0, dtype=np.int64)
    scores = np.concatenate([part for _, part in parts])
    return np.sort(np.concatenate([rows for rows, _ in parts])[best_rows(scores, k, slack=TIE)])


def _hits(table: Any, places: Rows, scores: Floats, k: int) -> list[Hit]:
    table = table.take(places)
    ids = table.column("id").to_pylist()
    order = in_order(scores, ids, k)
    columns = (table.column(name).to_pylist() for name in ("document_id", "text", "metadata"))
    documents, texts, metadata = columns
    return [
        Hit(ids[one], documents[one], float(scores[one]), texts[one], json.loads(metadata[one]))
        for one in order
    ]
