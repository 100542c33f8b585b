"""One immutable segment of the FAISS store, read by memory maps; `_faiss_write` writes it.

    vectors.f16   float16 [n, d], unit rows
    prefix.f16    float16 [n, c]: the narrowest cut, renormalised; absent if there is one cut only
    codes.u64     uint64 [n]; the manifest may name a newer file
    lookup.bin    sorted 64-bit hashes of ids, of document ids (uint64 [2, n]); their rows
                  (uint32 [2, n])
    rows.arrow    Arrow IPC file: id, document_id, ordinal, text, metadata (JSON), content_hash

A large segment has coarse lists as well (`_faiss_lists`): its prefix and codes stand in their
order, by place, and everything else by row. All numbers are little-endian.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexus_vdb.connectors._faiss_files import SegmentEntry
from nexus_vdb.connectors._faiss_halves import Halves, Mask, floats
from nexus_vdb.connectors._faiss_lists import Lists, read_lists
from nexus_vdb.connectors._faiss_write import COLUMNS, DOCUMENT, ID, Block, Codes, hash_texts
from nexus_vdb.errors import StoreCorrupt
from nexus_vdb.ranking import Rows, cut_vectors
from nexus_vdb.types import Floats, Metadata, Records, StoreSchema

__all__ = ["Segment", "Sought", "corrupt", "sought"]

_BLOCK = 8192
"""Vectors that are coded anew at a time."""

_FEW = 64
"""Rows up to which single look-ups are faster than an Arrow `take` in every batch."""


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

    Raises:
        StoreCorrupt: a file is missing, damaged or of the wrong size; the error names it.
    """

    def __init__(self, folder: Path, entry: SegmentEntry, schema: StoreSchema) -> None:
        self.entry = entry
        self.rows = rows = entry.rows
        self._folder, self._schema = folder, schema
        self.codes: Codes = _mapped(folder / entry.codes, "<u8", (rows,))
        """By place, uint64 `[n]`."""
        self.vectors: Halves = _mapped(folder / "vectors.f16", "<f2", (rows, schema.dim))
        """By row, float16 `[n, d]`."""
        self.prefix: Halves | None = None
        """By place, float16 `[n, c]`, where there is more than one cut."""
        if len(schema.cuts) > 1:
            self.prefix = _mapped(folder / "prefix.f16", "<f2", (rows, schema.cuts[0]))
        self.lists: Lists | None = None
        if entry.lists:
            self.lists = _open_lists(folder / "lists.npz", entry, schema.cuts[0])
            self._order = _mapped(folder / "order.u32", "<u4", (2, rows))
        self._lookup = _mapped(folder / "lookup.bin", "u1", (24 * rows,))
        self._batches = _open_table(folder / "rows.arrow", rows)
        self._starts = np.cumsum([0] + [len(batch) for batch in self._batches])
        self._columns: dict[str, list[Any]] = {}

    def recoded(self, codes: str) -> Segment:
        """The same with another file of codes."""
        return Segment(self._folder, replace(self.entry, codes=codes), self._schema)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._folder.glob("*"))

    def rows_at(self, places: Rows) -> Rows:
        """The row at each place."""
        return places if self.lists is None else self._order[0][places].astype(np.int64)

    def by_place(self, mask: Mask) -> Mask:
        """What is known of each row, for each place."""
        return mask if self.lists is None else np.asarray(mask[self._order[0]])

    def by_row(self, values: npt.NDArray[Any], rows: Rows | slice) -> npt.NDArray[Any]:
        """What is known of each place, for some rows."""
        return np.asarray(values[rows if self.lists is None else self._order[1][rows]])

    def units(self, rows: Rows, width: int) -> Floats:
        """Renormalised vectors of some rows at a cut, float32 `[n, width]`."""
        return cut_vectors(self.vectors[rows, :width], width)

    def prefix_at(self, places: Rows) -> Halves:
        """The vectors of the narrowest cut at some places, float16 `[n, c]`."""
        return self.vectors[self.rows_at(places)] if self.prefix is None else self.prefix[places]

    def column(self, name: str, rows: Rows) -> list[Any]:
        """Values of an Arrow column, in the order of the rows."""
        if name not in self._columns:
            self._columns[name] = [batch.column(name) for batch in self._batches]
        arrays = self._columns[name]
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        if len(rows) <= _FEW:
            places = zip(batches.tolist(), (rows - self._starts[batches]).tolist(), strict=True)
            return [arrays[batch][row].as_py() for batch, row in places]
        values: list[Any] = [None] * len(rows)
        for number in np.unique(batches):
            here = np.flatnonzero(batches == number)
            picked = arrays[number].take(rows[here] - self._starts[number])
            for place, value in zip(here.tolist(), picked.to_pylist(), strict=True):
                values[place] = value
        return values

    def metadata(self, rows: Rows) -> list[Metadata]:
        """The decoded metadata of some rows."""
        return [json.loads(text) for text in self.column("metadata", rows)]

    def all_metadata(self) -> Iterator[Metadata]:
        """The decoded metadata of every row, one after the other."""
        for batch in self._batches:
            for text in batch.column("metadata").to_pylist():
                yield json.loads(text)

    def records(self, rows: Rows) -> Records:
        """Whole records of some rows."""
        return Records(
            ids=self.column("id", rows),
            document_ids=self.column("document_id", rows),
            ordinals=np.array(self.column("ordinal", rows), dtype=np.int32),
            texts=self.column("text", rows),
            metadata=self.metadata(rows),
            content_hashes=self.column("content_hash", rows),
            vectors=floats(self.vectors[rows]),
            codes=self.by_row(self.codes, rows).astype(np.uint64),
        )

    def blocks(self, live: Mask | None, *, merging: bool = False) -> Iterator[Block]:
        """The live rows in the form they have on disk; for merging, with all that is known."""
        hashes = self._hashes() if merging else None
        for batch, start in zip(self._batches, self._starts, strict=False):
            rows: Rows | slice = slice(int(start), int(start) + len(batch))
            if live is not None and not live[rows].all():
                keep = np.flatnonzero(live[rows])
                if not len(keep):
                    continue
                batch, rows = batch.take(pa.array(keep)), keep + start
            prefix = None
            if merging and self.prefix is not None:
                prefix = self.by_row(self.prefix, rows)
            codes, known = (
                self.by_row(self.codes, rows),
                None if hashes is None else hashes[:, rows],
            )
            yield Block(batch, self.vectors[rows], codes, prefix, known)

    def codes_by(self, codes_of: Callable[[Floats], Codes]) -> Codes:
        """Other codes of the vectors, by place, uint64 `[n]`."""
        codes = np.empty(self.rows, dtype="<u8")
        for start in range(0, self.rows, _BLOCK):
            part = slice(start, start + _BLOCK)
            found = codes_of(floats(self.vectors[part]))
            codes[part if self.lists is None else self._order[1][part]] = found
        return codes

    def _hashes(self) -> Codes:
        hashes = np.empty((2, self.rows), dtype=np.uint64)
        for key in (ID, DOCUMENT):
            found, rows = self._sorted(key)
            hashes[key][rows] = found
        return hashes

    def _sorted(self, key: int) -> tuple[Codes, npt.NDArray[np.uint32]]:
        n = self.rows
        hashes = self._lookup[8 * n * key : 8 * n * (key + 1)].view("<u8")
        return hashes, self._lookup[16 * n + 4 * n * key : 16 * n + 4 * n * (key + 1)].view("<u4")

    def rows_of_ids(self, ids: Sought) -> list[tuple[str, int]]:
        """Every row, dead or not, that has one of the ids."""
        return self._find(ID, "id", ids)

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
        found = zip(asked.tolist(), self.column(column, rows), rows.tolist(), strict=True)
        return [(text, row) for one, text, row in found if text == wanted.texts[one]]

    def document_ids(self, live: npt.NDArray[np.bool_] | None) -> Iterator[list[str]]:
        """The document of each live row."""
        for batch, start in zip(self._batches, self._starts, strict=False):
            column = batch.column("document_id")
            if live is not None:
                column = column.filter(pa.array(live[start : start + len(batch)]))
            yield column.to_pylist()


def _mapped(path: Path, kind: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    expected = int(np.dtype(kind).itemsize * np.prod(shape))
    try:
        size = path.stat().st_size
        if size != expected:
            raise corrupt(path, f"has {size} bytes instead of {expected}")
        return np.asarray(np.memmap(path, dtype=kind, mode="r", shape=shape))
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error


def _open_lists(path: Path, entry: SegmentEntry, width: int) -> Lists:
    try:
        lists = read_lists(path)
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error
    except (ValueError, OSError) as error:
        raise corrupt(path, f"is damaged: {error}") from error
    shapes = len(lists.axes), len(lists), len(lists.starts), int(lists.starts[-1])
    if shapes != (width, entry.lists, entry.lists + 1, entry.rows):
        raise corrupt(path, "does not fit the manifest")
    return lists


def _open_table(path: Path, rows: int) -> list[Any]:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise corrupt(path, "is damaged") from error
    if len(table) != rows or table.schema != COLUMNS:
        raise corrupt(path, "does not fit the manifest")
    return list(table.to_batches())


def corrupt(path: Path, what: str) -> StoreCorrupt:
    """The error for a file that cannot be used."""
    return StoreCorrupt(
        f"{path} {what}", hint="ingest again into a new folder, or restore this one from a copy"
    )
