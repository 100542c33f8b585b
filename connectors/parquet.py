"""Apache Parquet, streamed row group by row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from nexus_vdb.corpus import Block, FieldMap, Row, RowFile, RowSource
from nexus_vdb.errors import SourceError
from nexus_vdb.filesystems import display_name

__all__ = ["ParquetSource"]

_ROWS = 256  # rows decoded at a time: few enough that long texts fit in memory
_BUFFER = 1 << 20

# What Arrow raises for damage: ArrowInvalid and UnicodeDecodeError are ValueErrors, and a Thrift
# header that makes no sense is an OSError.
_DAMAGE = (OSError, ValueError, pa.ArrowException, OverflowError)


class ParquetSource(RowSource):
    """Parquet files; every column but id, text and vectors becomes metadata.

    Args:
        paths: Files, read in this order.
        fields: Which column means what.
        filesystem: A `pyarrow.fs.FileSystem`; the local one by default.
    """

    def __init__(
        self, paths: Sequence[str], fields: FieldMap | None = None, filesystem: Any = None
    ) -> None:
        self.fields = fields or FieldMap()
        self._paths = [str(path) for path in paths]
        self._filesystem = filesystem or LocalFileSystem()

    def size(self) -> int | None:
        """Rows, of the files' footers.

        Raises:
            SourceError: a file is missing or damaged.
        """
        return sum(self._count(path) for path in self._paths)

    def rows(self) -> Iterator[Row]:
        """One row for each row."""
        for path in self._paths:
            for some in self._file(path):
                yield from some.rows() if isinstance(some, Block) else (some,)

    def files(self) -> Iterator[RowFile]:
        """The files apart."""
        for path in self._paths:
            yield RowFile(display_name(self._filesystem, path), partial(self._file, path))

    def _count(self, path: str) -> int:
        try:
            with self._filesystem.open_input_file(path) as file:
                return int(pq.ParquetFile(file).metadata.num_rows) if file.size() else 0
        except _DAMAGE as error:
            raise _unreadable(display_name(self._filesystem, path), 0, error) from error

    def _file(self, path: str) -> Iterator[Row | Block]:
        name = display_name(self._filesystem, path)
        number = 0
        try:
            with self._filesystem.open_input_file(path) as file:
                for batch in _batches(file):
                    yield from _rows(name, number + 1, batch, self.fields.vector)
                    number += len(batch)
        except _DAMAGE as error:
            raise _unreadable(name, number, error) from error


def _unreadable(name: str, number: int, error: Exception) -> SourceError:
    reason = str(error).partition("\n")[0]
    return SourceError(f"{name} cannot be read{f' after row {number}' if number else ''}: {reason}")


def _batches(file: Any) -> Iterator[pa.RecordBatch]:
    if not file.size():
        return
    # Without pre-buffering and with a buffer, columns are decoded page by page: memory stays
    # bounded even where the whole file is one row group.
    parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    for group in range(parquet.num_row_groups):
        yield from parquet.iter_batches(_ROWS, row_groups=[group], use_threads=False)


def _rows(
    name: str, number: int, batch: pa.RecordBatch, vector: str | None
) -> Iterator[Row | Block]:
    """The rows of a batch that begins with this number, in one block if Python can hold them."""
    batch = _microseconds(batch)
    try:
        columns = {
            field.name: _arrays(column) if field.name == vector else _pylist(column)
            for field, column in zip(batch.schema, batch.columns, strict=True)
        }
    except (ValueError, OverflowError, pa.ArrowException):
        yield from _one_by_one(name, number, batch, vector)
        return
    if columns:
        yield Block(name, number, columns)
    else:
        yield from (Row(name, number + row, -1, {}) for row in range(len(batch)))


def _pylist(column: Any) -> list[Any]:
    """Python values; through numpy where that gives the same and is several times as fast."""
    plain = pa.types.is_string(column.type) or (
        pa.types.is_integer(column.type) and not column.null_count
    )
    if plain:
        return list(column.to_numpy(zero_copy_only=False).tolist())
    return list(column.to_pylist(maps_as_pydicts="lossy"))


def _one_by_one(name: str, first: int, batch: pa.RecordBatch, vector: str | None) -> Iterator[Row]:
    """Find the rows with a value that Python cannot hold."""
    vectors = _arrays(batch.column(vector)) if vector in batch.schema.names else None
    others = batch if vectors is None else batch.drop_columns([vector])
    for index in range(batch.num_rows):
        number = first + index
        try:
            value = others.slice(index, 1).to_pylist(maps_as_pydicts="lossy")[0]
        except UnicodeDecodeError as error:
            yield Row(name, number, -1, None, problem=f"broken UTF-8: {error.reason}")
        except (ValueError, OverflowError) as error:
            yield Row(name, number, -1, None, problem=str(error))
        else:
            if vector is not None and vectors is not None:
                value[vector] = vectors[index]
            yield Row(name, number, -1, value)


def _arrays(column: Any) -> Any:
    """Lists of numbers as an array `[n, d]`, or as one for each row where they differ in length."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        return column.to_pylist()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if not column.null_count and len(lengths) and (lengths == lengths[0]).all():
        flat = column.flatten()
        if not flat.null_count:
            return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return [
        scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None
        for scalar in column
    ]


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times in nanoseconds cut to microseconds: neither Python nor ISO 8601 readers take more."""
    for index, field in enumerate(batch.schema):
        kind = _coarse(field.type)
        if kind != field.type:
            column = batch.column(index).cast(kind, safe=False)
            batch = batch.set_column(index, field.with_type(kind), column)
    return batch


def _coarse(kind: Any) -> Any:
    """The type with microseconds in place of nanoseconds, at any depth."""
    types = pa.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if types.is_dictionary(kind):
        return _coarse(kind.value_type)
    if types.is_fixed_size_list(kind):
        return pa.list_(_coarse_field(kind.value_field), kind.list_size)
    if types.is_list(kind):
        return pa.list_(_coarse_field(kind.value_field))
    if types.is_large_list(kind):
        return pa.large_list(_coarse_field(kind.value_field))
    if types.is_map(kind):
        return pa.map_(_coarse(kind.key_type), _coarse_field(kind.item_field))
    if types.is_struct(kind):
        return pa.struct([_coarse_field(kind.field(i)) for i in range(kind.num_fields)])
    return kind


def _coarse_field(field: Any) -> Any:
    return field.with_type(_coarse(field.type))
