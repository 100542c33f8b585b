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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

import numpy as np

from nexus_vdb.connectors._qdrant_filter import Json, dates_in
from nexus_vdb.errors import StoreCorrupt, StoreError
from nexus_vdb.hashing import BITS, from_hex, signs, to_hex
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import Floats, Hit, Metadata, QueryBatch, Records, SearchPlan, StoreSchema

__all__ = [
    "HIT_FIELDS",
    "INDEXED",
    "Found",
    "Points",
    "collection_config",
    "column",
    "hit_of",
    "is_point_id",
    "metadata_of",
    "points_of",
    "records_of",
    "schema_of",
    "schema_to_json",
    "searches",
    "vector_name",
    "vectors_of",
]

FORMAT = 1
INDEXED = {"document_id": "keyword"}
"""Payload fields that are indexed before there is data."""

HIT_FIELDS = ["document_id", "text", "metadata"]

_HASH = "hash"
_SPARE = 16
"""Hits asked for beyond k: the engine cuts equal scores at random, we cut them by id."""

_NOT_OURS = "something else writes to this collection, or it is damaged: ingest into a new one"

_SHORTLIST_PER_HIT = 4
_SHORTLIST_LEAST = 64


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


def collection_config(schema: StoreSchema, *, hnsw: int = 0) -> Json:
    """The body of the request that makes the collection.

    Args:
        schema: Its cuts become vectors, half precision, on disk.
        hnsw: Edges per node of a graph over the hash; 0 for none, then the hash is scanned.
    """
    vectors: Json = {
        vector_name(cut): {
            "size": cut,
            "distance": "Cosine",
            "datatype": "float16",
            "on_disk": True,
        }
        for cut in schema.cuts
    }
    bits = {"always_ram": True, "query_encoding": "scalar8bits"}
    vectors[_HASH] = {
        "size": BITS,
        "distance": "Dot",
        "on_disk": True,
        "quantization_config": {"binary": bits},
        "hnsw_config": {"m": hnsw},
    }
    return {"vectors": vectors, "hnsw_config": {"m": 0}, "on_disk_payload": True}


def points_of(records: Records, schema: StoreSchema) -> Points:
    """Records as points.

    Raises:
        StoreError: an id is no UUID, or a value has no exact form in JSON, or in Qdrant.
    """
    vectors = {vector_name(cut): cut_vectors(records.vectors, cut) for cut in schema.cuts}
    vectors[_HASH] = signs(records.codes)
    payloads = [_payload(records, row) for row in range(len(records))]
    for payload, code in zip(payloads, to_hex(records.codes), strict=True):
        payload[_HASH] = code
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


def searches(
    queries: QueryBatch, plan: SearchPlan, schema: StoreSchema, where: Json | None
) -> list[Json]:
    """One request for each query: hash, then each cut of the plan that is stored.

    An exact search compares at the last cut alone. Where that one is not stored, the points come
    with their vectors instead, to be compared by the caller.
    """
    exact = plan.candidates == "exact"
    wanted = plan.cuts[-1:] if exact else plan.cuts
    units = {cut: cut_vectors(queries.vectors, cut) for cut in wanted if cut in schema.cuts}
    output: Json = {"with_payload": HIT_FIELDS}
    if plan.cuts[-1] not in units:
        output["with_vector"] = [vector_name(schema.dim)]
    requests = []
    for row in range(len(queries)):
        stages = [] if exact else [_hash_stage(queries.hash_logits[row], plan)]
        stages += [_cut_stage(unit[row], cut, plan) for cut, unit in units.items()]
        stages[0]["filter"] = where
        if exact:
            stages[0]["params"] = {"exact": True}
        requests.append(_nested(stages) | output)
    return requests


def _hash_stage(logits: Floats, plan: SearchPlan) -> Json:
    return {
        "query": {"nearest": logits.tolist()},
        "using": _HASH,
        "limit": max(int(plan.candidates), plan.k),
        "params": {"quantization": {"rescore": False}},
    }


def _cut_stage(unit: Floats, cut: int, plan: SearchPlan) -> Json:
    last = cut == plan.cuts[-1]
    limit = plan.k + _SPARE if last else max(_SHORTLIST_PER_HIT * plan.k, _SHORTLIST_LEAST)
    return {"query": {"nearest": unit.tolist()}, "using": vector_name(cut), "limit": limit}


def _nested(stages: list[Json]) -> Json:
    request, *rest = stages
    for stage in rest:
        request = stage | {"prefetch": [request]}
    return request
