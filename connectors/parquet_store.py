"""`parquet://PATH`: a store in an open format, to leave with, to keep, and to come back from.

A folder of Parquet files that pandas, polars, DuckDB or Spark read as they stand; see
`_parquet_parts` for what is in them. A write adds a part; parts with rows that are replaced or
deleted are written anew without them, so that the files never hold a row twice. That, and a search
that reads everything, make it a store for moving and keeping rather than for serving.

`parquet://PATH/part.parquet` opens a single file, to read only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nexus_vdb.checks import (
    check_meta,
    check_plan,
    check_records,
    check_schema,
    check_selection,
    check_vectors,
)
from nexus_vdb.connectors._parquet_parts import (
    GROUP,
    Manifest,
    Part,
    part_name,
    sweep,
    write_manifest,
    write_part,
)
from nexus_vdb.connectors._parquet_state import Mask, State, load_file, load_state, search
from nexus_vdb.errors import ConfigError, StoreError, StoreNotFound
from nexus_vdb.filters import Filter
from nexus_vdb.folders import FolderLock
from nexus_vdb.records import no_records, take_records
from nexus_vdb.tables import records_of, table_of, vectors_of
from nexus_vdb.types import Hit, QueryBatch, Records, SearchPlan, StoreInfo, StoreSchema

__all__ = ["ParquetStore"]

_SMALL = 2 * GROUP
"""Parts below this are worth merging."""

_FAN = 32
"""Small parts that are merged without being asked for."""

_LARGE = 131_072
"""Rows of a merged part at most: about 200 MB at 768 dimensions."""

_LOCKED = "wait until that writer has finished, or close that store; reading needs no lock"


class ParquetStore:
    """A folder of Parquet files; made by `open`."""

    def __init__(self, url: str, path: Path, state: State) -> None:
        self._url = url
        self._path = path
        self._held: State | None = state
        self._lock: FolderLock | None = None

    @classmethod
    def open(cls, url: str, schema: StoreSchema | None = None) -> ParquetStore:
        """Open the store of a folder, or make one if a schema is given; or read a single file.

        Args:
            url: `parquet://./export`, `parquet:///abs/export`, `parquet://~/export`, or a file.
            schema: Makes the store if it is missing; must fit it otherwise.

        Raises:
            ConfigError: the URL names no folder.
            StoreNotFound: there is none, and no schema was given.
            DimensionMismatch: it holds vectors of another width.
            FingerprintMismatch: it was filled by another model.
            StoreCorrupt: a file is missing or damaged.
            StoreError: the folder holds something else, or a store of another format.
        """
        name = url.partition("://")[2]
        if not name:
            raise ConfigError(f"{url!r} names no folder", hint="write it as parquet://./export")
        path = Path(name).expanduser()
        state = load_file(path) if path.is_file() else load_state(path)
        if schema is not None:
            check_schema(url, stored=state.manifest.schema if state else None, asked=schema)
        if state is not None:
            return cls(url, path, state)
        if schema is None:
            raise StoreNotFound(f"nothing is stored at {url}", hint="copy a store there first")
        return cls._make(url, path, schema)

    @classmethod
    def _make(cls, url: str, folder: Path, schema: StoreSchema) -> ParquetStore:
        if folder.exists() and any(not path.name.startswith("_") for path in folder.iterdir()):
            raise StoreError(
                f"{folder} has files in it, but is no store", hint="choose an empty or new folder"
            )
        store = cls(url, folder, State(Manifest(schema), []))
        with _as_store_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with store._writing() as state:
                # Somebody else may have been faster: `_writing` has read the store again.
                check_schema(url, stored=state.manifest.schema, asked=schema)
                if state.manifest.generation == 0:
                    store._commit(state, [])
        except BaseException:
            store.close()
            raise
        return store

    @property
    def _state(self) -> State:
        if self._held is None:
            raise StoreError(f"{self._url} is closed", hint="open it again")
        return self._held

    # Reading

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The k best by cosine at the last cut. Everything is compared, whatever the plan says."""
        state = self._state
        check_plan(queries, plan, state.manifest.schema.dim)
        return search(state, queries.vectors, k=plan.k, cut=plan.cuts[-1], where=where)

    def get(self, ids: Sequence[str]) -> Records:
        """The records of these ids, in this order; unknown ids are left out."""
        state = self._state
        masks = state.among("id", pa.array(ids, pa.string()))
        rows = np.flatnonzero(np.concatenate([np.zeros(0, bool), *masks]))
        if not len(rows):
            return no_records(state.manifest.schema.dim)
        records = records_of(state.take(rows))
        place = {id_: row for row, id_ in enumerate(records.ids)}
        return take_records(records, [place[id_] for id_ in ids if id_ in place])

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""
        state, found = self._state, dict[str, dict[int, str]]()
        masks = state.among("document_id", pa.array(document_ids, pa.string()))
        for part, mask in zip(state.parts, masks, strict=True):
            if mask.any():
                keys = part.keys.filter(mask)
                names = ("document_id", "ordinal", "content_hash")
                for key, ordinal, digest in zip(
                    *(keys.column(name).to_pylist() for name in names), strict=True
                ):
                    found.setdefault(key, {})[ordinal] = digest
        return found

    def scan(self, batch_size: int = 1024) -> Iterator[Records]:
        """Every record once, as they were when the scan began."""
        return map(records_of, self.scan_tables(batch_size))

    def scan_tables(self, batch_size: int = 1024) -> Iterator[Any]:
        """As `scan`, each batch a `pyarrow.RecordBatch`."""
        return self._state.batches(batch_size)

    def count(self, where: Filter | None = None) -> int:
        """How many records there are, or match."""
        state = self._state
        return state.count if where is None else sum(int(m.sum()) for m in state.matching(where))

    def info(self) -> StoreInfo:
        """What is stored; `details` has parts, bytes and generation."""
        state = self._state
        return StoreInfo(
            url=self._url,
            schema=state.manifest.schema,
            count=state.count,
            meta=copy.deepcopy(dict(state.manifest.meta)),
            details={
                "parts": len(state.parts),
                "bytes": sum(part.bytes for part in state.parts),
                "generation": state.manifest.generation,
            },
        )

    # Writing

    def upsert(self, records: Records) -> None:
        """Write records, replacing those of the same id; on disk when it returns.

        Raises:
            DimensionMismatch: the vectors are of another width than the store's.
            StoreLocked: another writer holds the folder.
            StoreError: the disk refused, or a value cannot be written.
        """
        check_records(records, self._state.manifest.schema.dim)
        if len(records):
            self._upsert(table_of(records))

    def upsert_tables(self, tables: Iterable[Any]) -> None:
        """As `upsert`, of `pyarrow.RecordBatch`es: each is a commit."""
        for table in tables:
            self._upsert(table)

    def _upsert(self, table: Any) -> None:
        check_vectors(vectors_of(table), self._state.manifest.schema.dim)
        ids = table.column("id")
        if not len(ids):
            return
        last = {id_: row for row, id_ in enumerate(ids.to_pylist())}
        if len(last) < len(ids):
            table = table.take(pa.array(list(last.values())))
        with self._writing() as state:
            gone = state.among("id", ids)
            self._commit(state, [*self._without(state, gone), self._write(state, [table])])
            self._tidy()

    def delete(self, *, ids: Sequence[str] | None = None, where: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many records went."""
        check_selection(ids, where)
        with self._writing() as state:
            if where is None:
                gone = state.among("id", pa.array(ids, pa.string()))
            else:
                gone = state.matching(where)
            total = sum(int(mask.sum()) for mask in gone)
            if total:
                self._commit(state, self._without(state, gone))
        return total

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value with the store, durably."""
        value = check_meta(key, value)
        with self._writing() as state:
            self._commit(state, state.parts, meta={**state.manifest.meta, key: value})

    def optimize(self) -> None:
        """Merge small parts, so that files are few and row groups full."""
        with self._writing() as state:
            self._merge(state, [part for part in state.parts if part.rows < _SMALL])

    def close(self) -> None:
        """Let go of files and lock; a second call does nothing."""
        self._held = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def _writing(self) -> Iterator[State]:
        # The state is read again when the lock is taken, and after a write that failed midway:
        # what is on disk is what the next commit builds on.
        state = self._state
        if self._path.is_file():
            raise StoreError(
                f"{self._path} is a single file, which is read only", hint="copy it into a folder"
            )
        with _as_store_error(self._path):
            if self._lock is None:
                self._lock = FolderLock(self._path, hint=_LOCKED, name="_lock")
                self._held = state = load_state(self._path) or state
                sweep(self._path, state.manifest)
            try:
                yield state
            except BaseException:
                self._lock.release()
                self._lock = None
                raise

    def _write(self, state: State, tables: Iterable[Any], number: int = 0) -> Part:
        schema = state.manifest.schema
        path = self._path / part_name(state.manifest.generation + 1, number)
        rows = write_part(path, tables, schema)
        return Part(path, dim=schema.dim, rows=rows)

    def _without(self, state: State, gone: Sequence[Mask]) -> list[Part]:
        """The parts, those with rows that go written anew."""
        parts = []
        for number, (part, mask) in enumerate(zip(state.parts, gone, strict=True), 1):
            if not mask.any():
                parts.append(part)
            elif not mask.all():
                parts.append(self._write(state, _kept(part, ~mask), number))
        return parts

    def _commit(
        self, state: State, parts: Sequence[Part], *, meta: dict[str, Any] | None = None
    ) -> None:
        manifest = replace(
            state.manifest,
            generation=state.manifest.generation + 1,
            parts={part.name: part.rows for part in parts},
            meta=state.manifest.meta if meta is None else meta,
        )
        write_manifest(self._path, manifest)
        self._held = State(manifest, parts)
        if set(state.manifest.parts) - set(manifest.parts):
            sweep(self._path, manifest)

    def _tidy(self) -> None:
        state = self._state
        small = [part for part in state.parts if part.rows < _SMALL]
        if len(small) >= _FAN:
            self._merge(state, small)

    def _merge(self, state: State, small: Sequence[Part]) -> None:
        if len(small) < 2:
            return
        ends = np.cumsum([part.rows for part in small]) // _LARGE
        merged = [
            self._write(
                state,
                (
                    table
                    for part, end in zip(small, ends, strict=True)
                    if end == number
                    for table in part.batches(GROUP)
                ),
                int(number),
            )
            for number in np.unique(ends)
        ]
        self._commit(state, [*(part for part in state.parts if part not in small), *merged])


def _kept(part: Part, mask: Mask) -> Iterator[Any]:
    start = 0
    for table in part.batches(GROUP):
        kept = mask[start : start + len(table)]
        start += len(table)
        if kept.any():
            yield table.filter(pa.array(kept))


@contextmanager
def _as_store_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or folder}: {error.strerror or error}",
            hint="see that the disk has room and that the folder may be written",
        ) from error
