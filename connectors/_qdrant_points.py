"""Records as Qdrant points, the collection that holds them, and searches in it.

A point has the chunk's UUID as its id, these named vectors and this payload:

    d768, d256 …   the vector and its prefixes at the cuts of the schema, renormalised; cosine
    hash           the code as 64 numbers +1 and -1; dot product, kept in RAM as bits

    document_id    indexed
    ordinal, text, content_hash
    hash           the code as 16 hex digits
    metadata       as it was given; filters look here
    dates          the dates in it, where there are any; see `_qdrant_filter`

Everything is in the form of Qdrant's REST interface, as plain dicts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._qdrant_filter import Json, dates_in, plain_key
from nexus_vdb.connectors._qdrant_options import Layout
from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.hashing import BITS, from_hex, signs, to_hex
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import Floats, Hit, Metadata, Records, StoreSchema

__all__ = [
    "HASH",
    "HIT_FIELDS",
    "Found",
    "Points",
    "collection_config",
    "column",
    "hit_of",
    "index_schema",
    "is_point_id",
    "missing_indexes",
    "metadata_of",
    "points_of",
    "records_of",
    "schema_of",
    "schema_to_json",
    "recoded",
    "vector_name",
    "vectors_of",
]

FORMAT = 1
_INDEXED = {"document_id": "keyword"}
"""Payload fields that are indexed in every collection, before there is data."""

HIT_FIELDS = ["document_id", "text", "metadata"]

HASH = "hash"
"""Name of the vector with the bits, and of the payload field with their hex digits."""

_NOT_OURS = "something else writes to this collection, or it is damaged: ingest into a new one"


@dataclass(frozen=True, slots=True)
class Points:
    """Points to write, as columns.

    Attributes:
        ids: UUID strings.
        vectors: float32 `[n, width]` by name.
        payloads: One dict each.
        sizes: Bytes of each payload as JSON.
    """

    ids: list[str]
    vectors: dict[str, Floats]
    payloads: list[Json]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def slices(self, *, most: int, most_bytes: int, bytes_per_number: int) -> Iterator[Points]:
        """Runs of at most `most` points and `most_bytes` bytes; one point at least."""
        fixed = 100 + bytes_per_number * sum(one.shape[1] for one in self.vectors.values())
        start = total = 0
        for row, size in enumerate(self.sizes):
            total += fixed + size
            if row > start and (row - start >= most or total > most_bytes):
                yield self._slice(slice(start, row))
                start, total = row, fixed + size
        if self.ids:
            yield self._slice(slice(start, None))

    def halves(self) -> Iterator[Points]:
        """Two of nearly equal length, of at least two points."""
        middle = len(self) // 2
        yield from (self._slice(slice(middle)), self._slice(slice(middle, None)))

    def _slice(self, rows: slice) -> Points:
        vectors = {name: vectors[rows] for name, vectors in self.vectors.items()}
        return Points(self.ids[rows], vectors, self.payloads[rows], self.sizes[rows])


@dataclass(frozen=True, slots=True)
class Found:
    """A point as an engine gives it back.

    Attributes:
        id: UUID string.
        payload: The fields that were asked for.
        vectors: Those asked for, by name.
        score: Of the last stage of a search.
    """

    id: str
    payload: Json
    vectors: dict[str, Sequence[float]] = field(default_factory=dict)
    score: float = 0.0


def vector_name(width: int) -> str:
    """The vector that holds the first `width` coordinates."""
    return f"d{width}"


def schema_to_json(schema: StoreSchema) -> Json:
    """A schema as it is kept with the points; `schema_of` reads it."""
    return {"format": FORMAT, **asdict(schema)}


def schema_of(value: Any, url: str) -> StoreSchema:
    """The inverse of `schema_to_json`.

    Raises:
        StoreError: it was written by a version with another format.
        StoreCorrupt: it cannot be understood.
    """
    try:
        if value["format"] != FORMAT:
            raise StoreError(
                f"{url} has format {value['format']}, this version reads format {FORMAT}",
                hint="use the version of nexus-vdb that wrote it, or ingest into a new store",
            )
        fields = {name: value[name] for name in ("dim", "fingerprint", "model")}
        return StoreSchema(cuts=tuple(int(cut) for cut in value["cuts"]), **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(
            f"the schema of {url} is damaged: {error!r}", hint="ingest again into a new store"
        ) from error


def collection_config(schema: StoreSchema, layout: Layout | None = None) -> Json:
    """The body of the request that makes the collection.

    Args:
        schema: Its cuts become vectors, half precision, on disk.
        layout: Whether the widest of them gets a graph, and how many shards and copies there are.
    """
    layout = layout or Layout()
    vectors: Json = {
        vector_name(cut): {
            "size": cut,
            "distance": "Cosine",
            "datatype": "float16",
            "on_disk": True,
        }
        for cut in schema.cuts
    }
    if layout.hnsw:
        vectors[vector_name(schema.dim)]["hnsw_config"] = {"m": layout.hnsw}
    bits = {"always_ram": True, "query_encoding": "scalar8bits"}
    vectors[HASH] = {
        "size": BITS,
        "distance": "Dot",
        "on_disk": True,
        "quantization_config": {"binary": bits},
    }
    body: Json = {"vectors": vectors, "hnsw_config": {"m": 0}, "on_disk_payload": True}
    # Left out where they are 1, so that the defaults of the server hold.
    if layout.shards > 1:
        body["shard_number"] = layout.shards
    if layout.replicas > 1:
        body["replication_factor"] = layout.replicas
    return body


def index_schema(kind: str) -> Json:
    """The description of a payload index: on disk, as everything is but the bits of the hash."""
    return {"type": kind, "on_disk": True}


def missing_indexes(layout: Layout, there: Collection[str]) -> dict[str, str]:
    """Kinds of the payload indexes that should be there and are not, by key."""
    wanted = _INDEXED | dict(layout.index)
    return {key: kind for key, kind in wanted.items() if plain_key(key) not in there}


def points_of(records: Records, schema: StoreSchema) -> Points:
    """Records as points.

    Raises:
        StoreError: an id is no UUID, or a value has no exact form in JSON, or in Qdrant.
    """
    vectors = {vector_name(cut): cut_vectors(records.vectors, cut) for cut in schema.cuts}
    vectors[HASH] = signs(records.codes)
    payloads = [_payload(records, row) for row in range(len(records))]
    for payload, code in zip(payloads, to_hex(records.codes), strict=True):
        payload[HASH] = code
    sizes = [_json_size(id_, one) for id_, one in zip(records.ids, payloads, strict=True)]
    return Points(records.ids, vectors, payloads, sizes)


def _payload(records: Records, row: int) -> Json:
    payload: Json = {
        "document_id": records.document_ids[row],
        "ordinal": int(records.ordinals[row]),
        "text": records.texts[row],
        "content_hash": records.content_hashes[row],
        "metadata": records.metadata[row],
    }
    if dates := dates_in(records.metadata[row]):
        payload["dates"] = dates
    return payload


def _json_size(id_: str, payload: Json) -> int:
    try:
        _check_id(id_)
        _check_exact(payload["metadata"])
        return len(json.dumps(payload, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"record {id_!r} cannot be written: {error}",
            hint="ids are UUIDs, texts are Unicode, metadata is JSON with integers of 64 bits",
        ) from error


def _check_id(id_: str) -> None:
    if not is_point_id(id_):
        raise ValueError("the id is not a UUID in its usual form")


def is_point_id(text: str) -> bool:
    """Whether a point can have this id, and gives it back as it is."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _check_exact(value: Any) -> None:
    if isinstance(value, str | float):
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not a string")
            _check_exact(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_exact(inner)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer has more than 64 bits")


def recoded(found: Sequence[Found], codes: npt.NDArray[np.uint64]) -> dict[str, tuple[Floats, str]]:
    """New hash vector float32 `[64]` and hex digits by id, where the code of a point changes."""
    digits = to_hex(codes)
    return {
        point.id: (vector, text)
        for point, vector, text in zip(found, signs(codes), digits, strict=True)
        if point.payload.get(HASH) != text
    }


def records_of(found: Sequence[Found], dim: int) -> Records:
    """Points with whole payloads and their widest vector as records.

    Raises:
        StoreCorrupt: a point lacks a field or its vector.
    """
    return Records(
        ids=[point.id for point in found],
        document_ids=column(found, "document_id"),
        ordinals=np.array(column(found, "ordinal"), dtype=np.int32),
        texts=column(found, "text"),
        metadata=[metadata_of(point) for point in found],
        content_hashes=column(found, "content_hash"),
        vectors=vectors_of(found, dim),
        codes=from_hex(column(found, "hash")),
    )


def column(found: Sequence[Found], name: str) -> list[Any]:
    """A field of the payloads.

    Raises:
        StoreCorrupt: one lacks it.
    """
    missing = next((point for point in found if name not in point.payload), None)
    if missing is not None:
        raise StoreCorrupt(f"point {missing.id} has no field {name!r}", hint=_NOT_OURS)
    return [point.payload[name] for point in found]


def vectors_of(found: Sequence[Found], dim: int) -> Floats:
    """Their widest vectors, float32 `[n, dim]`.

    Raises:
        StoreCorrupt: one is missing.
    """
    name = vector_name(dim)
    missing = next((point for point in found if name not in point.vectors), None)
    if missing is not None:
        raise StoreCorrupt(f"point {missing.id} has no vector {name!r}", hint=_NOT_OURS)
    vectors = [point.vectors[name] for point in found]
    return np.array(vectors, dtype=np.float32).reshape(len(found), dim)


def metadata_of(point: Found) -> Metadata:
    """The metadata of a point that came with them."""
    return point.payload.get("metadata") or {}


def hit_of(point: Found) -> Hit:
    """A point with the payload `HIT_FIELDS` as a hit.

    Raises:
        StoreCorrupt: it lacks a field.
    """
    [document_id], [text] = column([point], "document_id"), column([point], "text")
    return Hit(point.id, document_id, point.score, text, metadata_of(point))
