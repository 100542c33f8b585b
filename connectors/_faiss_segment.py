"""One immutable segment of the FAISS store: written as a stream, read by memory maps.

    vectors.f16   float16 [n, d], unit rows
    prefix.f16    float16 [n, c]: the narrowest cut, renormalised; absent if there is one cut only
    codes.u64     uint64 [n]
    lookup.bin    sorted 64-bit hashes of ids, of document ids (uint64 [2, n]); their rows
                  (uint32 [2, n])
    rows.arrow    Arrow IPC file: id, document_id, ordinal, text, metadata (JSON), content_hash

All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.folders import fsync_folder
from nexus_vdb.ranking import Rows, cut_vectors
from nexus_vdb.tables import codes_of, hex_array, table_schema, vector_array, vectors_of
from nexus_vdb.types import Floats, Metadata, Records, StoreSchema

__all__ = [
    "Block",
    "Segment",
    "Sought",
    "block_of",
    "block_of_table",
    "corrupt",
    "sought",
    "table_of_block",
    "write_segment",
]

_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("document_id", pa.string()),
        ("ordinal", pa.int32()),
        ("text", pa.large_string()),
        ("metadata", pa.large_string()),
        ("content_hash", pa.string()),
    ]
)
_BATCH = 4096
"""Rows of an Arrow batch at least, so that merged segments are not made of crumbs."""

_ID, _DOCUMENT = 0, 1

_FEW = 64
"""Rows up to which single look-ups are faster than an Arrow `take` in every batch."""

Halves = npt.NDArray[np.float16]
Codes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows on their way into a segment, in the form they have on disk."""

    table: Any
    vectors: Halves
    codes: Codes


def block_of(records: Records, rows: Sequence[int]) -> Block:
    """Some rows of records in the form they have on disk.

    Raises:
        StoreError: a text is not valid Unicode, or metadata are not JSON values.
    """
    try:
        columns = [
            [records.ids[row] for row in rows],
            [records.document_ids[row] for row in rows],
            records.ordinals[list(rows)],
            [records.texts[row] for row in rows],
            [json.dumps(records.metadata[row], separators=(",", ":")) for row in rows],
            [records.content_hashes[row] for row in rows],
        ]
        arrays = [pa.array(one, kind.type) for one, kind in zip(columns, _COLUMNS, strict=True)]
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise StoreError(
            f"these records cannot be written: {error}",
            hint="texts must be valid Unicode, and metadata JSON values",
        ) from error
    table = pa.RecordBatch.from_arrays(arrays, schema=_COLUMNS)
    return Block(table, records.vectors[rows].astype("<f2"), records.codes[rows].astype("<u8"))


def block_of_table(table: Any) -> Block:
    """A batch with the columns of `nexus_vdb.tables` in the form it has on disk."""
    rows = table.select(_COLUMNS.names).cast(_COLUMNS)
    return Block(rows, vectors_of(table).astype("<f2"), codes_of(table).astype("<u8"))


def table_of_block(block: Block, rows: slice) -> Any:
    """Some rows with the columns of `nexus_vdb.tables`."""
    part = block.table.slice(rows.start, rows.stop - rows.start)
    columns = [
        *(part.column(name) for name in _COLUMNS.names),
        vector_array(block.vectors[rows]),
        hex_array(block.codes[rows]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=table_schema(block.vectors.shape[1]))


def write_segment(folder: Path, blocks: Iterable[Block], schema: StoreSchema) -> int:
    """Write a segment as a stream of blocks; on disk when it returns.

    Returns:
        The number of rows written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hashes: list[list[npt.NDArray[np.uint64]]] = [[], []]
    names = ["rows.arrow", "vectors.f16", "codes.u64"] + ["prefix.f16"] * (len(schema.cuts) > 1)
    files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in names}
    try:
        with pa.ipc.new_file(files["rows.arrow"], _COLUMNS) as tables:
            for block in _regroup(blocks):
                tables.write_batch(block.table)
                _write_arrays(files, block, schema.cuts[0])
                for key, column in enumerate(("id", "document_id")):
                    hashes[key].append(_hash(block.table.column(column).to_pylist()))
        files["lookup.bin"] = (folder / "lookup.bin").open("wb")
        rows = _write_lookup(files["lookup.bin"], [np.concatenate(one) for one in hashes])
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    fsync_folder(folder)
    fsync_folder(folder.parent)
    return rows


def _regroup(blocks: Iterable[Block]) -> Iterator[Block]:
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if sum(len(one.codes) for one in held) >= _BATCH:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    (table,) = pa.Table.from_batches([one.table for one in blocks]).combine_chunks().to_batches()
    vectors = np.concatenate([one.vectors for one in blocks])
    return Block(table, vectors, np.concatenate([one.codes for one in blocks]))


def _write_arrays(files: dict[str, BinaryIO], block: Block, narrow: int) -> None:
    files["vectors.f16"].write(block.vectors.tobytes())
    files["codes.u64"].write(block.codes.tobytes())
    if "prefix.f16" in files:
        files["prefix.f16"].write(cut_vectors(block.vectors, narrow).astype("<f2").tobytes())


def _write_lookup(file: BinaryIO, hashes: list[npt.NDArray[np.uint64]]) -> int:
    orders = [np.argsort(one, kind="stable") for one in hashes]
    for one, order in zip(hashes, orders, strict=True):
        file.write(one[order].astype("<u8").tobytes())
    for order in orders:
        file.write(order.astype("<u4").tobytes())
    return len(hashes[_ID])


def _hash(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """Texts that are looked up in every segment, hashed once and in the order of their hashes."""

    texts: list[str]
    hashes: npt.NDArray[np.uint64]


def sought(texts: Sequence[str]) -> Sought:
    """Texts to look up."""
    hashes = _hash(texts)
    order = np.argsort(hashes, kind="stable")  # a search for rising values stays in the cache
    return Sought([texts[row] for row in order.tolist()], hashes[order])


class Segment:
    """The open files of one segment; nothing of it is held in memory but what is asked for.

    Args:
        folder: Where it is.
        rows: How many rows the manifest says it has.
        schema: The store's.

    Raises:
        StoreCorrupt: a file is missing or has the wrong size; the error names it.
    """

    def __init__(self, folder: Path, rows: int, schema: StoreSchema) -> None:
        self.name = folder.name
        self._folder = folder
        self.rows = rows
        narrow = schema.cuts[0]
        self.codes: Codes = _mapped(folder / "codes.u64", "<u8", (rows,))
        self._vectors: Halves = _mapped(folder / "vectors.f16", "<f2", (rows, schema.dim))
        self._prefix: Halves | None = None
        if len(schema.cuts) > 1:
            self._prefix = _mapped(folder / "prefix.f16", "<f2", (rows, narrow))
        self._lookup = _mapped(folder / "lookup.bin", "u1", (24 * rows,))
        self._batches = _open_table(folder / "rows.arrow", rows)
        self._starts = np.cumsum([0] + [len(batch) for batch in self._batches])

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._folder.glob("*"))

    def units(self, rows: Rows | slice, width: int) -> Floats:
        """Renormalised vectors of some rows at a cut, float32 `[n, width]`."""
        if self._prefix is not None and width == self._prefix.shape[1]:
            return cut_vectors(self._prefix[rows], width)
        return cut_vectors(self._vectors[rows], width)

    def column(self, name: str, rows: Rows) -> list[Any]:
        """Values of an Arrow column, in the order of the rows."""
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        if len(rows) <= _FEW:
            places = zip(batches.tolist(), (rows - self._starts[batches]).tolist(), strict=True)
            return [self._batches[batch].column(name)[row].as_py() for batch, row in places]
        values: list[Any] = [None] * len(rows)
        for number in np.unique(batches):
            here = np.flatnonzero(batches == number)
            picked = self._batches[number].column(name).take(rows[here] - self._starts[number])
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
            vectors=self._vectors[rows].astype(np.float32),
            codes=self.codes[rows].astype(np.uint64),
        )

    def blocks(self, live: npt.NDArray[np.bool_] | None) -> Iterator[Block]:
        """The live rows in the form they have on disk, for merging."""
        for batch, start in zip(self._batches, self._starts, strict=False):
            part = slice(int(start), int(start) + len(batch))
            if live is None:
                yield Block(batch, self._vectors[part], self.codes[part])
            elif live[part].any():
                keep = np.flatnonzero(live[part])
                yield Block(
                    batch.take(pa.array(keep)), self._vectors[part][keep], self.codes[part][keep]
                )

    def rows_of_ids(self, ids: Sought) -> list[tuple[str, int]]:
        """Every row, dead or not, that has one of the ids."""
        return self._find(_ID, "id", ids)

    def rows_of_documents(self, document_ids: Sought) -> list[tuple[str, int]]:
        """Every row, dead or not, that belongs to one of the documents."""
        return self._find(_DOCUMENT, "document_id", document_ids)

    def _find(self, key: int, column: str, wanted: Sought) -> list[tuple[str, int]]:
        n = self.rows
        hashes = self._lookup[8 * n * key : 8 * n * (key + 1)].view("<u8")
        order = self._lookup[16 * n + 4 * n * key : 16 * n + 4 * n * (key + 1)].view("<u4")
        first = np.searchsorted(hashes, wanted.hashes, side="left")
        here = np.flatnonzero(hashes[np.minimum(first, n - 1)] == wanted.hashes)
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


def _open_table(path: Path, rows: int) -> list[Any]:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise corrupt(path, "is damaged") from error
    if len(table) != rows or table.schema != _COLUMNS:
        raise corrupt(path, "does not fit the manifest")
    return list(table.to_batches())


def corrupt(path: Path, what: str) -> StoreCorrupt:
    """The error for a file that cannot be used."""
    return StoreCorrupt(
        f"{path} {what}", hint="ingest again into a new folder, or restore this one from a copy"
    )
