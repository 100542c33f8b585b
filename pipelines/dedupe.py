"""The dedupe job: groups of documents that say nearly the same, found by their codes.

Documents whose codes differ in a few bits are compared by cosine. Each group has a first document,
by id, and whatever is near enough to it, so that nothing is called a duplicate of something that it
is only a distant relative of. A document of several chunks counts as their mean, and its code as
the majority of their bits.

How much a radius finds, of the pairs in a million texts (shipped model) with a cosine of

    radius        3     5     7
    .95 to .97   .41   .67   .89
    .97 to .99   .58   .82   .99
    above .99    .97  1.00  1.00

A million documents take about 45 s of one core and 300 MB of memory; the vectors that are compared
lie in a temporary file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.collection import Collection
from nexus_vdb.errors import ConfigError
from nexus_vdb.hashing import BITS, pack, signs
from nexus_vdb.interfaces import Store
from nexus_vdb.ranking import Rows, cosines, cut_vectors
from nexus_vdb.search import has_hash
from nexus_vdb.stages import slices
from nexus_vdb.types import Floats

__all__ = ["DedupeReport", "Group", "dedupe", "delete_duplicates"]

Codes = npt.NDArray[np.uint64]
Progress = Callable[[str, int, int], None]

_RADIUS = 3
_MOST_RADIUS = 15
_ALL_BELOW = 5000
"""Documents up to which all pairs are compared: a few seconds."""

_BATCH = 1024
_QUERIES = 256  # codes looked up at once: what they find has to fit in memory
_ROWS = 8192  # vectors compared at once: 24 MiB at 768 dimensions
_PARTS, _PART_BITS = 4, 16


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that say nearly the same.

    Attributes:
        first: The one to keep.
        others: The others and their cosines with it, best first.
    """

    first: str
    others: list[tuple[str, float]]


@dataclass(slots=True)
class DedupeReport:
    """What was found.

    Attributes:
        documents: Documents looked at.
        groups: Largest first.
        radius: Bits in which codes may differ; None if all pairs were compared.
        seconds: Wall time.
    """

    documents: int = 0
    groups: list[Group] = field(default_factory=list)
    radius: int | None = None
    seconds: float = 0.0

    @property
    def duplicates(self) -> list[str]:
        """All documents but the first of each group."""
        return [id_ for group in self.groups for id_, _ in group.others]


def dedupe(
    collection: Collection,
    *,
    radius: int | None = None,
    min_score: float = 0.95,
    progress: Progress | None = None,
) -> DedupeReport:
    """Find groups of near-duplicates.

    Args:
        collection: Read twice.
        radius: Bits in which codes may differ; by default 3, and in stores of up to 5,000
            documents all pairs are compared. 7 finds nearly all, and takes ten times as long.
        min_score: Least cosine with the first of a group.
        progress: Called with the step, what is done, and the total.

    Raises:
        ConfigError: an option has a wrong value, or the store is large and has no hash.
    """
    if radius is not None and not 0 <= radius <= _MOST_RADIUS:
        raise ConfigError(f"Invalid radius={radius}; valid: 0 to {_MOST_RADIUS}")
    if not 0 < min_score <= 1:
        raise ConfigError(f"Invalid min_score={min_score}; valid: above 0, at most 1")
    started, tell = time.perf_counter(), progress or _silent
    store = collection.store
    documents = _read(store, tell)
    hashed = has_hash(store.info())
    if radius is None:
        radius = _RADIUS if len(documents.ids) > _ALL_BELOW else None
    if radius is None or not hashed:
        if len(documents.ids) > _ALL_BELOW:
            raise ConfigError(
                f"{collection.url} has no hash to find duplicates by",
                hint="ready-made vectors get one at the end of an ingest of some thousand",
            )
        radius, documents.codes[:] = None, 0
    table = _CodeTable(documents.codes, radius or 0)
    rows = table.with_neighbours(tell)
    with tempfile.TemporaryDirectory(prefix="nexus-dedupe-") as folder:
        vectors = _Vectors(Path(folder) / "vectors.f32", rows, store.info().schema.dim)
        vectors.fill(store, documents, tell)
        found = list(_stars(table, rows, vectors, min_score, tell))
    groups = [
        Group(documents.ids[first], [(documents.ids[row], score) for row, score in others])
        for first, others in found
    ]
    groups.sort(key=lambda group: (-len(group.others), group.first))
    seconds = round(time.perf_counter() - started, 3)
    return DedupeReport(len(documents.ids), groups, radius, seconds)


def delete_duplicates(collection: Collection, report: DedupeReport) -> int:
    """Delete all documents but the first of each group; returns how many."""
    for some in slices(report.duplicates, _BATCH):
        collection.delete(some)
    return len(report.duplicates)


class _Documents:
    """Ids of documents, rising, and their codes."""

    def __init__(self, row_of: dict[str, int], codes: Codes) -> None:
        order = sorted(row_of)
        self.ids = order
        self.codes = codes[[row_of[id_] for id_ in order]]
        self.row_of = {id_: row for row, id_ in enumerate(order)}


def _read(store: Store, tell: Progress) -> _Documents:
    row_of: dict[str, int] = {}
    rows, codes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    count, done = store.count(), 0
    for records in store.scan(_BATCH):
        own = [row_of.setdefault(id_, len(row_of)) for id_ in records.document_ids]
        rows.append(np.array(own, dtype=np.int64))
        codes.append(records.codes)
        done += len(records)
        tell("reading codes", done, count)
    return _Documents(row_of, _majority(np.concatenate(rows), np.concatenate(codes), len(row_of)))


def _majority(rows: Rows, codes: Codes, count: int) -> Codes:
    """One code for each document: the bits that most of its chunks have."""
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(count + 1))
    found = codes[order[starts[:-1]]]
    several = np.flatnonzero(np.diff(starts) > 1)
    for document in several.tolist():
        own = codes[order[starts[document] : starts[document + 1]]]
        found[document] = pack(signs(own).sum(axis=0, keepdims=True))[0]
    return found


class _CodeTable:
    """Documents by code, and codes by their neighbours.

    A code that differs in r bits differs in at most r / 4 of one of its four parts, so every
    neighbour is in a bucket that is looked at (Norouzi et al. 2012, multi-index hashing).
    """

    def __init__(self, codes: Codes, radius: int) -> None:
        self._codes, self._of = np.unique(codes, return_inverse=True)
        self._order = np.argsort(self._of, kind="stable")
        self._starts = np.searchsorted(self._of[self._order], np.arange(len(self._codes) + 1))
        self._radius = radius
        self._index = faiss.IndexBinaryMultiHash(BITS, _PARTS, _PART_BITS)
        self._index.nflip = radius // _PARTS
        self._index.add(self._octets(self._codes))

    @staticmethod
    def _octets(codes: Codes) -> npt.NDArray[np.uint8]:
        return codes.astype("<u8").view(np.uint8).reshape(-1, BITS // 8)

    def _near(self, codes: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Numbers of the codes near each of these, itself among them."""
        octets = self._octets(self._codes[codes])
        limits, _, found = self._index.range_search(octets, self._radius + 1)
        return np.split(found.astype(np.int64), limits[1:-1].astype(np.int64))

    def near(self, rows: Rows) -> list[npt.NDArray[np.int64]]:
        """Numbers of the codes near those of some documents; `documents` takes them."""
        return self._near(self._of[rows])

    def documents(self, codes: npt.NDArray[np.int64]) -> Rows:
        """All documents of some codes, rising."""
        parts = [self._order[self._starts[code] : self._starts[code + 1]] for code in codes]
        return np.sort(np.concatenate(parts))

    def with_neighbours(self, tell: Progress) -> Rows:
        """Documents that have others near them, rising."""
        shared = np.diff(self._starts) > 1
        for start in range(0, len(self._codes), _QUERIES):
            some = np.arange(start, min(start + _QUERIES, len(self._codes)))
            shared[some] |= np.array([len(near) > 1 for near in self._near(some)])
            tell("looking up codes", int(some[-1]) + 1, len(self._codes))
        return np.flatnonzero(shared[self._of])


class _Vectors:
    """Mean vectors of some documents, in a file.

    Args:
        path: Made here.
        rows: The documents, rising.
        dim: Width.
    """

    def __init__(self, path: Path, rows: Rows, dim: int) -> None:
        self._rows = rows
        self._sums: npt.NDArray[np.float32] = np.zeros((0, dim), np.float32)
        if len(rows):
            self._sums = np.memmap(path, dtype=np.float32, mode="w+", shape=(len(rows), dim))

    def fill(self, store: Store, documents: _Documents, tell: Progress) -> None:
        """Read the store again and add up the chunks of these documents."""
        count, done = store.count(), 0
        for records in store.scan(_BATCH) if len(self._rows) else ():
            rows = np.array([documents.row_of.get(id_, -1) for id_ in records.document_ids])
            places = np.searchsorted(self._rows, rows)
            places[places == len(self._rows)] = 0
            known = np.flatnonzero(self._rows[places] == rows)
            np.add.at(self._sums, places[known], records.vectors[known])
            done += len(records)
            tell("reading vectors", done, count)

    def __call__(self, rows: Rows) -> Floats:
        """Unit vectors float32 `[n, d]`."""
        sums = np.asarray(self._sums[np.searchsorted(self._rows, rows)])
        return cut_vectors(sums, sums.shape[1])


def _stars(
    table: _CodeTable, rows: Rows, vectors: _Vectors, min_score: float, tell: Progress
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Each document, in order of id, takes those after it that are near and still free."""
    taken = np.zeros(int(rows[-1]) + 1 if len(rows) else 0, dtype=bool)
    done = 0
    while done < len(rows):
        free = rows[done:][~taken[rows[done:]]][:_QUERIES]
        if not len(free):
            break
        for row, codes in zip(free.tolist(), table.near(free), strict=True):
            if not taken[row]:
                # Only now: of equal texts, the first takes all, and nobody asks for the rest.
                near = table.documents(codes)
                others = near[(near > row) & ~taken[near]]
                found = list(_alike(row, others, vectors, min_score))
                taken[[other for other, _ in found]] = True
                if found:
                    yield row, sorted(found, key=lambda one: (-one[1], one[0]))
        done = int(np.searchsorted(rows, free[-1])) + 1
        tell("comparing", done, len(rows))


def _alike(
    row: int, others: Rows, vectors: _Vectors, min_score: float
) -> Iterator[tuple[int, float]]:
    if not len(others):
        return
    unit = vectors(np.array([row]))[0]
    for start in range(0, len(others), _ROWS):
        some = others[start : start + _ROWS]
        scores = cosines(vectors(some), unit)
        for place in np.flatnonzero(scores >= min_score).tolist():
            yield int(some[place]), float(scores[place])


def _silent(step: str, done: int, total: int) -> None:
    pass
