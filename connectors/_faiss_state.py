"""One consistent state of the FAISS store; writes make a new one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_check import corrupt, read_named
from nexus_vdb.connectors._faiss_files import Manifest, SegmentEntry, manifest_stamp, read_manifest
from nexus_vdb.connectors._faiss_filter import FilterColumns
from nexus_vdb.connectors._faiss_halves import Halves, Mask
from nexus_vdb.connectors._faiss_lists import LISTED
from nexus_vdb.connectors._faiss_scan import HashScan
from nexus_vdb.connectors._faiss_segment import Segment, Sought, sought
from nexus_vdb.connectors._faiss_signs import SIGNED, fewest_unlike, kept, signs_of
from nexus_vdb.errors import StoreCorrupt
from nexus_vdb.filters import Filter
from nexus_vdb.ranking import Rows
from nexus_vdb.records import join_records, no_records, take_records
from nexus_vdb.types import Floats, Metadata, Records, StoreSchema

__all__ = [
    "State",
    "View",
    "load_state",
    "read_dead",
    "read_meta",
    "refreshed",
    "worth_merging",
]

_FAN = 16
"""Small segments of like size that are merged into one: a row is rewritten log16(n / 512) times."""

_LARGE, _FAN_LARGE = 2, 64
"""From this tier on (8192 rows) so many: visits cost readers less than rewrites cost writers."""

_SMALLEST = 512
"""Segments below this count as of like size."""

_PASSED = 16_384
"""Neighbouring rows from which a sample is drawn at a time: 50 MB of files that may be touched."""

_T = TypeVar("_T", bound=np.generic)
_Pick: TypeAlias = Callable[[Segment, Rows], npt.NDArray[_T]]


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
        self.entry = replace(segment.entry, dead=dead_file)
        """As the manifest names it."""
        self._columns = columns or FilterColumns(segment)
        self.live: Mask | None = None
        """By row, bool `[n]`; None where none was deleted."""
        if dead is not None and len(dead):
            if dead.max() >= segment.rows:
                raise corrupt(segment.folder / dead_file, "does not fit the segment")
            self.live = np.ones(segment.rows, dtype=bool)
            self.live[dead] = False
        self.count = segment.rows if self.live is None else int(self.live.sum())

    @cached_property
    def live_places(self) -> Mask | None:
        """As `live`, by place."""
        return None if self.live is None else self.segment.by_place(self.live)

    @cached_property
    def scan(self) -> HashScan:
        """The hash scan over the live places."""
        return HashScan(self.segment.codes, self.live_places)

    @property
    def dead(self) -> Rows:
        """The deleted rows, rising."""
        return np.zeros(0, np.int64) if self.live is None else np.flatnonzero(~self.live)

    def mask(self, where: Filter | None) -> Mask | None:
        """Which rows are live and match, bool `[n]`; None for all."""
        if where is None:
            return self.live
        mask = self._columns.mask(where)
        return mask if self.live is None else mask & self.live

    def rows(self, where: Filter | None) -> Rows:
        """Live rows that match, rising."""
        mask = self.mask(where)
        return np.arange(self.segment.rows) if mask is None else np.flatnonzero(mask)

    def places(self, where: Filter) -> Rows:
        """Places of live rows that match, rising."""
        mask = self._columns.mask(where)
        return np.flatnonzero(
            self.segment.by_place(mask if self.live is None else mask & self.live)
        )

    @property
    def is_untidy(self) -> bool:
        """Whether writing it anew would make searching it quicker."""
        segment = self.segment
        unlisted = not segment.entry.lists and segment.rows >= LISTED
        unsigned = segment.signs is None and segment.rows >= SIGNED
        return self.live is not None or unlisted or unsigned

    def living(self, found: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those of the pairs whose row, the second, is not deleted."""
        return [pair for pair in found if self.live is None or self.live[pair[1]]]

    def with_dead(self, dead: Rows | None, dead_file: str) -> View:
        """The same with these rows deleted, and no others."""
        return View(self.segment, dead=dead, dead_file=dead_file, columns=self._columns)

    def recoded(self, codes_file: str) -> View:
        """The same with another file of codes."""
        segment, dead_file = self.segment.recoded(codes_file), self.entry.dead
        return View(segment, dead=self.dead, dead_file=dead_file, columns=self._columns)


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

    def rows_with_ids(self, ids: Sought) -> list[Rows]:
        """Live rows that have one of the ids, by segment."""
        pairs = [view.living(view.segment.rows_of_ids(ids)) for view in self.views]
        return [np.array([row for _, row in some], dtype=np.int64) for some in pairs]

    def rows_of_ids(self, ids: Sequence[str]) -> dict[str, int]:
        """Row of each id that is there."""
        wanted = sought(ids)
        return {
            id_: row + int(start)
            for view, start in zip(self.views, self._starts, strict=False)
            for id_, row in view.living(view.segment.rows_of_ids(wanted))
        }

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""
        found: dict[str, dict[int, str]] = {}
        wanted = sought(document_ids)
        for view in self.views:
            pairs = view.living(view.segment.rows_of_documents(wanted))
            rows = np.array([row for _, row in pairs], dtype=np.int64)
            ordinals = view.segment.column("ordinal", rows)
            hashes = view.segment.column("content_hash", rows)
            for (document_id, _), ordinal, digest in zip(pairs, ordinals, hashes, strict=True):
                found.setdefault(document_id, {})[ordinal] = digest
        return found

    def column(self, name: str, rows: Rows) -> list[Any]:
        """Values of an Arrow column, in the order of the rows."""
        values: list[Any] = [None] * len(rows)
        for segment, at, local in self._by_segment(rows):
            for place, value in zip(at.tolist(), segment.column(name, local), strict=True):
                values[place] = value
        return values

    def metadata(self, rows: Rows) -> list[Metadata]:
        """The decoded metadata of some rows."""
        values: list[Metadata] = [{}] * len(rows)
        for segment, at, local in self._by_segment(rows):
            for place, value in zip(at.tolist(), segment.metadata(local), strict=True):
                values[place] = value
        return values

    def units(self, rows: Rows, width: int) -> Floats:
        """Renormalised vectors at a cut, float32 `[n, width]`."""
        return self._gather(rows, width, np.float32, lambda one, local: one.units(local, width))

    def halves(self, rows: Rows, width: int) -> Halves:
        """The first coordinates as they are stored, float16 `[n, width]`."""
        return self._gather(
            rows, width, np.float16, lambda one, local: one.vectors.at(local, width)
        )

    def prefixes(self, places: Rows) -> Halves:
        """The vectors of the narrowest cut at some places, float16 `[n, c]`."""
        width = self.manifest.schema.cuts[0]
        return self._gather(places, width, np.float16, lambda one, local: one.prefix_at(local))

    def sifted(self, places: Rows, unit: Floats, k: int) -> Rows:
        """Of the candidates of each segment those whose signs are most like a query's.

        Args:
            places: Of the store.
            unit: The query at the narrowest cut, float32 `[1, c]`.
            k: Hits wanted in the end.
        """
        wanted, parts = signs_of(unit), [np.zeros(0, dtype=np.int64)]
        for segment, at, local in self._by_segment(places):
            count = kept(len(local), k)
            if segment.signs is not None and len(local) > count:
                at = at[fewest_unlike(segment.signs.at(local), wanted, count)]
            parts.append(places[at])
        return np.concatenate(parts)

    def rows_at(self, places: Rows) -> Rows:
        """The row at each place of the store."""
        rows = np.empty_like(places)
        for segment, at, local in self._by_segment(places):
            rows[at] = segment.rows_at(local) + (places[at] - local)
        return rows

    def records(self, rows: Rows) -> Records:
        """Whole records, in the order of the rows."""
        if len(self.views) == 1:
            return self.views[0].segment.records(rows)
        parts, order = [no_records(self.manifest.schema.dim)], [np.zeros(0, dtype=np.int64)]
        for segment, at, local in self._by_segment(rows):
            parts.append(segment.records(local))
            order.append(np.arange(len(rows))[at])
        return take_records(join_records(parts), np.argsort(np.concatenate(order)).tolist())

    def let_go(self, *, vectors: bool = False) -> None:
        """Hold nothing of the files in memory, or nothing of the vectors, whole and narrow."""
        for view in self.views:
            view.segment.let_go(vectors=vectors)

    def sample(self, count: int, seed: int) -> Records:
        """Different records drawn evenly, as they stand in the files."""
        drawn = np.sort(self._drawn(count, seed))
        parts = [no_records(self.manifest.schema.dim)]
        ends = np.searchsorted(drawn, range(_PASSED, int(self._starts[-1]), _PASSED))
        for rows in np.split(drawn, ends):
            parts.append(self.records(rows))
            self.let_go()
        return join_records(parts)

    def _drawn(self, count: int, seed: int) -> Rows:
        random = np.random.default_rng(seed)
        drawn = random.choice(self.count, min(count, self.count), replace=False)
        rows, first = np.empty(len(drawn), dtype=np.int64), 0
        for view, start in self.numbered():
            mine = np.flatnonzero((drawn >= first) & (drawn < first + view.count))
            rows[mine] = view.rows(None)[drawn[mine] - first] + start
            first += view.count
        return rows

    def numbered(self) -> Iterator[tuple[View, int]]:
        """Each segment, and the number of its first row (and place) in the store."""
        yield from zip(self.views, self._starts.tolist(), strict=False)

    def _gather(
        self,
        rows: Rows,
        width: int,
        kind: type[_T],
        pick: Callable[[Segment, Rows], npt.NDArray[_T]],
    ) -> npt.NDArray[_T]:
        if len(self.views) == 1:
            return pick(self.views[0].segment, rows)
        found = np.empty((len(rows), width), dtype=kind)
        for segment, at, local in self._by_segment(rows):
            found[at] = pick(segment, local)
        return found

    def _by_segment(self, rows: Rows) -> Iterator[tuple[Segment, Rows, Rows]]:
        if len(self.views) == 1:
            yield self.views[0].segment, np.arange(len(rows)), rows
            return
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            at = np.flatnonzero(numbers == number)
            yield self.views[number].segment, at, rows[at] - self._starts[number]


def worth_merging(views: Sequence[View]) -> list[View]:
    """Views that should become one segment now; none if all is well.

    Segments of like size are merged, so that there are never many and a row is seldom rewritten.
    """
    tiers: dict[int, list[View]] = {}
    for view in views:
        tier, size = 0, view.count
        while size >= _SMALLEST:
            tier, size = tier + 1, size // _FAN
        tiers.setdefault(tier, []).append(view)
    for tier, group in sorted(tiers.items()):
        if len(group) >= (_FAN if tier < _LARGE else _FAN_LARGE):
            return group
    # A quarter of the rows being dead is worth a rewrite of the others.
    return next(([view] for view in views if view.count < 0.75 * view.segment.rows), [])


def load_state(folder: Path, *, known: State | None = None) -> State | None:
    """Open the last committed state; None where there never was one.

    Args:
        folder: The store's.
        known: An older state, of which what did not change is taken over.

    Raises:
        StoreCorrupt: a file that the manifest names is missing or damaged.
        StoreError: it has another format.
    """
    manifest = read_manifest(folder)
    while manifest is not None:
        try:
            return _open(folder, manifest, known)
        except StoreCorrupt:
            # A writer may have merged these files away between the two reads: look again.
            newer = read_manifest(folder)
            if newer is None or newer.generation == manifest.generation:
                raise
            manifest = newer
    return None


def refreshed(folder: Path, known: State, seen: object) -> tuple[State, object]:
    """The last committed state and the stamp of its manifest, if it is not the one `seen`."""
    stamp = manifest_stamp(folder)
    if stamp in (None, seen):
        return known, seen
    return load_state(folder, known=known) or known, stamp


def _open(folder: Path, manifest: Manifest, known: State | None) -> State:
    there = {} if known is None else {view.entry.name: view for view in known.views}
    views = [
        _open_view(folder / "segments" / entry.name, entry, manifest.schema, there.get(entry.name))
        for entry in manifest.segments
    ]
    return State(manifest, views, read_meta(folder, manifest))


def _open_view(path: Path, entry: SegmentEntry, schema: StoreSchema, known: View | None) -> View:
    if known is not None and known.entry == entry:
        return known
    dead = read_dead(path / entry.dead) if entry.dead else None
    if known is not None and replace(known.entry, dead=entry.dead) == entry:
        return known.with_dead(dead, entry.dead)
    return View(Segment(path, entry, schema), dead=dead, dead_file=entry.dead)


def read_meta(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The small values of a commit.

    Raises:
        StoreCorrupt: their file is missing or damaged.
    """
    if not manifest.meta:
        return {}
    path = folder / manifest.meta
    try:
        return dict(json.loads(read_named(path)))
    except ValueError as error:
        raise corrupt(path, f"is damaged: {error}") from error


def read_dead(path: Path) -> Rows:
    """The deleted rows in a file.

    Raises:
        StoreCorrupt: it is missing or damaged.
    """
    content = read_named(path)
    if len(content) % 4:
        raise corrupt(path, "is damaged")
    return np.frombuffer(content, dtype="<u4").astype(np.int64)
