"""A Qdrant server for tests: the REST calls that `QdrantStore` makes, answered by the real engine.

Each collection is a shard of the edge engine in a folder. What a single shard does not know of
(names of collections, their metadata, strict mode) is kept here, as the REST reference describes
it; how it fails is in `qdrant_faults`.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import qdrant_edge as engine

from nexus_vdb.connectors._qdrant_address import Address
from nexus_vdb.connectors._qdrant_edge import edge_config, edge_filter, edge_index, edge_query
from tests.qdrant_faults import Fault, Handler, RefusedError, Request, check_strictly

Json = dict[str, Any]


@dataclass
class Collection:
    """A shard, and what the server knows of it."""

    shard: Any
    body: Json
    metadata: Json
    strict: Json
    indexes: Json = field(default_factory=dict)


class QdrantServer:
    """Listens on 127.0.0.1 while the `with` lasts, but for the time between `stop` and `start`.

    Attributes:
        faults: Taken one for each request; see `Fault`. "" for none.
        storm: Where `faults` is empty: makes the next one.
        delay: Seconds that a "slow" answer takes.
        strict: Strict mode of the collections that are made, by name of the setting.
        most_bytes: Of a request.
        requests: What came in so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Fault] = []
        self.storm: Callable[[], Fault] = str
        self.delay = 1.0
        self.strict: Json = {}
        self.most_bytes = 32 << 20
        self.requests: list[Request] = []
        self.collections: dict[str, Collection] = {}
        self.is_up = False
        self._made = 0
        self._port = 0
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        return self._port

    def url(self, collection: str, options: str = "") -> str:
        return f"qdrant://127.0.0.1:{self.port}/{collection}{options}"

    def start(self) -> None:
        """Listen; after a stop, at the same port."""
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), partial(Handler, self))
        self._port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.is_up = True

    def stop(self) -> None:
        """Refuse connections, and hang up on those that are open at their next request."""
        self.is_up = False
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
            self._http = None

    def uploads(self, collection: str) -> int:
        """How many came in for a collection."""
        path = f"/collections/{collection}/points"
        return sum(one.method == "PUT" and one.path == path for one in self.requests)

    def next_fault(self) -> Fault:
        """What goes wrong with the request at hand."""
        return self.faults.pop(0) if self.faults else self.storm()

    def __enter__(self) -> QdrantServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        for collection in self.collections.values():
            collection.shard.close()

    def answer(self, method: str, path: str, body: Any) -> Any:
        """The `result` of a request."""
        for verb, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                names = [unquote(name) for name in match.groups()]
                if names and names[0] in self.collections:
                    found = self.collections[names[0]]
                    check_strictly(method, path, body, strict=found.strict, there=found.indexes)
                return handle(self, *names, body)
        raise RefusedError(404, f"no such call: {method} {path}")

    def collection(self, name: str) -> Collection:
        if name not in self.collections:
            raise RefusedError(404, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[name]

    # Collections

    def create(self, name: str, body: Json) -> bool:
        if name in self.collections:
            raise RefusedError(409, f"Wrong input: Collection `{name}` already exists!")
        known = {"vectors", "hnsw_config", "on_disk_payload", "metadata"}
        known |= {"shard_number", "replication_factor"}
        given = {key for key, value in body.items() if value is not None}
        if given - known:
            raise RefusedError(400, f"not understood here: {sorted(given - known)}")
        self._made += 1
        shard = engine.EdgeShard.create(str(self.folder / f"{self._made}"), edge_config(body))
        self.collections[name] = Collection(
            shard, body, body.get("metadata") or {}, dict(self.strict)
        )
        return True

    def describe(self, name: str, body: None) -> Json:
        collection = self.collection(name)
        info = collection.shard.info()
        optimizer = {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        }
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": info.indexed_vectors_count,
            "points_count": info.points_count,
            "segments_count": info.segments_count,
            "payload_schema": collection.indexes,
            "config": {
                "params": {
                    "vectors": collection.body["vectors"],
                    "on_disk_payload": collection.body["on_disk_payload"],
                },
                "hnsw_config": {"m": 0, "ef_construct": 100, "full_scan_threshold": 10_000},
                "optimizer_config": optimizer,
                "metadata": collection.metadata or None,
                "strict_mode_config": collection.strict or None,
            },
        }

    def change(self, name: str, body: Json) -> bool:
        collection = self.collection(name)
        metadata = collection.metadata | (body.get("metadata") or {})
        collection.metadata = {key: one for key, one in metadata.items() if one is not None}
        return True

    def remove(self, name: str, body: None) -> bool:
        if name not in self.collections:
            return False
        self.collection(name).shard.close()
        del self.collections[name]
        return True

    def index(self, name: str, body: Json) -> Json:
        collection, schema = self.collection(name), body["field_schema"]
        collection.shard.update(edge_index(body["field_name"], schema))
        known = collection.shard.info().payload_schema
        new = (known.keys() - collection.indexes.keys()) or {body["field_name"]}
        for key in new:
            collection.indexes[key] = {"data_type": schema["type"], "points": 0}
        return _done()

    # Points

    def upsert(self, name: str, body: Json) -> Json:
        batch = body["batch"]
        vectors = batch["vectors"]
        points = [
            engine.Point(id_, {key: column[row] for key, column in vectors.items()}, payload)
            for row, (id_, payload) in enumerate(zip(batch["ids"], batch["payloads"], strict=True))
        ]
        self.collection(name).shard.update(engine.UpdateOperation.upsert_points(points))
        return _done()

    def delete(self, name: str, body: Json) -> Json:
        operation = engine.UpdateOperation.delete_points_by_filter(edge_filter(body["filter"]))
        self.collection(name).shard.update(operation)
        return _done()

    def change_points(self, name: str, body: Json) -> list[Json]:
        shard = self.collection(name).shard
        for operation in body["operations"]:
            if "update_vectors" in operation:
                points = operation["update_vectors"]["points"]
                vectors = [engine.PointVectors(one["id"], one["vector"]) for one in points]
                shard.update(engine.UpdateOperation.update_vectors(vectors))
            else:
                part = operation["set_payload"]
                change = engine.UpdateOperation.set_payload(part["points"], part["payload"])
                shard.update(change)
        return [_done() for _ in body["operations"]]

    def query(self, name: str, body: Json) -> list[Json]:
        requests = [edge_query(search) for search in body["searches"]]
        batch = engine.QueryBatchRequest(requests)
        answers = self.collection(name).shard.query_batch(batch)
        return [
            {"points": [_point(one) | {"score": one.score, "version": 0} for one in hits]}
            for hits in answers
        ]

    def scroll(self, name: str, body: Json) -> Json:
        request = engine.ScrollRequest(
            limit=body["limit"],
            offset=body.get("offset"),
            filter=edge_filter(body.get("filter")),
            with_payload=body["with_payload"],
            with_vector=body["with_vector"],
        )
        page, following = self.collection(name).shard.scroll(request)
        return {
            "points": [_point(one) for one in page],
            "next_page_offset": None if following is None else str(following),
        }

    def retrieve(self, name: str, body: Json) -> list[Json]:
        found = self.collection(name).shard.retrieve(
            body["ids"], body["with_payload"], body["with_vector"]
        )
        return [_point(one) for one in found]

    def count(self, name: str, body: Json) -> Json:
        request = engine.CountRequest(exact=body["exact"], filter=edge_filter(body.get("filter")))
        return {"count": self.collection(name).shard.count(request)}


def _done() -> Json:
    return {"operation_id": 0, "status": "completed"}


def _point(found: Any) -> Json:
    return {"id": str(found.id), "payload": found.payload, "vector": found.vector}


_NAME = r"/collections/([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("PUT", _NAME, QdrantServer.create),
    ("GET", _NAME, QdrantServer.describe),
    ("PATCH", _NAME, QdrantServer.change),
    ("DELETE", _NAME, QdrantServer.remove),
    ("PUT", _NAME + "/index", QdrantServer.index),
    ("PUT", _NAME + "/points", QdrantServer.upsert),
    ("POST", _NAME + "/points/delete", QdrantServer.delete),
    ("POST", _NAME + "/points/batch", QdrantServer.change_points),
    ("POST", _NAME + "/points/query/batch", QdrantServer.query),
    ("POST", _NAME + "/points/scroll", QdrantServer.scroll),
    ("POST", _NAME + "/points/count", QdrantServer.count),
    ("POST", _NAME + "/points", QdrantServer.retrieve),
]


LIVE = os.environ.get("NEXUS_TEST_QDRANT_URL", "")
"""`qdrant://HOST:PORT` of a real server, with or without options, to run the suite against."""


@contextmanager
def live_collection() -> Iterator[str]:
    """A URL on the real server at which there is nothing yet, and nothing afterwards."""
    base, _, options = LIVE.partition("?")
    url = f"{base.rstrip('/')}/nexus_vdb_test_{uuid.uuid4().hex}?{options}".rstrip("?")
    yield url
    address = Address.parse(url)
    client = address.connect()
    client.delete_collection(address.collection)
    client.close()


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A temporary folder, in memory where there is one: the engine waits for the disk often."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
