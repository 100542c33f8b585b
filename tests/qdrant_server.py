"""A Qdrant server for tests: the REST calls that `QdrantStore` makes, answered by the real engine.

Each collection is a shard of the edge engine in a folder. What a single shard does not know of
(names of collections, their metadata) is kept here, as the REST reference describes it.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import qdrant_edge as engine

from nexus_vdb.connectors._qdrant_edge import edge_config, edge_filter, edge_index, edge_query

Json = dict[str, Any]

MOST_BYTES = 32 << 20


class RefusedError(Exception):
    """Answered with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Collection:
    """A shard, and what the server knows of it."""

    shard: Any
    body: Json
    metadata: Json
    indexes: Json = field(default_factory=dict)


@dataclass
class Request:
    """What came in: for tests that look at the traffic."""

    method: str
    path: str
    size: int
    headers: dict[str, str]
    body: Any


class QdrantServer:
    """Listens on 127.0.0.1 while the `with` lasts.

    Faults are taken from `faults`, one for each request: a status to answer with, "cut" to hang up
    at once, "mute" to carry the request out and hang up then, "" for none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[int | str] = []
        self.requests: list[Request] = []
        self.collections: dict[str, Collection] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def url(self, collection: str, options: str = "") -> str:
        return f"qdrant://127.0.0.1:{self.port}/{collection}{options}"

    def __enter__(self) -> QdrantServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        for collection in self.collections.values():
            collection.shard.close()

    def answer(self, method: str, path: str, body: Any) -> Any:
        """The `result` of a request."""
        for verb, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                return handle(self, *map(unquote, match.groups()), body)
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
        given = {key for key, value in body.items() if value is not None}
        if given - known:
            raise RefusedError(400, f"not understood here: {sorted(given - known)}")
        shard = engine.EdgeShard.create(
            str(self.folder / f"{len(self.collections)}"), edge_config(body)
        )
        self.collections[name] = Collection(shard, body, body.get("metadata") or {})
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
            },
        }

    def change(self, name: str, body: Json) -> bool:
        collection = self.collection(name)
        metadata = collection.metadata | (body.get("metadata") or {})
        collection.metadata = {key: one for key, one in metadata.items() if one is not None}
        return True

    def remove(self, name: str, body: None) -> bool:
        self.collection(name).shard.close()
        del self.collections[name]
        return True

    def index(self, name: str, body: Json) -> Json:
        collection, kind = self.collection(name), body["field_schema"]
        collection.shard.update(edge_index(body["field_name"], kind))
        collection.indexes[body["field_name"]] = {"data_type": kind, "points": 0}
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
    ("POST", _NAME + "/points/query/batch", QdrantServer.query),
    ("POST", _NAME + "/points/scroll", QdrantServer.scroll),
    ("POST", _NAME + "/points/count", QdrantServer.count),
    ("POST", _NAME + "/points", QdrantServer.retrieve),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    methods: ClassVar = ("GET", "PUT", "POST", "PATCH", "DELETE")

    def __init__(self, server: QdrantServer, *args: Any) -> None:
        self.qdrant = server
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def _handle(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        body = json.loads(raw) if raw else None
        self.qdrant.requests.append(
            Request(self.command, path, len(raw), dict(self.headers.items()), body)
        )
        fault = self.qdrant.faults.pop(0) if self.qdrant.faults else ""
        if fault == "cut":
            self._hang_up()
        elif isinstance(fault, int):
            self._send(fault, {"status": {"error": HTTPStatus(fault).phrase}})
        else:
            status, answer = self._result(path, body, len(raw))
            if fault == "mute":
                self._hang_up()
            else:
                self._send(status, answer)

    def _result(self, path: str, body: Any, size: int) -> tuple[int, Json]:
        if size > MOST_BYTES:
            return 413, {"status": {"error": f"Payload reached size limit: {size}"}}
        try:
            if path == "/":
                return 200, {"title": "test", "version": "1.16.0"}
            return 200, {"result": self.qdrant.answer(self.command, path, body), "status": "ok"}
        except RefusedError as error:
            return error.status, {"status": {"error": str(error)}}
        except Exception as error:  # the engine has no types of its own
            return 400, {"status": {"error": f"{error}"}}

    def _send(self, status: int, answer: Json) -> None:
        content = json.dumps({"time": 0.0} | answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


for _method in _Handler.methods:
    setattr(_Handler, f"do_{_method}", _Handler._handle)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A temporary folder, in memory where there is one: the engine waits for the disk often."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
