"""One immutable segment of the FAISS store, read by memory maps; `_faiss_write` writes it.

    vectors.f16   float16 [n, d], unit rows
    prefix.f16    float16 [n, c]: the narrowest cut, renormalised; absent if there is one cut only
    codes.u64     uint64 [n]; the manifest may name a newer file
    lookup.bin    sorted 64-bit hashes of ids, of document ids (uint64 [2, n]); their rows
                  (uint32 [2, n])
    rows.arrow    Arrow IPC file: id, document_id, ordinal, text, metadata (JSON), content_hash

A large segment has signs as well (`_faiss_signs`), a larger one also coarse lists (`_faiss_lists`):
its prefix, codes and signs stand in their order, by place, and everything else by row. All numbers
are little-endian.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexus_vdb.connectors._faiss_check import (
    Mapped,
    Pages,
    Sums,
    check_named,
    corrupt,
    mapped_octets,
    read_sums,
)
from nexus_vdb.connectors._faiss_files import SegmentEntry
from nexus_vdb.connectors._faiss_halves import Halves, Mask, floats
from nexus_vdb.connectors._faiss_lists import Lists, read_lists
from nexus_vdb.connectors._faiss_signs import SIGNS, signs_width
from nexus_vdb.connectors._faiss_table import Table
from nexus_vdb.connectors._faiss_write import DOCUMENT, ID, Block, Codes, hash_texts
from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.ranking import Rows, cut_vectors
from nexus_vdb.types import Floats, Metadata, Records, StoreSchema

__all__ = ["Segment", "Sought", "sought"]

_PASSED = 16
"""Batches read in a pass before it lets go of what is behind: 128 MiB at 768 dimensions."""

_BLOCK = 8192
"""Vectors that are coded anew at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """Texts that are looked up in every segment, hashed once and in the order of their hashes."""

    texts: list[str]
    hashes: npt.NDArray[np.uint64]


def sought(texts: Sequence[str], hashes: Codes | None = None) -> Sought:
    """Texts to look up; their hashes may be known already."""
    hashes = hash_texts(texts) if hashes is None else hashes
    order = np.argsort(hashes, kind="stable")  # a search for rising values stays in the cache
    return Sought([texts[row] for row in order.tolist()], hashes[order])


class Segment:
    """The open files of one segment; nothing of it is held in memory but what is asked for.

    Rows are in the order of writing; places in that of the coarse lists, where there are any.

    Args:
        folder: Where it is.
        entry: What the manifest says of it.
        schema: The store's.
        rescue: Open only what `blocks` and `records` need.

    Raises:
        StoreCorrupt: a file is missing, damaged or of the wrong size; the error names it.
    """

    def __init__(
        self, folder: Path, entry: SegmentEntry, schema: StoreSchema, *, rescue: bool = False
    ) -> None:
        self.entry = entry
        self.rows = rows = entry.rows
        self.folder, self._schema = folder, schema
        self._sums = sums = read_sums(folder / entry.sums) if entry.sums else {}
        narrow = schema.cuts[0]
        self.vectors: Mapped[np.float16]
        """By row, float16 `[n, d]`."""
        self.vectors = Mapped(folder / "vectors.f16", "<f2", (rows, schema.dim), sums)
        self.prefix: Mapped[np.float16] | None = None
        """By place, float16 `[n, c]`, where there is more than one cut."""
        if len(schema.cuts) > 1 and not rescue:
            self.prefix = Mapped(folder / "prefix.f16", "<f2", (rows, narrow), sums)
        if entry.lists and not rescue:
            _ = self._checked_lists()
        self.signs: Mapped[np.uint8] | None = None
        """By place, uint8 `[n, ⌈c / 8⌉]`; None in small segments and those of older versions."""
        if SIGNS in sums and not rescue:
            self.signs = Mapped(folder / SIGNS, "u1", (rows, signs_width(narrow)), sums)
        self._lookup: Mapped[np.uint8] | None = None
        if not rescue:
            self._lookup = Mapped(folder / "lookup.bin", "u1", (24 * rows,), sums)
            self._open_codes()
        self.table = Table(folder / "rows.arrow", rows, sums)

    def _open_codes(self) -> None:
        folder, rows, sums = self.folder, self.rows, self._sums
        self._codes: Mapped[np.uint64] = Mapped(folder / self.entry.codes, "<u8", (rows,), sums)
        self._order: Mapped[np.uint32] | None = None
        if self.entry.lists:
            self._order = Mapped(folder / "order.u32", "<u4", (2 * rows,), sums)

    @cached_property
    def lists(self) -> Lists | None:
        """None in smaller segments; kept once asked for, which a scan of all codes does not."""
        return self._checked_lists() if self.entry.lists else None

    def _checked_lists(self) -> Lists:
        path = self.folder / "lists.npz"
        return _checked_lists(path, self.entry, self._schema.cuts[0], self._sums)

    @cached_property
    def codes(self) -> Codes:
        """By place, uint64 `[n]`."""
        codes = self._codes.whole()
        check_named(self.folder / self.entry.codes, codes.data)
        return codes

    def recoded(self, codes: str) -> Segment:
        """The same with another file of codes."""
        return Segment(self.folder, replace(self.entry, codes=codes), self._schema)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*"))

    def rows_at(self, places: Rows) -> Rows:
        """The row at each place."""
        if self._order is None:
            return places
        return self._order.whole()[: self.rows][places].astype(np.int64)

    def by_place(self, mask: Mask) -> Mask:
        """What is known of each row, for each place."""
        return mask if self._order is None else np.asarray(mask[self._order.whole()[: self.rows]])

    def places_of(self, rows: Rows) -> Rows:
        """The place of each row."""
        return rows if self._order is None else np.asarray(self._places(rows))

    def by_row(self, values: npt.NDArray[Any], rows: Rows | slice) -> npt.NDArray[Any]:
        """What is known of each place, for some rows."""
        return np.asarray(values[self._places(rows)])

    def _places(self, rows: Rows | slice) -> Rows | slice:
        if self._order is None:
            return rows
        return self._order.whole()[self.rows :][rows].astype(np.int64)

    def units(self, rows: Rows, width: int) -> Floats:
        """Renormalised vectors of some rows at a cut, float32 `[n, width]`."""
        return cut_vectors(self.vectors.at(rows, width), width)

    def prefix_at(self, places: Rows) -> Halves:
        """The vectors of the narrowest cut at some places, float16 `[n, c]`."""
        if self.prefix is None:
            return self.vectors.at(self.rows_at(places))
        return self.prefix.at(places)

    def column(self, name: str, rows: Rows) -> list[Any]:
        """Values of an Arrow column, in the order of the rows."""
        return self.table.column(name, rows)

    def metadata(self, rows: Rows) -> list[Metadata]:
        """The decoded metadata of some rows."""
        return [self.decode(text) for text in self.column("metadata", rows)]

    def decode(self, text: str) -> Metadata:
        """The metadata in a text; one of a store without checksums may be damaged."""
        try:
            return {} if text == "{}" else dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise corrupt(self.folder / "rows.arrow", f"is damaged: {error}") from error

    def records(self, rows: Rows) -> Records:
        """Whole records of some rows."""
        return Records(
            ids=self.column("id", rows),
            document_ids=self.column("document_id", rows),
            ordinals=np.array(self.column("ordinal", rows), dtype=np.int32),
            texts=self.column("text", rows),
            metadata=self.metadata(rows),
            content_hashes=self.column("content_hash", rows),
            vectors=floats(self.vectors.at(rows)),
            codes=self.by_row(self.codes, rows).astype(np.uint64),
        )

    def blocks(self, live: Mask | None, *, merging: bool = False) -> Iterator[Block]:
        """The live rows in the form they have on disk; for merging, with all that is known."""
        hashes = self._hashes() if merging else None
        for number, start in enumerate(self.table.starts[:-1]):
            rows: Rows | slice = slice(int(start), int(self.table.starts[number + 1]))
            keep = None
            if live is not None and not live[rows].all():
                keep = np.flatnonzero(live[rows])
                if not len(keep):
                    continue
                rows = keep + start
            prefix = None
            if merging and self.prefix is not None:
                prefix = self.prefix.at(self._places(rows))
            if number % _PASSED == 0:
                self.let_go()
            batch, codes = self.table.batch(number, keep), self.by_row(self.codes, rows)
            known = None if hashes is None else hashes[:, rows]
            yield Block(batch, self.vectors.at(rows), codes, prefix, known)
        self.let_go()

    def codes_by(self, codes_of: Callable[[Floats], Codes]) -> Codes:
        """Other codes of the vectors, by place, uint64 `[n]`."""
        codes = np.empty(self.rows, dtype="<u8")
        for start in range(0, self.rows, _BLOCK):
            part = slice(start, start + _BLOCK)
            found = codes_of(floats(self.vectors.at(part)))
            codes[self._places(part)] = found
            self.vectors.let_go()
        return codes

    def let_go(self, *, vectors: bool = False) -> None:
        """Hold nothing of the files, or of the vectors, in memory; they are mapped anew if read."""
        others = () if vectors else (self.signs, self._lookup, self.table)
        for file in (self.vectors, self.prefix, *others):
            if file is not None:
                file.let_go()

    def _hashes(self) -> Codes:
        hashes = np.empty((2, self.rows), dtype=np.uint64)
        for key in (ID, DOCUMENT):
            found, rows = self._sorted(key)
            hashes[key][rows] = found
        return hashes

    def _sorted(self, key: int) -> tuple[Codes, npt.NDArray[np.uint32]]:
        if self._lookup is None:
            raise StoreError("a store that is opened for rescue finds nothing by id")
        n, lookup = self.rows, self._lookup.whole()
        hashes = lookup[8 * n * key : 8 * n * (key + 1)].view("<u8")
        return hashes, lookup[16 * n + 4 * n * key : 16 * n + 4 * n * (key + 1)].view("<u4")

    def rescue(self) -> tuple[Mask, StoreCorrupt | None]:
        """Look at all pages; from now on, what is whole is read beside what is not.

        Returns:
            Which rows are damaged, bool `[n]`; and what is wrong with the codes, which are zeros in
            this case.
        """
        bad = self.vectors.rescue() | self.table.rescue()
        try:
            self._open_codes()
            self.by_row(self.codes, slice(0, 0))
        except StoreCorrupt as error:
            self.codes, self._order = np.zeros(self.rows, dtype=np.uint64), None
            return bad, error
        return bad, None

    def rows_of_ids(self, ids: Sought) -> list[tuple[str, int]]:
        """Every row, dead or not, that has one of the ids."""
        return self._find(ID, "id", ids)

    def outdated(self) -> Rows:
        """Rows whose id comes again in a later row, rising."""
        hashes, order = self._sorted(ID)
        first = np.flatnonzero(hashes[1:] == hashes[:-1])
        rows = np.unique(order[np.concatenate([first, first + 1])]).astype(np.int64)
        last = dict(zip(self.column("id", rows), rows.tolist(), strict=True))
        return np.setdiff1d(rows, np.array(list(last.values()), dtype=np.int64))

    def rows_of_documents(self, document_ids: Sought) -> list[tuple[str, int]]:
        """Every row, dead or not, that belongs to one of the documents."""
        return self._find(DOCUMENT, "document_id", document_ids)

    def _find(self, key: int, column: str, wanted: Sought) -> list[tuple[str, int]]:
        hashes, order = self._sorted(key)
        first = np.searchsorted(hashes, wanted.hashes, side="left")
        here = np.flatnonzero(hashes[np.minimum(first, self.rows - 1)] == wanted.hashes)
        first = first[here]
        counts = np.searchsorted(hashes, wanted.hashes[here], side="right") - first
        asked = np.repeat(here, counts)
        steps = np.arange(len(asked)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[np.repeat(first, counts) + steps].astype(np.int64)
        if len(rows) and rows.max() >= self.rows:
            raise corrupt(self.folder / "lookup.bin", "is damaged")
        found = zip(asked.tolist(), self.column(column, rows), rows.tolist(), strict=True)
        return [(text, row) for one, text, row in found if text == wanted.texts[one]]

    def document_ids(self, live: npt.NDArray[np.bool_] | None) -> Iterator[list[str]]:
        """The document of each live row."""
        for column, start in zip(
            self.table.arrays("document_id"), self.table.starts.tolist(), strict=False
        ):
            if live is not None:
                column = column.filter(pa.array(live[start : start + len(column)]))
            yield column.to_pylist()


def _checked_lists(
    path: Path, entry: SegmentEntry, width: int, sums: Mapping[str, tuple[int, Sums]]
) -> Lists:
    size, sums_here = sums.get(path.name, (None, None))
    octets = mapped_octets(path, size)
    Pages(path, octets, sums_here).need_all()
    try:
        lists = read_lists(path)
    except (ValueError, OSError) as error:
        raise corrupt(path, f"is damaged: {error}") from error
    shapes = len(lists.axes), len(lists), len(lists.starts), int(lists.starts[-1])
    if shapes != (width, entry.lists, entry.lists + 1, entry.rows):
        raise corrupt(path, "does not fit the manifest")
    return lists
