"""`qdrant-edge://PATH`: the Qdrant engine in this process, on a folder; no server.

    manifest.json    schema and meta; written last when the store is made
    lock             held while the store is open
    shard/           the engine's own files

The engine lets one process open a shard at a time, also for reading: its read-only shards have no
Python interface so far (qdrant-edge-py 0.9). It has no background work: a store that has grown is
tidied up by the write that made it grow, or by `optimize`.

Options, as `qdrant-edge://PATH?hnsw=16&index=FIELD:KIND,…`, mean what they mean for `qdrant://`:
a graph over the whole vector that is searched instead of the hash, where the store is made, and
payload indexes on metadata, made where they are missing when the store is opened for writing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from nexus_vdb.checks import check_meta, check_schema
from nexus_vdb.connectors._qdrant_edge import (
    edge_config,
    edge_filter,
    edge_index,
    edge_query,
    edge_recoding,
    engine,
)
from nexus_vdb.connectors._qdrant_filter import Json
from nexus_vdb.connectors._qdrant_options import Layout
from nexus_vdb.connectors._qdrant_points import (
    Found,
    Points,
    collection_config,
    index_schema,
    missing_indexes,
    schema_of,
    schema_to_json,
)
from nexus_vdb.connectors._qdrant_store import PointStore
from nexus_vdb.errors import (
    ConfigError,
    NexusError,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
)
from nexus_vdb.folders import FolderLock, write_durably
from nexus_vdb.types import Floats, StoreInfo, StoreSchema

__all__ = ["QdrantEdgeStore"]

_MANIFEST, _SHARD = "manifest.json", "shard"
_OURS = {_MANIFEST + ".tmp", _SHARD, "lock"}
_REBUILD = "ingest again into a new folder, or restore this one from a copy"
_POINTS_AT_ONCE = 2000
_OPTIMIZE_AFTER = 50_000
"""Points written until the engine is told to tidy up, of which it does what is worth it."""


@dataclass(slots=True)
class _Opened:
    folder: Path
    shard: Any
    manifest: dict[str, Any]
    lock: FolderLock
    fresh: int = 0


class QdrantEdgeStore(PointStore):
    """A folder with one shard; made by `open`."""

    def __init__(self, url: str, schema: StoreSchema, opened: _Opened) -> None:
        super().__init__(url, schema, graph=bool(opened.manifest.get("hnsw")))
        self._held: _Opened | None = opened

    @classmethod
    def open(cls, url: str, schema: StoreSchema | None = None) -> QdrantEdgeStore:
        """Open the store of a folder, or make one if a schema is given.

        Args:
            url: `qdrant-edge://./index`, `qdrant-edge://~/index` or `qdrant-edge:///abs/index`.
            schema: Makes the store if it is missing; must fit it otherwise.

        Raises:
            ConfigError: the URL names no folder.
            StoreNotFound: there is none, and no schema was given.
            StoreLocked: it is open already, here or in another process.
            DimensionMismatch: it holds vectors of another width.
            FingerprintMismatch: it was filled by another model.
            StoreCorrupt: a file is damaged.
            StoreError: the folder holds something else, or cannot be written.
        """
        folder, layout = _parse(url)
        made = (folder / _MANIFEST).is_file()
        if not made and schema is None:
            raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
        with _as_store_error(folder):
            if not made:
                _claim(folder)
            lock = FolderLock(folder, hint="a shard opens once: close it there, or wait")
            try:
                return cls._locked(url, folder, schema, layout=layout, lock=lock)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def _locked(
        cls,
        url: str,
        folder: Path,
        schema: StoreSchema | None,
        *,
        layout: Layout,
        lock: FolderLock,
    ) -> QdrantEdgeStore:
        manifest = _read_manifest(folder / _MANIFEST)
        stored = schema_of(manifest, url) if manifest else None
        if schema is not None:
            check_schema(url, stored=stored, asked=schema)
        if manifest is not None and stored is not None:
            shard = _load(folder / _SHARD)
        elif schema is not None:
            shard, manifest, stored = _create(folder, schema, layout), {}, schema
        else:
            raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
        if schema is not None:
            for key, kind in missing_indexes(layout, shard.info().payload_schema).items():
                shard.update(edge_index(key, index_schema(kind)))
            shard.flush()
        if not manifest:
            manifest = {**schema_to_json(stored), "hnsw": layout.hnsw, "meta": {}}
            _write_manifest(folder, manifest)
        return cls(url, stored, _Opened(folder, shard, manifest, lock))

    def info(self) -> StoreInfo:
        """What is stored; `details` has the engine, its segments and the bytes on disk."""
        with self._open() as opened:
            about = opened.shard.info()
            files = (path for path in (opened.folder / _SHARD).rglob("*") if path.is_file())
            details = {
                "engine": f"qdrant-edge-py {version('qdrant-edge-py')}",
                "segments": about.segments_count,
                "bytes": sum(path.stat().st_blocks * 512 for path in files),
                "indexes": sorted(about.payload_schema),
                "search": "graph" if self._graph else "hash",
            }
            meta = json.loads(json.dumps(opened.manifest["meta"]))
        return StoreInfo(self._url, self._schema, self.count(), meta, details)

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value in the manifest."""
        value = check_meta(key, value)
        with self._open() as opened:
            manifest = opened.manifest | {"meta": {**opened.manifest["meta"], key: value}}
            _write_manifest(opened.folder, manifest)
            opened.manifest = manifest

    def optimize(self) -> None:
        """Merge segments, drop deleted points, and quantize what is new."""
        with self._open() as opened:
            opened.shard.optimize()
            opened.shard.flush()
            opened.fresh = 0

    def close(self) -> None:
        """Let go of shard and lock; a second call does nothing."""
        if self._held is not None:
            opened, self._held = self._held, None
            opened.shard.close()
            opened.lock.release()

    # The engine

    @contextmanager
    def _open(self) -> Iterator[_Opened]:
        if self._held is None:
            raise StoreError(f"{self._url} is closed", hint="open it again")
        with _as_store_error(self._held.folder):
            yield self._held

    def _query(self, requests: Sequence[Json]) -> list[list[Found]]:
        with self._open() as opened:
            batch = engine.QueryBatchRequest([edge_query(request) for request in requests])
            return [[_found(one) for one in hits] for hits in opened.shard.query_batch(batch)]

    def _scroll(
        self,
        where: Json | None,
        *,
        limit: int,
        offset: str | None,
        payload: list[str] | bool = True,
        vectors: Sequence[str] = (),
    ) -> tuple[list[Found], str | None]:
        request = engine.ScrollRequest(
            limit=limit,
            offset=offset,
            filter=edge_filter(where),
            with_payload=payload,
            with_vector=list(vectors) or False,
        )
        with self._open() as opened:
            page, following = opened.shard.scroll(request)
        return [_found(one) for one in page], None if following is None else str(following)

    def _retrieve(
        self,
        ids: Sequence[str],
        *,
        payload: list[str] | bool = True,
        vectors: Sequence[str] = (),
    ) -> list[Found]:
        with self._open() as opened:
            found = opened.shard.retrieve(list(ids), payload, list(vectors) or False)
        return [_found(one) for one in found]

    def _count(self, where: Json | None) -> int:
        with self._open() as opened:
            request = engine.CountRequest(exact=True, filter=edge_filter(where))
            return int(opened.shard.count(request))

    def _write(self, points: Points) -> None:
        with self._open() as opened:
            for part in points.slices(most=_POINTS_AT_ONCE, most_bytes=1 << 26, bytes_per_number=8):
                opened.shard.update(engine.UpdateOperation.upsert_points(_engine_points(part)))
            opened.shard.flush()
            opened.fresh += len(points)
            grown = opened.fresh >= _OPTIMIZE_AFTER
        if grown:
            self.optimize()

    def _delete(self, where: Json) -> None:
        with self._open() as opened:
            operation = engine.UpdateOperation.delete_points_by_filter(edge_filter(where))
            opened.shard.update(operation)
            opened.shard.flush()

    def _recode(self, changes: Mapping[str, tuple[Floats, str]]) -> None:
        with self._open() as opened:
            for operation in edge_recoding(changes):
                opened.shard.update(operation)
            opened.shard.flush()


def _parse(url: str) -> tuple[Path, Layout]:
    name, _, query = url.partition("://")[2].partition("?")
    if not name:
        raise ConfigError(f"{url!r} names no folder", hint="write it as qdrant-edge://./index")
    layout = Layout.parse(dict(parse_qsl(query, keep_blank_values=True)))
    if layout.shards > 1 or layout.replicas > 1:
        raise ConfigError(f"{url!r}: a folder has one shard, and no copies of it")
    return Path(name).expanduser(), layout


def _create(folder: Path, schema: StoreSchema, layout: Layout) -> Any:
    # Without a manifest, a shard is what is left of a making that was cut off.
    shutil.rmtree(folder / _SHARD, ignore_errors=True)
    config = edge_config(collection_config(schema, layout))
    return engine.EdgeShard.create(str(folder / _SHARD), config)


def _load(folder: Path) -> Any:
    try:
        return engine.EdgeShard.load(str(folder))
    except Exception as error:  # the engine has no types of its own
        raise StoreCorrupt(f"{folder} cannot be opened: {_reason(error)}", hint=_REBUILD) from error


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _engine_points(points: Points) -> list[Any]:
    rows = {name: vectors.tolist() for name, vectors in points.vectors.items()}
    return [
        engine.Point(id_, {name: column[row] for name, column in rows.items()}, payload)
        for row, (id_, payload) in enumerate(zip(points.ids, points.payloads, strict=True))
    ]


def _found(point: Any) -> Found:
    score = getattr(point, "score", 0.0)
    return Found(str(point.id), point.payload or {}, point.vector or {}, score)


def _claim(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file", hint="choose a new folder for the store")
    if folder.exists() and {path.name for path in folder.iterdir()} - _OURS:
        raise StoreError(
            f"{folder} has files in it, but is no store", hint="choose an empty or new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
        return {**value, "meta": dict(value["meta"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"{path} is damaged: {error}", hint=_REBUILD) from error


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_durably(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())


@contextmanager
def _as_store_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except NexusError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or folder}: {error.strerror or error}",
            hint="see that the disk has room and that the folder may be written",
        ) from error
    except Exception as error:  # the engine has no types of its own
        raise StoreError(
            f"the Qdrant engine failed on {folder}: {_reason(error)}",
            hint=f"see that the disk has room; if it is damaged, {_REBUILD}",
        ) from error
