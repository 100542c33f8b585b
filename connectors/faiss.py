"""`faiss://PATH`: a store in a folder, scanned by FAISS; no server, and any kill is survived.

Rows lie in immutable segments; a write adds one and marks the rows that it replaces as dead, then
commits by replacing the manifest. Segments of like size are merged, 16 at a time, so that there
are never many. On disk: `_faiss_files` and `_faiss_segment`; reading and searching: `_faiss_state`.

Each call sees the last commit, of whatever process; a scan goes on with the one it began with. A
store becomes the one writer of its folder at its first write, until it is closed.

No byte is used that is not as it was written (`_faiss_check`); `faiss://PATH?rescue` reads what is
whole of a damaged store, and writes nothing.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nexus_vdb.checks import (
    check_meta,
    check_plan,
    check_records,
    check_schema,
    check_selection,
)
from nexus_vdb.connectors._faiss_check import sum_name
from nexus_vdb.connectors._faiss_depths import depths
from nexus_vdb.connectors._faiss_files import (
    Manifest,
    as_store_error,
    check_vacant,
    manifest_stamp,
    parse_url,
    sweep,
    write_manifest,
)
from nexus_vdb.connectors._faiss_rescue import Rescued, damages, rescue
from nexus_vdb.connectors._faiss_search import search
from nexus_vdb.connectors._faiss_segment import Segment, sought
from nexus_vdb.connectors._faiss_state import State, View, load_state, refreshed, worth_merging
from nexus_vdb.connectors._faiss_write import (
    Block,
    Codes,
    block_of,
    block_of_table,
    hashes_of,
    table_of_block,
    write_segment,
)
from nexus_vdb.errors import StoreCorrupt, StoreError, StoreNotFound
from nexus_vdb.filters import Filter
from nexus_vdb.folders import FolderLock, write_durably
from nexus_vdb.ranking import Rows
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan, StoreInfo, StoreSchema

__all__ = ["FaissStore"]

_LOCKED = "wait until that writer has finished, or close that store; reading needs no lock"


class FaissStore:
    """A folder of memory-mapped segments; made by `open`."""

    concurrent_reads: Literal[True] = True

    def __init__(self, url: str, folder: Path, state: State, stamp: object) -> None:
        self._url = url
        self._folder = folder
        self._held: State | None = state
        self._seen = stamp
        self._lock: FolderLock | None = None
        self._turns = threading.Lock()  # at becoming the writer, and at reading the manifest
        self._rescued: Rescued | None = None

    @classmethod
    def open(cls, url: str, schema: StoreSchema | None = None) -> FaissStore:
        """Open the store of a folder, or make one if a schema is given.

        Args:
            url: `faiss://./index`, `faiss://index` and `faiss://~/index` or `faiss:///abs/index`;
                with `?rescue` after it, what is whole of a damaged store.
            schema: Makes the store if it is missing; must fit it otherwise.

        Raises:
            ConfigError: the URL names no folder.
            StoreNotFound: there is none, and no schema was given.
            DimensionMismatch: it holds vectors of another width.
            FingerprintMismatch: it was filled by another model.
            StoreCorrupt: a file is missing or damaged.
            StoreError: the folder holds something else, or a store of another format.
        """
        folder, rescued = parse_url(url)
        if rescued:
            return cls._rescue(url, folder, schema)
        stamp = manifest_stamp(folder)
        state = load_state(folder)
        if schema is not None:
            check_schema(url, stored=state.manifest.schema if state else None, asked=schema)
        if state is not None:
            return cls(url, folder, state, stamp)
        if schema is None:
            raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
        return cls._make(url, folder, schema)

    @classmethod
    def check(
        cls, url: str, progress: Callable[[int, int], None] | None = None
    ) -> list[StoreCorrupt]:
        """Read every file: an error for each that is not as it was written."""
        folder, _ = parse_url(url)
        found = damages(folder, progress)
        if found is None:
            raise StoreNotFound(f"nothing is stored at {url}")
        return found

    @classmethod
    def _rescue(cls, url: str, folder: Path, schema: StoreSchema | None) -> FaissStore:
        found = rescue(folder)
        if found is None:
            raise StoreNotFound(f"nothing is stored at {url}")
        if schema is not None:
            check_schema(url, stored=found.state.manifest.schema, asked=schema)
        store = cls(url, folder, found.state, None)
        store._rescued = found
        return store

    @classmethod
    def _make(cls, url: str, folder: Path, schema: StoreSchema) -> FaissStore:
        check_vacant(folder)
        store = cls(url, folder, State(Manifest(schema, generation=0), [], {}), None)
        with as_store_error(folder):
            (folder / "segments").mkdir(parents=True, exist_ok=True)
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
        with self._turns:
            if self._lock is None and self._rescued is None:
                self._held, self._seen = refreshed(self._folder, self._held, self._seen)
        return self._held

    # Reading

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The k best by cosine: of all for "exact", else of the best candidates of the hash."""
        check_plan(queries, plan, self._state.manifest.schema.dim)
        # Whoever writes is filling the store, and has to stay small.
        return search(self._state, queries, plan, where, small=self._lock is not None)

    def get(self, ids: Sequence[str]) -> Records:
        """The records of these ids, in this order; unknown ids are left out."""
        state = self._state
        row_of = state.rows_of_ids(ids)
        rows = [row_of[id_] for id_ in ids if id_ in row_of]
        return state.records(np.array(rows, dtype=np.int64))

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""
        return self._state.fingerprints(document_ids)

    def scan(self, batch_size: int = 1024) -> Iterator[Records]:
        """Every record once, as they were when the scan began."""
        for view in self._state.views:
            rows = view.rows(None)
            for start in range(0, len(rows), batch_size):
                yield view.segment.records(rows[start : start + batch_size])

    def document_ids(self, batch_size: int = 4096) -> Iterator[list[str]]:
        """The document of every record, as they were when the listing began."""
        for view in self._state.views:
            for ids in view.segment.document_ids(view.live):
                for start in range(0, len(ids), batch_size):
                    yield ids[start : start + batch_size]

    def scan_tables(self, batch_size: int = 1024) -> Iterator[Any]:
        """As `scan`, each batch a `pyarrow.RecordBatch`."""
        for view in self._state.views:
            for block in view.segment.blocks(view.live):
                for start in range(0, len(block.codes), batch_size):
                    yield table_of_block(block, slice(start, start + batch_size))

    def count(self, where: Filter | None = None) -> int:
        """How many records there are, or match."""
        state = self._state
        return state.count if where is None else sum(len(rows) for rows in state.matching(where))

    def info(self) -> StoreInfo:
        """What is stored; `details` has segments, rows not yet reclaimed, bytes, generation."""
        state = self._state
        details: dict[str, Any] = {
            "segments": len(state.views),
            "dead_rows": sum(len(view.dead) for view in state.views),
            "bytes": sum(view.segment.bytes for view in state.views),
            "generation": state.manifest.generation,
        }
        if self._rescued is not None:
            details |= {"lost": self._rescued.lost, "damage": self._rescued.damage}
        return StoreInfo(
            url=self._url,
            schema=state.manifest.schema,
            count=state.count,
            meta=copy.deepcopy(state.meta),
            details=details,
        )

    @property
    def folder(self) -> Path:
        """Where the store lies."""
        return self._folder

    def state(self) -> str:
        """The segments and what is deleted of them."""
        segments = self._state.manifest.segments
        return " ".join(f"{entry.name}-{entry.rows}-{entry.dead}" for entry in segments)

    def depths(
        self, queries: QueryBatch, ids: Sequence[Sequence[str]], probes: Sequence[float]
    ) -> list[Rows]:
        """For each query how many candidates it takes to have these records among them."""
        return depths(self._state, queries, ids, probes)

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
            self._add([block_of(records)])

    def upsert_tables(self, tables: Iterable[Any]) -> None:
        """As `upsert`, of `pyarrow.RecordBatch`es: one is held at a time, all are one commit."""
        dim = self._state.manifest.schema.dim
        blocks = (block_of_table(table, dim) for table in tables if len(table))
        if (first := next(blocks, None)) is not None:
            self._add(chain([first], blocks))

    def _add(self, blocks: Iterable[Block]) -> None:
        with self._writing() as state:
            replaced = [np.zeros(0, np.int64) for _ in state.views]

            def noted() -> Iterator[Block]:
                for block in blocks:
                    if state.views:
                        wanted = sought(block.table.column("id").to_pylist(), hashes_of(block)[0])
                        replaced[:] = map(np.union1d, replaced, state.rows_with_ids(wanted))
                    yield block

            new = self._write_segment(noted())
            dead = [*replaced, new.segment.outdated()]
            self._commit(state, self._bury([*state.views, new], dead))
            self._tidy()

    def delete(self, *, ids: Sequence[str] | None = None, where: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many records went."""
        check_selection(ids, where)
        with self._writing() as state:
            if ids is None:
                dead = state.matching(where)
            else:
                dead = [np.unique(rows) for rows in state.rows_with_ids(sought(ids))]
            gone = sum(len(rows) for rows in dead)
            if gone:
                self._commit(state, self._bury(state.views, dead))
                self._tidy()
        return gone

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value with the store, durably."""
        value = check_meta(key, value)
        with self._writing() as state:
            meta = {**state.meta, key: value}
            content = json.dumps(meta).encode()
            name = sum_name(f"meta-{state.manifest.generation + 1:08d}", content, ".json")
            write_durably(self._folder / name, content)
            self._commit(state, state.views, meta=(name, meta))

    def sample(self, count: int, *, seed: int = 0) -> Records:
        """`count` different records drawn evenly from the whole store; all, if it has fewer."""
        return self._state.sample(count, seed)

    def recode(self, codes_of: Callable[[Floats], Codes]) -> None:
        """Replace every code by that of its vector, all in one commit.

        Args:
            codes_of: Codes uint64 `[n]` of vectors float32 `[n, d]`.
        """
        with self._writing() as state:
            views = []
            for view in state.views:
                codes = view.segment.codes_by(codes_of)
                views.append(view.recoded(self._write_beside(view, "codes", codes, ".u64")))
            self._commit(state, views)

    def optimize(self) -> None:
        """Merge all segments into one and reclaim the space of deleted rows."""
        with self._writing() as state:
            if len(state.views) > 1 or any(view.is_untidy for view in state.views):
                self._merge(list(state.views))

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
        if self._rescued is not None:
            raise StoreError(f"{self._url} is read only", hint="copy it into a new store")
        with as_store_error(self._folder):
            with self._turns:
                if self._lock is None:
                    self._lock = FolderLock(self._folder, hint=_LOCKED)
                    state, self._seen = refreshed(self._folder, state, None)
                    self._held = state
                    sweep(self._folder, state.manifest)
            try:
                yield state
            except BaseException:
                self._lock.release()
                self._lock = None
                raise

    def _write_segment(self, blocks: Iterable[Block], *, passing: bool = False) -> View:
        manifest = self._state.manifest
        folder = self._folder / "segments" / f"{manifest.generation + 1:08d}"
        entry = write_segment(folder, blocks, manifest.schema, passing=passing)
        return View(Segment(folder, entry, manifest.schema))

    def _write_beside(self, view: View, what: str, array: npt.NDArray[Any], suffix: str) -> str:
        content = array.tobytes()
        name = sum_name(f"{what}-{self._state.manifest.generation + 1:08d}", content, suffix)
        write_durably(self._folder / "segments" / view.entry.name / name, content)
        return name

    def _bury(self, before: Sequence[View], dead: Sequence[Rows]) -> list[View]:
        views = []
        for view, rows in zip(before, dead, strict=True):
            if not len(rows):
                views.append(view)
            elif len(rows) < view.count:
                dead_now = np.union1d(view.dead, rows)
                name = self._write_beside(view, "dead", dead_now.astype("<u4"), ".u32")
                views.append(view.with_dead(dead_now, name))
        return views

    def _commit(
        self, state: State, views: Sequence[View], *, meta: tuple[str, Any] | None = None
    ) -> None:
        manifest = replace(
            state.manifest,
            generation=state.manifest.generation + 1,
            segments=tuple(view.entry for view in views),
            meta=meta[0] if meta else state.manifest.meta,
        )
        write_manifest(self._folder, manifest)
        self._held = State(manifest, views, meta[1] if meta else state.meta)
        sweep(self._folder, manifest)

    def _tidy(self) -> None:
        while group := worth_merging(self._state.views):
            self._merge(group, passing=True)

    def _merge(self, group: list[View], *, passing: bool = False) -> None:
        others = [view for view in self._state.views if view not in group]
        blocks = (one for view in group for one in view.segment.blocks(view.live, merging=True))
        self._commit(self._state, [*others, self._write_segment(blocks, passing=passing)])
