"""Requests of Qdrant's REST interface, as far as this project makes them, for the edge engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nexus_vdb.connectors._qdrant_filter import Json
from nexus_vdb.connectors._qdrant_points import HASH
from nexus_vdb.errors import MissingExtra
from nexus_vdb.types import Floats

try:
    import qdrant_edge as engine
except ImportError as error:
    raise MissingExtra("qdrant-edge-py", extra="edge") from error

__all__ = ["edge_config", "edge_filter", "edge_index", "edge_query", "edge_recoding", "engine"]

_DISTANCES = {"Cosine": engine.Distance.Cosine, "Dot": engine.Distance.Dot}
_DATATYPES = {
    "float16": engine.VectorStorageDatatype.Float16,
    "float32": engine.VectorStorageDatatype.Float32,
}
_ENCODINGS = {"scalar8bits": engine.BinaryQuantizationQueryEncoding.Scalar8Bits}
_INDEXES = {
    "keyword": engine.KeywordIndexParams,
    "float": engine.FloatIndexParams,
    "bool": engine.BoolIndexParams,
    "datetime": engine.DatetimeIndexParams,
}


def edge_config(body: Json) -> Any:
    """The body that makes a collection, as the configuration of a shard."""
    return engine.EdgeConfig(
        vectors={name: _vector(value) for name, value in body["vectors"].items()},
        hnsw_config=_graph(body["hnsw_config"]),
        payload_memory=_memory(on_disk=body["on_disk_payload"]),
    )


def _vector(value: Json) -> Any:
    graph, bits = value.get("hnsw_config"), value.get("quantization_config")
    return engine.EdgeVectorParams(
        size=value["size"],
        distance=_DISTANCES[value["distance"]],
        datatype=_DATATYPES[value.get("datatype") or "float32"],
        memory=_memory(on_disk=value["on_disk"]),
        hnsw_config=_graph(graph) if graph else None,
        quantization_config=_bits(bits["binary"]) if bits else None,
    )


def _memory(*, on_disk: bool) -> Any:
    return engine.Memory.Cold if on_disk else engine.Memory.Cached


def _graph(value: Json) -> Any:
    return engine.HnswIndexConfig(m=value["m"], ef_construct=100, full_scan_threshold=10_000)


def _bits(value: Json) -> Any:
    return engine.BinaryQuantizationConfig(
        memory=engine.Memory.Pinned if value["always_ram"] else engine.Memory.Cold,
        query_encoding=_ENCODINGS[value["query_encoding"]],
    )


def edge_index(field: str, schema: Json) -> Any:
    """The operation that makes a payload index."""
    params = _INDEXES[schema["type"]](on_disk=schema["on_disk"])
    return engine.UpdateOperation.create_field_index(field, params)


def edge_recoding(changes: Mapping[str, tuple[Floats, str]]) -> list[Any]:
    """The operations that give points new hash vectors and hex digits."""
    vectors = [
        engine.PointVectors(id_, {HASH: vector.tolist()}) for id_, (vector, _) in changes.items()
    ]
    texts = (
        engine.UpdateOperation.set_payload([id_], {HASH: text})
        for id_, (_, text) in changes.items()
    )
    return [engine.UpdateOperation.update_vectors(vectors), *texts]


def edge_filter(value: Json | None) -> Any:
    """A filter, or None."""
    if value is None:
        return None
    return engine.Filter(
        must=_conditions(value.get("must")),
        should=_conditions(value.get("should")),
        must_not=_conditions(value.get("must_not")),
    )


def _conditions(values: list[Json] | None) -> list[Any] | None:
    return [_condition(one) for one in values] if values else None


def _condition(value: Json) -> Any:
    if "key" in value:
        return _field_condition(value)
    for name, make in _CONDITIONS.items():
        if name in value:
            return make(value[name])
    return edge_filter(value)


_CONDITIONS: Mapping[str, Callable[[Any], Any]] = {
    "has_id": lambda ids: engine.HasIdCondition(set(ids)),
    "is_empty": lambda field: engine.IsEmptyCondition(field["key"]),
}


def _field_condition(value: Json) -> Any:
    if match := value.get("match"):
        if "any" in match:
            return engine.FieldCondition(value["key"], match=engine.MatchAny(match["any"]))
        wanted = match["value"]
        # The engine takes Python's booleans for integers, but not numpy's.
        exact: Any = np.bool_(wanted) if isinstance(wanted, bool) else wanted
        return engine.FieldCondition(value["key"], match=engine.MatchValue(exact))
    bounds = {name: bound for name, bound in value["range"].items() if bound is not None}
    dates = any(isinstance(bound, str) for bound in bounds.values())
    make = engine.RangeDateTime if dates else engine.RangeFloat
    return engine.FieldCondition(value["key"], range=make(**bounds))


def edge_query(body: Json) -> Any:
    """A search with all its stages."""
    return engine.QueryRequest(
        **_stage(body),
        with_payload=body.get("with_payload", False),
        with_vector=body.get("with_vector", False),
    )


def _stage(body: Json) -> dict[str, Any]:
    inner = body.get("prefetch")
    inner = [inner] if isinstance(inner, dict) else inner
    return {
        "limit": body["limit"],
        "query": _scoring(body),
        "prefetches": [engine.Prefetch(**_stage(one)) for one in inner or []],
        "filter": edge_filter(body.get("filter")),
        "params": _params(body.get("params")),
    }


def _scoring(body: Json) -> Any:
    if "sample" in body["query"]:
        return engine.Sample.Random
    return engine.Query.Nearest(body["query"]["nearest"], using=body["using"])


def _params(value: Json | None) -> Any:
    if value is None:
        return None
    bits = value.get("quantization")
    return engine.SearchParams(
        exact=bool(value.get("exact")),
        hnsw_ef=value.get("hnsw_ef"),
        quantization=engine.QuantizationSearchParams(rescore=bits.get("rescore")) if bits else None,
    )
