"""`qdrant://HOST:PORT/COLLECTION`, `qdrants://` for TLS: a collection of a Qdrant server.

Layout of the points: `_qdrant_points`. Schema and meta are kept in the metadata of the collection,
which Qdrant has from version 1.16 on: `nexus_vdb` is the schema, `nexus_vdb.KEY` the meta value of
that key, as JSON text.

Options of the URL, after a question mark and joined by `&`:

    timeout=60   seconds until one request is given up
    patience=180 seconds for which a request is made again while the server is down or busy
    grpc=1       the gRPC interface, at port 6334 or the one named
    index=…      payload indexes on metadata, FIELD:KIND,FIELD:KIND, made where they are missing
                 when the collection is opened for writing; kinds: keyword, number, bool, date
    hnsw=16      search by a graph over the whole vector, with so many edges per node, not by the
                 hash; this and the next two count when the collection is made
    shards=1     parts, to lie on several nodes
    replicas=1   copies of each part

Writes are upserts and deletes by id or filter, so that making one twice does no harm: whatever got
lost on the way is sent again. A filter on a field without an index makes a plain server read every
record; a server in strict mode refuses it, and the index is then made on the spot.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from qdrant_client import QdrantClient, models

from nexus_vdb.checks import check_meta, check_schema
from nexus_vdb.connectors._qdrant_address import Address
from nexus_vdb.connectors._qdrant_client import Retry, Server
from nexus_vdb.connectors._qdrant_collection import (
    META,
    Described,
    describe,
    make_collection,
    make_index,
    make_indexes,
)
from nexus_vdb.connectors._qdrant_faults import IndexMissing, TooLarge
from nexus_vdb.connectors._qdrant_filter import Json, indexes_needed, plain_key
from nexus_vdb.connectors._qdrant_points import HASH, Found, Points
from nexus_vdb.connectors._qdrant_store import PointStore
from nexus_vdb.errors import StoreError, StoreNotFound, StoreUnavailable
from nexus_vdb.types import Floats, StoreInfo, StoreSchema

__all__ = ["QdrantStore"]

T = TypeVar("T")

_log = logging.getLogger("nexus_vdb.connectors.qdrant")

_BATCH_BYTES = 8 << 20
"""Of one upload; the server refuses 32 MiB."""

_BATCH_POINTS, _BATCH_CODES, _BATCH_QUERIES = 1000, 500, 100
_NUMBER_BYTES = 12
_DIGITS = 6
"""Decimals of a coordinate that are sent: half precision keeps fewer of all but tiny ones."""

_AS_GOOD = {"integer": "float", "uuid": "keyword"}
"""Indexes of others that a strict server takes for those that we make."""


class QdrantStore(PointStore):
    """A collection; made by `open`."""

    def __init__(self, server: Server, described: Described) -> None:
        super().__init__(server.address.url, described.schema, graph=described.graph)
        self._server = server
        self._name = server.address.collection
        limits = described.limits
        self._most_hits = limits.get("max_query_limit")
        self._page = min(self._page, self._most_hits or self._page)
        self._choices = min(self._choices, limits.get("condition_max_size", self._choices))
        self._queries = min(_BATCH_QUERIES, limits.get("search_max_batchsize", _BATCH_QUERIES))
        self._points = min(_BATCH_POINTS, limits.get("upsert_max_batchsize", _BATCH_POINTS))

    @classmethod
    def open(
        cls, url: str, schema: StoreSchema | None = None, *, retry: Retry | None = None
    ) -> QdrantStore:
        """Open a collection, or make it if a schema is given.

        Args:
            url: `qdrant://HOST:PORT/COLLECTION?option=value`; see the module.
            schema: Makes the collection if it is missing; must fit it otherwise.
            retry: Waits between tries.

        Raises:
            ConfigError: the URL cannot be understood.
            StoreNotFound: there is no such collection, and no schema was given.
            DimensionMismatch: it holds vectors of another width.
            FingerprintMismatch: it was filled by another model.
            StoreUnavailable: the server cannot be reached.
            StoreError: the server refuses, or the collection was made by something else.
        """
        server = Server(Address.parse(url), retry or Retry())
        try:
            return cls(server, _described(server, schema))
        except BaseException:
            server.close()
            raise

    def info(self) -> StoreInfo:
        """What is stored; `details` has the server's version, status, segments and indexes."""
        found = self._server.ask(lambda client: client.get_collection(self._name))
        version = self._server.ask(lambda client: client.info()).version
        metadata = found.config.metadata or {}
        meta = {
            name.removeprefix(META): json.loads(value)
            for name, value in metadata.items()
            if name.startswith(META)
        }
        details = {
            "engine": f"Qdrant {version}",
            "status": found.status.value,
            "segments": found.segments_count,
            "indexed_vectors": found.indexed_vectors_count,
            "indexes": sorted(found.payload_schema),
            "search": "graph" if self._graph else "hash",
        }
        return StoreInfo(self._url, self._schema, self.count(), meta, details)

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value in the metadata of the collection."""
        # As text: the server would drop a null, and may write numbers in another way.
        metadata = {META + key: json.dumps(check_meta(key, value))}
        self._server.ask(lambda client: client.update_collection(self._name, metadata=metadata))

    def close(self) -> None:
        """Let go of the connections; a second call does nothing."""
        self._server.close()

    # Reading

    def _query(self, requests: Sequence[Json]) -> list[list[Found]]:
        answers: list[list[Found]] = []
        for start in range(0, len(requests), self._queries):
            answers += self._query_at_once(requests[start : start + self._queries])
        return answers

    def _query_at_once(self, requests: Sequence[Json]) -> list[list[Found]]:
        batch = [models.QueryRequest.model_validate(request) for request in requests]
        try:
            found = self._filtered(
                _filter_of(requests[0]),
                lambda client: client.query_batch_points(self._name, batch),
            )
        except TooLarge:
            if len(requests) == 1:
                raise
            half = len(requests) // 2
            return self._query_at_once(requests[:half]) + self._query_at_once(requests[half:])
        return [[_found(point) for point in answer.points] for answer in found]

    def _scroll(
        self,
        where: Json | None,
        *,
        limit: int,
        offset: str | None,
        payload: list[str] | bool = True,
        vectors: Sequence[str] = (),
    ) -> tuple[list[Found], str | None]:
        page, following = self._filtered(
            where,
            lambda client: client.scroll(
                self._name,
                scroll_filter=_filter(where),
                limit=limit,
                offset=offset,
                with_payload=payload,
                with_vectors=list(vectors) or False,
            ),
        )
        return [_found(point) for point in page], None if following is None else str(following)

    def _retrieve(
        self,
        ids: Sequence[str],
        *,
        payload: list[str] | bool = True,
        vectors: Sequence[str] = (),
    ) -> list[Found]:
        found = self._server.ask(
            lambda client: client.retrieve(
                self._name, ids, with_payload=payload, with_vectors=list(vectors) or False
            )
        )
        return [_found(point) for point in found]

    def _count(self, where: Json | None) -> int:
        found = self._filtered(
            where,
            lambda client: client.count(self._name, count_filter=_filter(where), exact=True),
        )
        return int(found.count)

    def _filtered(self, where: Json | None, request: Callable[[QdrantClient], T]) -> T:
        """The answer to a request with a filter; makes the indexes that a strict server wants."""
        try:
            return self._server.ask(request)
        except IndexMissing:
            if where is None:
                raise
            self._index(where)
        return self._server.ask(request)

    def _index(self, where: Json) -> None:
        described = describe(self._server)
        there = described.indexes if described else {}
        for key, kinds in indexes_needed(where).items():
            found = there.get(plain_key(key))
            found = _AS_GOOD.get(found or "", found)
            if len(kinds) > 1 or (found and kinds - {found}):
                compared = ", ".join(sorted(kinds | ({found} if found else set())))
                raise StoreError(
                    f"{self._url} is in strict mode, where a field has one index, and {key} would "
                    f"need several: {compared}",
                    hint="compare the field with values of one type, or allow "
                    "unindexed_filtering_retrieve",
                )
            if found is None:
                kind = next(iter(kinds), None) or self._kind_of_values(key)
                _log.info("%s: making a payload index (%s) on %s", self._url, kind, key)
                make_index(self._server, key, kind)

    def _kind_of_values(self, key: str) -> str:
        page, _ = self._scroll(None, limit=min(100, self._page), offset=None, payload=[key])
        for point in page:
            value: Any = point.payload
            while isinstance(value, dict | list) and value:
                value = next(iter(value.values() if isinstance(value, dict) else value))
            if isinstance(value, bool):
                return "bool"
            if isinstance(value, int | float):
                return "float"
        return "keyword"

    # Writing

    def _write(self, points: Points) -> None:
        parts = points.slices(
            most=self._points, most_bytes=_BATCH_BYTES, bytes_per_number=_NUMBER_BYTES
        )
        for part in parts:
            self._upload(part)

    def _upload(self, points: Points) -> None:
        batch = _batch(points)
        try:
            self._server.ask(lambda client: _done(client.upsert(self._name, batch, wait=True)))
        except TooLarge as refusal:
            if len(points) == 1:
                document_id = points.payloads[0]["document_id"]
                raise StoreError(
                    f"record {points.ids[0]} of document {document_id!r} is too large, with "
                    f"{points.sizes[0]:,} bytes of text and metadata: {refusal}",
                    hint="cut documents into smaller chunks, or raise the limit of the server",
                ) from refusal
            self._points = max(1, len(points) // 2)
            for half in points.halves():
                self._upload(half)

    def _delete(self, where: Json) -> None:
        selector = models.FilterSelector(filter=models.Filter.model_validate(where))
        self._filtered(where, lambda client: _done(client.delete(self._name, selector, wait=True)))

    def _recode(self, changes: Mapping[str, tuple[Floats, str]]) -> None:
        rows = list(changes.items())
        step = min(_BATCH_CODES, self._points)
        for start in range(0, len(rows), step):
            operations = _recoding(rows[start : start + step])

            def send(client: QdrantClient, operations: Sequence[Any] = operations) -> None:
                for result in client.batch_update_points(self._name, operations, wait=True):
                    _done(result)

            self._server.ask(send)


def _described(server: Server, schema: StoreSchema | None) -> Described:
    url, found = server.address.url, describe(server)
    if schema is not None:
        check_schema(url, stored=found.schema if found else None, asked=schema)
        found = found or make_collection(server, schema)
        make_indexes(server, found.indexes)
    if found is None:
        raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
    return found


def _recoding(rows: Sequence[tuple[str, tuple[Floats, str]]]) -> list[Any]:
    vectors = [
        models.PointVectors(id=id_, vector={HASH: vector.tolist()}) for id_, (vector, _) in rows
    ]
    texts = [
        models.SetPayloadOperation(
            set_payload=models.SetPayload(payload={HASH: text}, points=[id_])
        )
        for id_, (_, text) in rows
    ]
    update = models.UpdateVectorsOperation(update_vectors=models.UpdateVectors(points=vectors))
    return [update, *texts]


def _done(result: models.UpdateResult) -> None:
    """Refuse an answer that leaves open whether the write was carried out."""
    if result.status is not models.UpdateStatus.COMPLETED:
        raise StoreUnavailable(f"a write is still in the queue ({result.status.value})")


def _batch(points: Points) -> models.Batch:
    vectors = {
        name: np.round(column.astype(np.float64), _DIGITS).tolist()
        for name, column in points.vectors.items()
    }
    return models.Batch(ids=list(points.ids), vectors=vectors, payloads=points.payloads)


def _filter(where: Json | None) -> models.Filter | None:
    return None if where is None else models.Filter.model_validate(where)


def _filter_of(request: Json) -> Json | None:
    """The filter of the innermost stage."""
    while "prefetch" in request:
        [request] = request["prefetch"]
    where: Json | None = request.get("filter")
    return where


def _found(point: models.Record | models.ScoredPoint) -> Found:
    vectors: Any = point.vector if isinstance(point.vector, Mapping) else {}
    score = point.score if isinstance(point, models.ScoredPoint) else 0.0
    return Found(str(point.id), point.payload or {}, vectors, score)
