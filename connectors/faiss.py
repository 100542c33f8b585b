"""`faiss://PATH`: a store in a folder, scanned by FAISS; no server, and any kill is survived.

Rows lie in immutable segments; a write adds one and marks the rows that it replaces as dead, then
commits by replacing the manifest. Segments of like size are merged, eight at a time, so that there
are never many. On disk: `_faiss_files` and `_faiss_segment`; reading and searching: `_faiss_state`.

A store sees the state at its opening and its own writes. It becomes the one writer of its folder at
its first write, until it is closed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nexus_vdb.checks import (
    check_meta,
    check_plan,
    check_records,
    check_schema,
    check_selection,
    check_vectors,
)
from nexus_vdb.connectors._faiss_files import (
    Manifest,
    SegmentEntry,
    sweep,
    write_manifest,
)
from nexus_vdb.connectors._faiss_segment import (
    Block,
    Segment,
    block_of,
    block_of_table,
    sought,
    table_of_block,
    write_segment,
)
from nexus_vdb.connectors._faiss_state import State, View, load_state
from nexus_vdb.errors import ConfigError, StoreError, StoreNotFound
from nexus_vdb.filters import Filter
from nexus_vdb.folders import FolderLock, write_durably
from nexus_vdb.ranking import Rows, in_order, rerank
from nexus_vdb.tables import vectors_of
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan, StoreInfo, StoreSchema

__all__ = ["FaissStore"]

_FAN = 8
"""Segments of like size that are merged into one: a row is rewritten log8(n / 512) times."""

_SMALLEST = 512
"""Segments below this count as of like size."""


_LOCKED = "wait until that writer has finished, or close that store; reading needs no lock"


class FaissStore:
    """A folder of memory-mapped segments; made by `open`."""

    def __init__(self, url: str, folder: Path, state: State) -> None:
        self._url = url
        self._folder = folder
        self._held: State | None = state
        self._lock: FolderLock | None = None

    @classmethod
    def open(cls, url: str, schema: StoreSchema | None = None) -> FaissStore:
        """Open the store of a folder, or make one if a schema is given.

        Args:
            url: `faiss://./index`, `faiss://index` and `faiss://~/index` or `faiss:///abs/index`.
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
            raise ConfigError(f"{url!r} names no folder", hint="write it as faiss://./index")
        folder = Path(name).expanduser()
        state = load_state(folder)
        if schema is not None:
            check_schema(url, stored=state.manifest.schema if state else None, asked=schema)
        if state is not None:
            return cls(url, folder, state)
        if schema is None:
            raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
        return cls._make(url, folder, schema)

    @classmethod
    def _make(cls, url: str, folder: Path, schema: StoreSchema) -> FaissStore:
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder} is a file", hint="choose a new folder for the store")
        if folder.exists() and {path.name for path in folder.iterdir()} - _OURS:
            raise StoreError(
                f"{folder} has files in it, but is no store", hint="choose an empty or new folder"
            )
        store = cls(url, folder, State(Manifest(schema, generation=0), [], {}))
        with _as_store_error(folder):
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
        return self._held

    # Reading

    def search(
        self, queries: QueryBatch, plan: SearchPlan, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The k best by cosine: of all for "exact", else of the best candidates of the hash."""
        state, cuts = self._state, plan.cuts
        check_plan(queries, plan, state.manifest.schema.dim)
        if plan.candidates == "exact":
            cuts = cuts[-1:]
            found = state.nearest(queries.vectors, plan.k, cuts[0], where)
        else:
            count = max(int(plan.candidates), plan.k)
            found = state.candidates(queries.hash_logits, count, where)
        pairs = zip(found, queries.vectors, strict=True)
        return [_hits(state, rows, vector, plan.k, cuts) for rows, vector in pairs]

    def get(self, ids: Sequence[str]) -> Records:
        """The records of these ids, in this order; unknown ids are left out."""
        state = self._state
        row_of = state.rows_of_ids(ids)
        rows = [row_of[id_] for id_ in ids if id_ in row_of]
        return state.records(np.array(rows, dtype=np.int64))

    def fingerprints(self, document_ids: Sequence[str]) -> dict[str, dict[int, str]]:
        """Content hash by chunk ordinal, for each of the documents that is there at all."""
        found: dict[str, dict[int, str]] = {}
        wanted = sought(document_ids)
        for view in self._state.views:
            pairs = view.living(view.segment.rows_of_documents(wanted))
            rows = np.array([row for _, row in pairs], dtype=np.int64)
            ordinals = view.segment.column("ordinal", rows)
            hashes = view.segment.column("content_hash", rows)
            for (document_id, _), ordinal, digest in zip(pairs, ordinals, hashes, strict=True):
                found.setdefault(document_id, {})[ordinal] = digest
        return found

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
        details = {
            "segments": len(state.views),
            "dead_rows": sum(len(view.dead) for view in state.views),
            "bytes": sum(view.segment.bytes for view in state.views),
            "generation": state.manifest.generation,
        }
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

    # Writing

    def upsert(self, records: Records) -> None:
        """Write records, replacing those of the same id; on disk when it returns.

        Raises:
            DimensionMismatch: the vectors are of another width than the store's.
            StoreLocked: another writer holds the folder.
            StoreError: the disk refused, or a value cannot be written.
        """
        check_records(records, self._state.manifest.schema.dim)
        if not len(records):
            return
        last = {id_: row for row, id_ in enumerate(records.ids)}
        self._add(list(last), block_of(records, list(last.values())))

    def upsert_table(self, table: Any) -> None:
        """As `upsert`, of a `pyarrow.RecordBatch`."""
        check_vectors(vectors_of(table), self._state.manifest.schema.dim)
        last = {id_: row for row, id_ in enumerate(table.column("id").to_pylist())}
        if len(last) < len(table):
            table = table.take(list(last.values()))
        if last:
            self._add(list(last), block_of_table(table))

    def _add(self, ids: list[str], block: Block) -> None:
        with self._writing() as state:
            new = self._write_segment(state, [block])
            wanted = sought(ids)
            replaced = [view.living(view.segment.rows_of_ids(wanted)) for view in state.views]
            dead = [np.array([row for _, row in pairs], np.int64) for pairs in replaced]
            self._commit(state, [*self._bury(state, dead), new])
            self._tidy()

    def delete(self, *, ids: Sequence[str] | None = None, where: Filter | None = None) -> int:
        """Delete by id or by filter (exactly one of them); returns how many records went."""
        check_selection(ids, where)
        with self._writing() as state:
            if ids is None:
                dead = state.matching(where)
            else:
                wanted = sought(ids)
                found = [view.living(view.segment.rows_of_ids(wanted)) for view in state.views]
                dead = [np.unique([row for _, row in pairs]).astype(np.int64) for pairs in found]
            gone = sum(len(rows) for rows in dead)
            if gone:
                self._commit(state, self._bury(state, dead))
                self._tidy()
        return gone

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value with the store, durably."""
        value = check_meta(key, value)
        with self._writing() as state:
            meta = {**state.meta, key: value}
            name = f"meta-{state.manifest.generation + 1:08d}.json"
            write_durably(self._folder / name, json.dumps(meta).encode())
            self._commit(state, state.views, meta=(name, meta))

    def optimize(self) -> None:
        """Merge all segments into one and reclaim the space of deleted rows."""
        with self._writing() as state:
            if len(state.views) > 1 or any(view.live is not None for view in state.views):
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
        with _as_store_error(self._folder):
            if self._lock is None:
                self._lock = FolderLock(self._folder, hint=_LOCKED)
                self._held = state = load_state(self._folder) or state
                sweep(self._folder, state.manifest)
            try:
                yield state
            except BaseException:
                self._lock.release()
                self._lock = None
                raise

    def _write_segment(self, state: State, blocks: Iterator[Block] | list[Block]) -> View:
        schema = state.manifest.schema
        folder = self._folder / "segments" / f"{state.manifest.generation + 1:08d}"
        return View(Segment(folder, write_segment(folder, blocks, schema), schema))

    def _bury(self, state: State, dead: list[Rows]) -> list[View]:
        views = []
        for view, rows in zip(state.views, dead, strict=True):
            if not len(rows):
                views.append(view)
            elif len(rows) < view.count:
                name = f"dead-{state.manifest.generation + 1:08d}.u32"
                less = view.without(rows, name)
                path = self._folder / "segments" / view.segment.name / name
                write_durably(path, less.dead.astype("<u4").tobytes())
                views.append(less)
        return views

    def _commit(
        self, state: State, views: Sequence[View], *, meta: tuple[str, Any] | None = None
    ) -> None:
        manifest = replace(
            state.manifest,
            generation=state.manifest.generation + 1,
            segments=tuple(
                SegmentEntry(view.segment.name, view.segment.rows, view.dead_file) for view in views
            ),
            meta=meta[0] if meta else state.manifest.meta,
        )
        write_manifest(self._folder, manifest)
        self._held = State(manifest, views, meta[1] if meta else state.meta)
        sweep(self._folder, manifest)

    def _tidy(self) -> None:
        while group := _worth_merging(self._state.views):
            self._merge(group)

    def _merge(self, group: list[View]) -> None:
        state = self._state
        others = [view for view in state.views if view not in group]
        blocks = (block for view in group for block in view.segment.blocks(view.live))
        self._commit(state, [*others, self._write_segment(state, blocks)])


_OURS = {"segments", "lock", "manifest.json.tmp"}


def _hits(state: State, rows: Rows, vector: Floats, k: int, cuts: tuple[int, ...]) -> list[Hit]:
    rows, scores = rerank(rows, vector, k=k, cuts=cuts, fetch=state.units)
    ids = state.column("id", rows)
    order = in_order(scores, ids, k)
    best = rows[order]
    columns = (state.column(name, best) for name in ("document_id", "text", "metadata"))
    return [
        Hit(ids[place], document_id, float(scores[place]), text, json.loads(metadata))
        for place, document_id, text, metadata in zip(order, *columns, strict=True)
    ]


def _worth_merging(views: Sequence[View]) -> list[View]:
    tiers: dict[int, list[View]] = {}
    for view in views:
        tier, size = 0, view.count
        while size >= _SMALLEST:
            tier, size = tier + 1, size // _FAN
        tiers.setdefault(tier, []).append(view)
    for _, group in sorted(tiers.items()):
        if len(group) >= _FAN:
            return group
    # A quarter of the rows being dead is worth a rewrite of the others.
    return next(([view] for view in views if view.count < 0.75 * view.segment.rows), [])


@contextmanager
def _as_store_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or folder}: {error.strerror or error}",
            hint="see that the disk has room and that the folder may be written",
        ) from error
