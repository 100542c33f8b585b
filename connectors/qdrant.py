"""`qdrant://HOST:PORT/COLLECTION`, `qdrants://` for TLS: a collection of a Qdrant server.

Layout of the points: `_qdrant_points`. Schema and meta are kept in the metadata of the collection,
which Qdrant has from version 1.16 on: `nexus_vdb` is the schema, `nexus_vdb.KEY` the meta value of
that key, as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from nexus_vdb.checks import check_meta, check_schema
from nexus_vdb.connectors._qdrant_client import Address, Retry, Server
from nexus_vdb.connectors._qdrant_filter import Json
from nexus_vdb.connectors._qdrant_points import (
    INDEXED,
    Found,
    Points,
    collection_config,
    schema_of,
    schema_to_json,
)
from nexus_vdb.connectors._qdrant_store import PointStore
from nexus_vdb.errors import StoreError, StoreNotFound
from nexus_vdb.types import StoreInfo, StoreSchema

__all__ = ["QdrantStore"]

_SCHEMA = "nexus_vdb"
_META = "nexus_vdb."

_BATCH_BYTES = 8 << 20
"""Of one upload; the server refuses 32 MiB."""

_BATCH_POINTS = 1000
_BATCH_QUERIES = 100
_NUMBER_BYTES = 12
_DIGITS = 7
"""Decimals of a coordinate that are sent: more would be lost in half precision anyway."""


class QdrantStore(PointStore):
    """A collection; made by `open`."""

    def __init__(self, server: Server, schema: StoreSchema) -> None:
        super().__init__(server.address.url, schema)
        self._server = server
        self._name = server.address.collection

    @classmethod
    def open(
        cls, url: str, schema: StoreSchema | None = None, *, retry: Retry | None = None
    ) -> QdrantStore:
        """Open a collection, or make it if a schema is given.

        Args:
            url: `qdrant://HOST:PORT/COLLECTION?option=number`; see `Address.parse`.
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
            stored = _stored_schema(server)
            if schema is not None:
                check_schema(url, stored=stored, asked=schema)
                stored = stored or _make(server, schema)
                _make_indexes(server)
        except BaseException:
            server.close()
            raise
        if stored is None:
            server.close()
            raise StoreNotFound(f"nothing is stored at {url}", hint="ingest something first")
        return cls(server, stored)

    def info(self) -> StoreInfo:
        """What is stored; `details` has the server's version, status and segments."""
        found = self._server.ask(lambda client: client.get_collection(self._name))
        version = self._server.ask(lambda client: client.info()).version
        metadata = found.config.metadata or {}
        meta = {
            name.removeprefix(_META): json.loads(value)
            for name, value in metadata.items()
            if name.startswith(_META)
        }
        details = {
            "engine": f"Qdrant {version}",
            "status": str(found.status),
            "segments": found.segments_count,
            "indexed_vectors": found.indexed_vectors_count,
        }
        return StoreInfo(self._url, self._schema, self.count(), meta, details)

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small JSON value in the metadata of the collection."""
        # As text: the server would drop a null, and may write numbers in another way.
        metadata = {_META + key: json.dumps(check_meta(key, value))}
        self._server.ask(lambda client: client.update_collection(self._name, metadata=metadata))

    def close(self) -> None:
        """Let go of the connections; a second call does nothing."""
        self._server.close()

    # The engine

    def _query(self, requests: Sequence[Json]) -> list[list[Found]]:
        answers: list[list[Found]] = []
        for start in range(0, len(requests), _BATCH_QUERIES):
            answers += self._query_at_once(requests[start : start + _BATCH_QUERIES])
        return answers

    def _query_at_once(self, requests: Sequence[Json]) -> list[list[Found]]:
        batch = [models.QueryRequest.model_validate(request) for request in requests]
        found = self._server.ask(lambda client: client.query_batch_points(self._name, batch))
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
        page, following = self._server.ask(
            lambda client: client.scroll(
                self._name,
                scroll_filter=_filter(where),
                limit=limit,
                offset=offset,
                with_payload=payload,
                with_vectors=list(vectors) or False,
            )
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
        found = self._server.ask(
            lambda client: client.count(self._name, count_filter=_filter(where), exact=True)
        )
        return int(found.count)

    def _write(self, points: Points) -> None:
        parts = points.slices(
            most=_BATCH_POINTS, most_bytes=_BATCH_BYTES, bytes_per_number=_NUMBER_BYTES
        )
        for part in parts:
            self._upload(_batch(part))

    def _upload(self, batch: models.Batch) -> None:
        self._server.ask(lambda client: client.upsert(self._name, batch, wait=True))

    def _delete(self, where: Json) -> None:
        selector = models.FilterSelector(filter=models.Filter.model_validate(where))
        self._server.ask(lambda client: client.delete(self._name, selector, wait=True))


def _stored_schema(server: Server) -> StoreSchema | None:
    address = server.address
    try:
        found = server.ask(lambda client: client.get_collection(address.collection))
    except StoreNotFound:
        return None
    metadata = found.config.metadata or {}
    if _SCHEMA not in metadata:
        raise StoreError(
            f"{address.url} is a collection that nexus-vdb did not make",
            hint="choose another name; the server has to be Qdrant 1.16 or newer",
        )
    return schema_of(metadata[_SCHEMA], address.url)


def _make(server: Server, schema: StoreSchema) -> StoreSchema:
    config = models.CreateCollection.model_validate(
        collection_config(schema, hnsw=server.address.hnsw)
        | {"metadata": {_SCHEMA: schema_to_json(schema)}}
    )
    try:
        server.ask(
            lambda client: client.create_collection(
                server.address.collection,
                vectors_config=config.vectors,
                hnsw_config=config.hnsw_config,
                on_disk_payload=config.on_disk_payload,
                metadata=config.metadata,
            )
        )
    except StoreError:
        # An earlier try, whose answer was lost, or somebody else may have made it meanwhile.
        if _stored_schema(server) is None:
            raise
    stored = _stored_schema(server)
    check_schema(server.address.url, stored=stored, asked=schema)
    return stored or schema


def _make_indexes(server: Server) -> None:
    name = server.address.collection

    def create(client: QdrantClient) -> None:
        there = client.get_collection(name).payload_schema
        for field in INDEXED.keys() - there.keys():
            index = models.PayloadSchemaType(INDEXED[field])
            client.create_payload_index(name, field, index, wait=True)

    server.ask(create)


def _batch(points: Points) -> models.Batch:
    vectors = {
        name: np.round(column.astype(np.float64), _DIGITS).tolist()
        for name, column in points.vectors.items()
    }
    return models.Batch(ids=list(points.ids), vectors=vectors, payloads=points.payloads)


def _filter(where: Json | None) -> models.Filter | None:
    return None if where is None else models.Filter.model_validate(where)


def _found(point: models.Record | models.ScoredPoint) -> Found:
    vectors: Any = point.vector if isinstance(point.vector, Mapping) else {}
    score = point.score if isinstance(point, models.ScoredPoint) else 0.0
    return Found(str(point.id), point.payload or {}, vectors, score)
