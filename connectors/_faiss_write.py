"""Writing a segment of the FAISS store: a stream of blocks, from records or from other segments."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexus_vdb.checks import check_vectors
from nexus_vdb.connectors._faiss_check import SummedFile, Sums, page_sums, write_sums
from nexus_vdb.connectors._faiss_files import CODES, SegmentEntry
from nexus_vdb.connectors._faiss_halves import Halves, floats
from nexus_vdb.connectors._faiss_lists import LISTED, LISTED_IN_PASSING, list_rows
from nexus_vdb.connectors._faiss_maps import let_go
from nexus_vdb.connectors._faiss_signs import SIGNED, SIGNS, signs_of, signs_width
from nexus_vdb.folders import fsync_folder, naming
from nexus_vdb.ranking import Rows, cut_vectors
from nexus_vdb.tables import (
    KINDS,
    codes_of,
    columns_of,
    hex_array,
    table_schema,
    vector_array,
    vectors_of,
)
from nexus_vdb.types import Records, StoreSchema

__all__ = [
    "COLUMNS",
    "DOCUMENT",
    "ID",
    "Block",
    "Codes",
    "block_of",
    "block_of_table",
    "hash_texts",
    "hashes_of",
    "table_of_block",
    "write_segment",
]

COLUMNS = pa.schema(list(KINDS.items()))
"""Of `rows.arrow`."""

ID, DOCUMENT = 0, 1
"""Rows of the hashes that are looked up."""

_BATCH = 4096
"""Rows of an Arrow batch at least, so that merged segments are not made of crumbs."""

_TOUCHED = 16
"""Batches drawn from anywhere in a file that touch no more than 256 MiB of it."""

PREFIX = "prefix.f16"

_SCANNED = (CODES, PREFIX)
"""Files that a segment with lists has in their order."""

Codes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows on their way into a segment, in the form they have on disk.

    Attributes:
        table: The columns of `rows.arrow`.
        vectors: float16 `[n, d]`.
        codes: uint64 `[n]`.
        prefix: float16 `[n, c]`; None to have it made of the vectors.
        hashes: uint64 `[2, n]`, of ids and of document ids; None to have them made.
    """

    table: Any
    vectors: Halves
    codes: Codes
    prefix: Halves | None = None
    hashes: Codes | None = None

    def __len__(self) -> int:
        return len(self.codes)


def block_of(records: Records) -> Block:
    """Records in the form they have on disk.

    Raises:
        StoreError: a text is not valid Unicode, or metadata are not JSON values.
    """
    table = pa.RecordBatch.from_arrays(columns_of(records), schema=COLUMNS)
    hashes = np.stack([hash_texts(records.ids), hash_texts(records.document_ids)])
    vectors, codes = records.vectors.astype("<f2"), records.codes.astype("<u8")
    return Block(table, vectors, codes, hashes=hashes)


def block_of_table(table: Any, dim: int) -> Block:
    """A batch with the columns of `nexus_vdb.tables` in the form it has on disk.

    Raises:
        DimensionMismatch: its vectors are not of width `dim`.
        StoreError: one holds NaN or infinity.
    """
    vectors = vectors_of(table)
    check_vectors(vectors, dim)
    rows = table.select(COLUMNS.names).cast(COLUMNS)
    block = Block(rows, vectors.astype("<f2"), codes_of(table).astype("<u8"))
    return replace(block, hashes=hashes_of(block))


def table_of_block(block: Block, rows: slice) -> Any:
    """Some rows with the columns of `nexus_vdb.tables`."""
    part = block.table.slice(rows.start, rows.stop - rows.start)
    columns = [
        *(part.column(name) for name in COLUMNS.names),
        vector_array(block.vectors[rows]),
        hex_array(block.codes[rows]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=table_schema(block.vectors.shape[1]))


def write_segment(
    folder: Path, blocks: Iterable[Block], schema: StoreSchema, *, passing: bool = False
) -> SegmentEntry:
    """Write a segment as a stream of blocks; on disk when it returns.

    A large one is then put into the order of its lists, from its own files; one that is written in
    `passing`, to be merged again, only if it is very large.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return _write_segment(folder, blocks, schema, LISTED_IN_PASSING if passing else LISTED)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room
        raise


def _write_segment(
    folder: Path, blocks: Iterable[Block], schema: StoreSchema, listed: int
) -> SegmentEntry:
    hashes: list[Codes] = []
    names = ["rows.arrow", "vectors.f16", CODES] + [PREFIX] * (len(schema.cuts) > 1)
    with ExitStack() as opened:
        files = {name: opened.enter_context(SummedFile(folder / name)) for name in names}
        with pa.ipc.new_file(files["rows.arrow"], COLUMNS) as tables:
            for block in _regroup(blocks):
                tables.write_batch(block.table)
                _write_arrays(files, block, schema.cuts[0])
                hashes.append(hashes_of(block))
        rows = sum(one.shape[1] for one in hashes)
        for name, file in files.items():
            if rows < listed or name not in _SCANNED:
                file.settle()
            else:
                file.flush()
    sums = {name: (file.size, file.sums) for name, file in files.items()}
    if rows >= SIGNED:
        sums[SIGNS] = _write(folder / SIGNS, map(signs_of, _passed(_narrow(folder, rows, schema))))
    lists = _put_in_lists(folder, rows, schema, sums) if rows >= listed else 0
    lookup = _lookup(np.concatenate(hashes, axis=1))
    sums["lookup.bin"] = _write(folder / "lookup.bin", lookup)
    name = write_sums(folder, sums)
    fsync_folder(folder.parent)
    return SegmentEntry(folder.name, rows, lists=lists, sums=name)


def _put_in_lists(
    folder: Path, rows: int, schema: StoreSchema, sums: dict[str, tuple[int, Sums]]
) -> int:
    narrow = schema.cuts[0]
    with naming(folder / "lists.npz"):
        halves = _narrow(folder, rows, schema)
        order, lists = list_rows(folder / "lists.npz", halves)
    places = np.empty(rows, dtype="<u4")
    places[order] = np.arange(rows, dtype="<u4")
    sums["order.u32"] = _write(folder / "order.u32", (order.astype("<u4"), places))
    del halves
    sums[CODES] = _reorder(folder / CODES, order, 8)
    if SIGNS in sums:
        sums[SIGNS] = _reorder(folder / SIGNS, order, signs_width(narrow))
    if PREFIX in sums:
        sums[PREFIX] = _reorder(folder / PREFIX, order, 2 * narrow)
    written = (folder / "lists.npz").read_bytes()
    sums["lists.npz"] = len(written), page_sums(written)
    return lists


def _narrow(folder: Path, rows: int, schema: StoreSchema) -> Halves:
    name = PREFIX if len(schema.cuts) > 1 else "vectors.f16"
    return np.memmap(folder / name, "<f2", "r", 0, (rows, schema.cuts[0]))


def _passed(stored: Halves) -> Iterator[Halves]:
    for start in range(0, len(stored), _BATCH):
        if start % (_TOUCHED * _BATCH) == 0:
            let_go(stored)
        yield stored[start : start + _BATCH]


def _reorder(path: Path, order: Rows, size: int) -> tuple[int, Sums]:
    stored = np.memmap(path, np.uint8, "r", 0, (len(order), size))
    temporary = path.with_name(path.name + ".tmp")
    sums = _write(temporary, _drawn(stored, order))
    del stored
    temporary.replace(path)
    return sums


def _drawn(stored: npt.NDArray[np.uint8], order: Rows) -> Iterator[npt.NDArray[np.uint8]]:
    for number, start in enumerate(range(0, len(order), _BATCH)):
        if number % _TOUCHED == 0:
            let_go(stored)
        yield stored.take(order[start : start + _BATCH], axis=0)


def _write(path: Path, arrays: Iterable[npt.NDArray[Any]]) -> tuple[int, Sums]:
    with SummedFile(path) as file:
        for array in arrays:
            file.write(array.data)
        file.settle()
    return file.size, file.sums


def _regroup(blocks: Iterable[Block]) -> Iterator[Block]:
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= _BATCH:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    (table,) = pa.Table.from_batches([one.table for one in blocks]).combine_chunks().to_batches()
    prefixes = [one.prefix for one in blocks if one.prefix is not None]
    return Block(
        table,
        np.concatenate([one.vectors for one in blocks]),
        np.concatenate([one.codes for one in blocks]),
        np.concatenate(prefixes) if len(prefixes) == len(blocks) else None,
        np.concatenate([hashes_of(one) for one in blocks], axis=1),
    )


def hashes_of(block: Block) -> Codes:
    """Of its ids and of its document ids, uint64 `[2, n]`."""
    if block.hashes is not None:
        return block.hashes
    return np.stack([hash_texts(block.table.column(key).to_pylist()) for key in (ID, DOCUMENT)])


def _write_arrays(files: Mapping[str, SummedFile], block: Block, narrow: int) -> None:
    files["vectors.f16"].write(np.ascontiguousarray(block.vectors).data)
    files[CODES].write(np.ascontiguousarray(block.codes).data)
    if PREFIX in files:
        prefix = block.prefix
        if prefix is None:
            prefix = cut_vectors(floats(block.vectors[:, :narrow]), narrow).astype("<f2")
        files[PREFIX].write(np.ascontiguousarray(prefix).data)


def _lookup(hashes: Codes) -> Iterator[npt.NDArray[Any]]:
    orders = [np.argsort(one, kind="stable") for one in hashes]
    for one, order in zip(hashes, orders, strict=True):
        yield one[order].astype("<u8")
    for order in orders:
        yield order.astype("<u4")


def hash_texts(texts: Sequence[str]) -> Codes:
    """64 bits of each text, the same everywhere and always."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")
