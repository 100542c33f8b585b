"""One consistent state of the FAISS store, read and searched; writes make a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_files import Manifest, read_json, read_manifest
from nexus_vdb.connectors._faiss_filter import FilterColumns
from nexus_vdb.connectors._faiss_scan import HashScan, best_codes
from nexus_vdb.connectors._faiss_segment import Segment, corrupt, sought
from nexus_vdb.errors import StoreCorrupt
from nexus_vdb.filters import Filter
from nexus_vdb.ranking import TIE, Rows, best_rows, cut_vectors
from nexus_vdb.records import join_records, no_records, take_records
from nexus_vdb.types import Floats, Records

__all__ = ["State", "View", "load_state"]

_BLOCK = 16384
"""Rows that an exact search holds as float32 at a time: 48 MiB at 768 dimensions."""

_QUERIES = 256
"""Queries of an exact search that share a pass."""

Mask = npt.NDArray[np.bool_]


class View:
    """A segment without the rows that were deleted since it was written.

    Args:
        segment: The files.
        dead: Deleted rows.
        dead_file: Where these are kept; "" for none.
        columns: Filter columns of the segment, if another view of it has made some.
    """

    def __init__(
        self,
        segment: Segment,
        *,
        dead: Rows | None = None,
        dead_file: str = "",
        columns: FilterColumns | None = None,
    ) -> None:
        self.segment = segment
        self.dead_file = dead_file
        self._columns = columns or FilterColumns(segment)
        self.live: Mask | None = None
        if dead is not None and len(dead):
            self.live = np.ones(segment.rows, dtype=bool)
            self.live[dead] = False
        self.count = segment.rows if self.live is None else int(self.live.sum())

    @cached_property
    def scan(self) -> HashScan:
        """The hash scan over the live rows."""
        return HashScan(self.segment.codes, None if self.live is None else self.rows(None))

    @property
    def dead(self) -> Rows:
        """The deleted rows, rising."""
        return np.zeros(0, np.int64) if self.live is None else np.flatnonzero(~self.live)

    def rows(self, where: Filter | None) -> Rows:
        """Live rows that match, rising."""
        if where is None:
            return np.arange(self.segment.rows) if self.live is None else np.flatnonzero(self.live)
        mask = self._columns.mask(where)
        return np.flatnonzero(mask if self.live is None else mask & self.live)

    def living(self, found: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those of the pairs whose row, the second, is not deleted."""
        return [pair for pair in found if self.live is None or self.live[pair[1]]]

    def without(self, rows: Rows, dead_file: str) -> View:
        """The same with more rows deleted."""
        dead = np.union1d(self.dead, rows)
        return View(self.segment, dead=dead, dead_file=dead_file, columns=self._columns)


class State:
    """What the store holds after one commit.

    Rows of the whole store are numbered through its segments.

    Args:
        manifest: The commit.
        views: Its segments, in the same order.
        meta: Its small values.
    """

    def __init__(self, manifest: Manifest, views: Sequence[View], meta: Mapping[str, Any]) -> None:
        self.manifest = manifest
        self.views = tuple(views)
        self.meta = meta
        self._starts = np.cumsum([0] + [view.segment.rows for view in views])
        self.count = sum(view.count for view in views)

    def matching(self, where: Filter | None) -> list[Rows]:
        """Live rows that match, by segment."""
        return [view.rows(where) for view in self.views]

    def rows_of_ids(self, ids: Sequence[str]) -> dict[str, int]:
        """Row of each id that is there."""
        wanted = sought(ids)
        return {
            id_: row + int(start)
            for view, start in zip(self.views, self._starts, strict=False)
            for id_, row in view.living(view.segment.rows_of_ids(wanted))
        }

    def column(self, name: str, rows: Rows) -> list[Any]:
        """Values of an Arrow column, in the order of the rows."""
        values: list[Any] = [None] * len(rows)
        for segment, places, local in self._by_segment(rows):
            for place, value in zip(places.tolist(), segment.column(name, local), strict=True):
                values[place] = value
        return values

    def units(self, rows: Rows, width: int) -> Floats:
        """Renormalised vectors at a cut, float32 `[n, width]`."""
        vectors = np.empty((len(rows), width), dtype=np.float32)
        for segment, places, local in self._by_segment(rows):
            vectors[places] = segment.units(local, width)
        return vectors

    def records(self, rows: Rows) -> Records:
        """Whole records, in the order of the rows."""
        parts, order = [no_records(self.manifest.schema.dim)], [np.zeros(0, dtype=np.int64)]
        for segment, places, local in self._by_segment(rows):
            parts.append(segment.records(local))
            order.append(places)
        return take_records(join_records(parts), np.argsort(np.concatenate(order)).tolist())

    def _by_segment(self, rows: Rows) -> Iterator[tuple[Segment, Rows, Rows]]:
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            yield self.views[number].segment, places, rows[places] - self._starts[number]

    def candidates(self, logits: Floats, count: int, where: Filter | None) -> list[Rows]:
        """For each query the matching rows with about the `count` best hash scores.

        Args:
            logits: float32 `[q, 64]`.
            count: Rows wanted; ties may add some.
            where: Applied before the scan.
        """
        found: list[list[tuple[Rows, Floats]]] = [[] for _ in logits]
        for view, start in zip(self.views, self._starts, strict=False):
            if where is None:
                best = view.scan.best(logits, count)
            else:
                rows, codes = view.rows(where), view.segment.codes
                best = [best_codes(one, codes, rows, count) for one in logits]
            for mine, (rows, scores) in zip(found, best, strict=True):
                mine.append((rows + start, scores))
        return [_best(parts, count, slack=0.0) for parts in found]

    def nearest(self, vectors: Floats, k: int, width: int, where: Filter | None) -> list[Rows]:
        """For each query the k matching rows of highest cosine at a cut, and near ties with them.

        Args:
            vectors: float32 `[q, d]`.
            k: Rows wanted.
            width: The cut.
            where: Applied before anything is compared.
        """
        matching, found = self.matching(where), []
        for first in range(0, len(vectors), _QUERIES):
            queries = cut_vectors(vectors[first : first + _QUERIES], width)
            parts: list[list[tuple[Rows, Floats]]] = [[] for _ in queries]
            for rows, units in self._blocks(matching, width):
                for mine, scores in zip(parts, queries @ units.T, strict=True):
                    best = best_rows(scores, k, slack=TIE)
                    mine.append((rows[best], scores[best]))
            found += [_best(mine, k, slack=TIE) for mine in parts]
        return found

    def _blocks(self, matching: list[Rows], width: int) -> Iterator[tuple[Rows, Floats]]:
        for view, start, rows in zip(self.views, self._starts, matching, strict=False):
            for first in range(0, len(rows), _BLOCK):
                block = rows[first : first + _BLOCK]
                whole = len(block) == block[-1] - block[0] + 1
                picked = slice(int(block[0]), int(block[-1]) + 1) if whole else block
                yield block + start, view.segment.units(picked, width)


def _best(parts: list[tuple[Rows, Floats]], count: int, *, slack: float) -> Rows:
    if not parts:
        return np.zeros(0, dtype=np.int64)
    scores = np.concatenate([part for _, part in parts])
    rows: Rows = np.concatenate([part for part, _ in parts])[best_rows(scores, count, slack=slack)]
    return rows


def load_state(folder: Path) -> State | None:
    """Open the last committed state; None where there never was one.

    Raises:
        StoreCorrupt: a file that the manifest names is missing or damaged.
        StoreError: it has another format.
    """
    manifest = read_manifest(folder)
    while manifest is not None:
        try:
            return _open(folder, manifest)
        except StoreCorrupt:
            # A writer may have merged these files away between the two reads: look again.
            newer = read_manifest(folder)
            if newer is None or newer.generation == manifest.generation:
                raise
            manifest = newer
    return None


def _open(folder: Path, manifest: Manifest) -> State:
    views = []
    for entry in manifest.segments:
        path = folder / "segments" / entry.name
        segment = Segment(path, entry.rows, manifest.schema)
        dead = _read(path / entry.dead, _read_rows) if entry.dead else None
        views.append(View(segment, dead=dead, dead_file=entry.dead))
    meta = _read(folder / manifest.meta, read_json) if manifest.meta else {}
    return State(manifest, views, meta)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error


def _read_rows(path: Path) -> Rows:
    return np.fromfile(path, dtype="<u4").astype(np.int64)
