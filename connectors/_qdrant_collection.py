"""A collection of a Qdrant server: finding out what it is, making it, indexing its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qdrant_client import QdrantClient, models

from nexus_vdb.checks import check_schema
from nexus_vdb.connectors._qdrant_client import Server
from nexus_vdb.connectors._qdrant_points import (
    collection_config,
    index_schema,
    missing_indexes,
    schema_of,
    schema_to_json,
    vector_name,
)
from nexus_vdb.errors import StoreError, StoreNotFound
from nexus_vdb.types import StoreSchema

__all__ = ["META", "Described", "describe", "make_collection", "make_index", "make_indexes"]

_SCHEMA = "nexus_vdb"
META = "nexus_vdb."
"""Before the key of each meta value."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a server says of a collection of ours.

    Attributes:
        schema: What was fixed when it was made.
        graph: Whether the widest vector has a graph.
        indexes: Kind of payload index by key, as the server prints it.
        limits: Those of strict mode, by name, where it is on.
    """

    schema: StoreSchema
    graph: bool
    indexes: Mapping[str, str]
    limits: Mapping[str, int]


def describe(server: Server) -> Described | None:
    """What is there; None if nothing is.

    Raises:
        StoreError: the collection was made by something else, or by another version.
    """
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
    schema = schema_of(metadata[_SCHEMA], address.url)
    vectors: Any = found.config.params.vectors
    widest = vectors.get(vector_name(schema.dim)) if isinstance(vectors, dict) else None
    graph = getattr(widest, "hnsw_config", None)
    indexes = {key: one.data_type.value for key, one in found.payload_schema.items()}
    return Described(schema, bool(graph and graph.m), indexes, _limits(found.config))


def _limits(config: models.CollectionConfig) -> dict[str, int]:
    strict = config.strict_mode_config
    if strict is None or not strict.enabled:
        return {}
    values = strict.model_dump(exclude_none=True)
    return {name: one for name, one in values.items() if type(one) is int}


def make_collection(server: Server, schema: StoreSchema) -> Described:
    """Make the collection, or find that somebody else just did."""
    layout = server.address.layout
    body = collection_config(schema, layout) | {"metadata": {_SCHEMA: schema_to_json(schema)}}
    config = models.CreateCollection.model_validate(body)
    try:
        server.ask(
            lambda client: client.create_collection(
                server.address.collection,
                vectors_config=config.vectors,
                hnsw_config=config.hnsw_config,
                shard_number=config.shard_number,
                replication_factor=config.replication_factor,
                on_disk_payload=config.on_disk_payload,
                metadata=config.metadata,
            )
        )
    except StoreError:
        # An earlier try, whose answer was lost, or somebody else may have made it meanwhile.
        if describe(server) is None:
            raise
    made = describe(server)
    if made is None:
        raise StoreError(f"{server.address.url} was deleted while it was made")
    check_schema(server.address.url, stored=made.schema, asked=schema)
    return made


def make_indexes(server: Server, there: Mapping[str, str]) -> None:
    """Make the payload indexes that are always there, and those of the URL, where missing."""
    for key, kind in missing_indexes(server.address.layout, there).items():
        make_index(server, key, kind)


def make_index(server: Server, key: str, kind: str) -> None:
    """Make a payload index; there when it returns."""
    schema = _PARAMS[kind].model_validate(index_schema(kind))

    def create(client: QdrantClient) -> None:
        client.create_payload_index(server.address.collection, key, schema, wait=True)

    server.ask(create)


_PARAMS: Mapping[str, Any] = {
    "keyword": models.KeywordIndexParams,
    "float": models.FloatIndexParams,
    "bool": models.BoolIndexParams,
    "datetime": models.DatetimeIndexParams,
}
