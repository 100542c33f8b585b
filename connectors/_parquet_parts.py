"""The Parquet store on disk: parts with rows, and one file without rows that names them.

    part-00000003.parquet   immutable rows; the columns of `nexus_vdb.tables`
    _common_metadata        no rows; the only commit point, replaced as a whole
    _lock                   held by the one writer

What is ours stands in the Parquet key-value metadata under "nexus_vdb", as JSON: in each part
`format` and `schema` (width, cuts, fingerprint and name of the model), in `_common_metadata` these,
`meta` (the small values of the store), `generation` and `parts`. Tools leave out files whose names
begin with an underscore, so the folder reads as one table wherever Parquet is read.

float32, byte streams split, zstd: vectors come back bit for bit, every tool knows the type, and
those of a store that keeps float16 take no more room than float16 would (1,358 bytes of 768
numbers against 1,427).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.folders import fsync_folder, write_durably
from nexus_vdb.ranking import Rows
from nexus_vdb.tables import grouped, table_schema
from nexus_vdb.types import StoreSchema

__all__ = [
    "GROUP",
    "MANIFEST",
    "Manifest",
    "Part",
    "part_name",
    "read_facts",
    "read_manifest",
    "schema_from",
    "sweep",
    "write_manifest",
    "write_part",
]

FORMAT = 1
MANIFEST = "_common_metadata"
GROUP = 8192
"""Rows of a row group: 24 MiB of vectors at 768 dimensions are in memory at a time."""

_KEY = b"nexus_vdb"
_KEYS = ["id", "document_id", "ordinal", "content_hash"]
_REBUILD = "copy into a new folder again, or restore this one from a copy"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One consistent state of the store.

    Attributes:
        schema: What was fixed when the store was made.
        generation: Number of the commit that wrote it.
        parts: Rows by file name, in the order they were written.
        meta: The small values.
    """

    schema: StoreSchema
    generation: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


def part_name(generation: int, number: int) -> str:
    """File name of the part that a commit writes as its `number`-th."""
    return f"part-{generation:08d}-{number}.parquet"


def read_manifest(folder: Path) -> Manifest | None:
    """The last committed state; None where there never was one.

    Raises:
        StoreCorrupt: it is damaged.
        StoreError: it was written by a version with another format.
    """
    path = folder / MANIFEST
    try:
        facts = read_facts(pq.read_schema(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreCorrupt(f"{path} is damaged: {error}", hint=_REBUILD) from error
    try:
        schema = schema_from(facts["schema"])
        return Manifest(schema, facts["generation"], facts["parts"], facts["meta"])
    except (KeyError, TypeError) as error:
        raise StoreCorrupt(f"{path} is damaged: {error!r}", hint=_REBUILD) from error


def read_facts(columns: Any, path: Path) -> dict[str, Any]:
    """What a Parquet schema keeps for this store; {} if it is not ours.

    Raises:
        StoreError: it was written by a version with another format.
    """
    text = (columns.metadata or {}).get(_KEY)
    facts: dict[str, Any] = json.loads(text) if text else {}
    if facts.get("format", FORMAT) != FORMAT:
        raise StoreError(
            f"{path} has format {facts['format']}, this version reads format {FORMAT}",
            hint="use the version of nexus-vdb that wrote it, or copy into a new folder",
        )
    return facts


def schema_from(value: dict[str, Any]) -> StoreSchema:
    """The inverse of `dataclasses.asdict`, after JSON."""
    return StoreSchema(**value | {"cuts": tuple(value["cuts"])})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit: all parts that it names must be on disk already."""
    facts = {
        "generation": manifest.generation,
        "parts": dict(manifest.parts),
        "meta": dict(manifest.meta),
    }
    file = io.BytesIO()
    pq.write_metadata(_columns(manifest.schema, facts), file)
    write_durably(folder / MANIFEST, file.getvalue())


def write_part(path: Path, tables: Iterable[Any], schema: StoreSchema) -> int:
    """Write a part as a stream of batches; on disk when it returns.

    Returns:
        The number of rows written; 0 leaves no file behind.
    """
    temporary, rows = path.with_name(f"_{path.name}.tmp"), 0
    with temporary.open("wb") as file:
        with pq.ParquetWriter(
            file,
            _columns(schema, {}),
            compression="zstd",
            compression_level=1,
            use_dictionary=["document_id"],
            use_byte_stream_split=["vector.list.element"],
            write_statistics=["id", "document_id", "ordinal"],
        ) as writer:
            for group in grouped(tables, GROUP):
                table = pa.Table.from_batches(group)
                writer.write_table(table, row_group_size=GROUP)
                rows += len(table)
        file.flush()
        os.fsync(file.fileno())
    if rows:
        temporary.replace(path)
    else:
        temporary.unlink()
    fsync_folder(path.parent)
    return rows


def _columns(schema: StoreSchema, facts: dict[str, Any]) -> Any:
    value = {"format": FORMAT, "schema": asdict(schema), **facts}
    return table_schema(schema.dim).with_metadata({_KEY: json.dumps(value)})


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove leftovers of writes that were cut off; what another process has open may stay."""
    parts = (path for path in folder.glob("part-*.parquet") if path.name not in manifest.parts)
    for path in (*parts, *folder.glob("_*.tmp")):
        with contextlib.suppress(OSError):
            path.unlink()


class Part:
    """One open Parquet file; it can be read to the end even if a writer removes it.

    Args:
        path: The file.
        dim: Width of its vectors.
        rows: How many it must have, if that is known.

    Raises:
        StoreCorrupt: it is missing, damaged, or has other rows or columns.
    """

    def __init__(self, path: Path, *, dim: int, rows: int | None = None) -> None:
        self.name = path.name
        self._schema = table_schema(dim)
        try:
            self._map = pa.memory_map(str(path))
            self._file = pq.ParquetFile(self._map)
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{path} is missing", hint=_REBUILD) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreCorrupt(f"{path} is damaged: {error}", hint=_REBUILD) from error
        metadata = self._file.metadata
        self.rows: int = metadata.num_rows
        if rows not in (None, self.rows):
            raise StoreCorrupt(f"{path} has {self.rows} rows instead of {rows}", hint=_REBUILD)
        missing = set(self._schema.names) - set(self._file.schema_arrow.names)
        if missing:
            raise StoreCorrupt(f"{path} has no column {sorted(missing)[0]!r}", hint=_REBUILD)
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self.bytes: int = self._map.size()

    @cached_property
    def keys(self) -> Any:
        """The columns by which rows are found, in memory: about 100 bytes a row."""
        return self._fitting(pa.Table.from_batches(self.batches(1 << 16, _KEYS)).combine_chunks())

    def batches(self, batch_size: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """All rows, in batches of some columns; all of them by default."""
        names = list(columns or self._schema.names)
        file = pq.ParquetFile(self._map, metadata=self._file.metadata)  # not shared by threads
        for batch in file.iter_batches(batch_size, columns=names):
            yield self._fitting(batch.select(names))

    def take(self, rows: Rows, columns: Sequence[str] | None = None) -> Any:
        """Some rows, which must rise, as one batch."""
        names = list(columns or self._schema.names)
        file = pq.ParquetFile(self._map, metadata=self._file.metadata)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        found = []
        for group in np.unique(groups).tolist():
            table = file.read_row_group(group, columns=names).select(names)
            found.append(table.take(rows[groups == group] - self._starts[group]))
        (batch,) = pa.concat_tables(found).combine_chunks().to_batches()
        return self._fitting(batch)

    def _fitting(self, table: Any) -> Any:
        """The same with our types, if other tools wrote the file."""
        wanted = pa.schema([self._schema.field(name) for name in table.schema.names])
        if table.schema.equals(wanted):
            return table
        try:
            return table.cast(wanted)
        except (pa.ArrowException, ValueError) as error:
            raise StoreError(
                f"{self.name} is not a table of records: {error}",
                hint="the columns are those of nexus_vdb.tables",
            ) from error
