"""Records as Arrow batches: one form in memory and in Parquet files, which any tool can read.

    id, document_id     string
    ordinal             int32
    text, metadata      large_string; metadata as JSON
    content_hash        string
    vector              fixed_size_list<float32>[d]
    code                string: 16 hex digits

Between stores that both know this form, nothing becomes a Python object on its way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexus_vdb.errors import StoreError
from nexus_vdb.interfaces import Store, SupportsTables
from nexus_vdb.types import Floats, Records

__all__ = [
    "KINDS",
    "codes_of",
    "columns_of",
    "grouped",
    "hex_array",
    "joined",
    "records_of",
    "scan_tables",
    "table_of",
    "table_schema",
    "upsert_table",
    "vector_array",
    "vectors_of",
]

KINDS = {
    "id": pa.string(),
    "document_id": pa.string(),
    "ordinal": pa.int32(),
    "text": pa.large_string(),
    "metadata": pa.large_string(),
    "content_hash": pa.string(),
}
"""Columns but vectors and codes."""

_DIGITS = 16

_json = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` makes one for each call


@cache
def table_schema(dim: int) -> Any:
    """The columns of records of width `dim`, a `pyarrow.Schema`."""
    element = pa.field("element", pa.float32(), nullable=False)
    columns = KINDS | {"vector": pa.list_(element, dim), "code": pa.string()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def table_of(records: Records) -> Any:
    """Records as a `pyarrow.RecordBatch`.

    Raises:
        StoreError: a text is not valid Unicode, or metadata are not JSON values.
    """
    columns = [*columns_of(records), vector_array(records.vectors), hex_array(records.codes)]
    return pa.RecordBatch.from_arrays(columns, schema=table_schema(records.vectors.shape[1]))


def columns_of(records: Records) -> list[Any]:
    """Records as Arrow arrays of `KINDS`, without vectors and codes.

    Raises:
        StoreError: a text is not valid Unicode, or metadata are not JSON values.
    """
    try:
        ordinals = pa.py_buffer(np.ascontiguousarray(records.ordinals, dtype=np.int32))
        return [
            _strings(records.ids),
            _strings(records.document_ids),
            pa.Array.from_buffers(pa.int32(), len(records), [None, ordinals]),
            _strings(records.texts, KINDS["text"]),
            _strings([_json(one) if one else "{}" for one in records.metadata], KINDS["metadata"]),
            _strings(records.content_hashes),
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise StoreError(
            f"these records cannot be written: {error}",
            hint="texts must be valid Unicode, and metadata JSON values",
        ) from error


def _strings(texts: Sequence[str], kind: Any = KINDS["id"]) -> Any:
    """As `pyarrow.array`, which imports pandas where that is installed: up to half a second."""
    octets = [text.encode() for text in texts]
    offsets = np.zeros(len(octets) + 1, dtype=np.int64)
    np.cumsum([len(one) for one in octets], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(octets))]
    return pa.Array.from_buffers(pa.large_string(), len(octets), buffers).cast(kind)


def records_of(table: Any) -> Records:
    """The inverse of `table_of`."""
    return Records(
        ids=table.column("id").to_pylist(),
        document_ids=table.column("document_id").to_pylist(),
        ordinals=table.column("ordinal").to_numpy(zero_copy_only=False).astype(np.int32),
        texts=table.column("text").to_pylist(),
        metadata=[json.loads(one) for one in table.column("metadata").to_pylist()],
        content_hashes=table.column("content_hash").to_pylist(),
        vectors=vectors_of(table).copy(),
        codes=codes_of(table),
    )


def vector_array(vectors: npt.NDArray[np.floating[Any]]) -> Any:
    """Vectors `[n, d]` as an Arrow array of lists of float32."""
    flat = np.ascontiguousarray(vectors, dtype=np.float32).ravel()
    kind = table_schema(vectors.shape[1]).field("vector").type
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)


def vectors_of(table: Any) -> Floats:
    """The column `vector` as float32 `[n, d]`; a view, not to be written to."""
    column = table.column("vector")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(column), column.type.list_size)


def hex_array(codes: npt.NDArray[np.uint64]) -> Any:
    """Codes uint64 `[n]` as an Arrow array of 16 hex digits each."""
    digits = codes.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(len(codes) + 1, dtype=np.int32) * _DIGITS
    return pa.StringArray.from_buffers(len(codes), pa.py_buffer(offsets), pa.py_buffer(digits))


def codes_of(table: Any) -> npt.NDArray[np.uint64]:
    """The column `code` as uint64 `[n]`.

    Raises:
        StoreError: one is not 16 hex digits.
    """
    digits = "".join(table.column("code").to_pylist())
    try:
        codes = np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype(np.uint64)
    except ValueError as error:
        raise StoreError(f"a code is not {_DIGITS} hex digits: {error}") from error
    if len(codes) != len(table):
        raise StoreError(f"a code is not {_DIGITS} hex digits")
    return codes


def scan_tables(store: Store, batch_size: int) -> Iterator[Any]:
    """Every record of a store once, as Arrow batches of at most `batch_size` rows."""
    if isinstance(store, SupportsTables):
        return store.scan_tables(batch_size)
    return map(table_of, store.scan(batch_size))


def grouped(tables: Iterable[Any], rows: int) -> Iterator[list[Any]]:
    """Arrow batches in lists that have so many rows together, but for the last."""
    held: list[Any] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= rows:
            yield held
            held = []
    if held:
        yield held


def joined(tables: Sequence[Any]) -> Any:
    """Several Arrow batches as one."""
    return tables[0] if len(tables) == 1 else pa.concat_batches(tables)


def upsert_table(store: Store, table: Any) -> None:
    """Write an Arrow batch to any store."""
    if isinstance(store, SupportsTables):
        store.upsert_tables([table])
    else:
        store.upsert(records_of(table))
