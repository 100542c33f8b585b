"""Requests of Qdrant's REST interface, as far as this project makes them, for the edge engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nexus_vdb.connectors._qdrant_filter import Json
from nexus_vdb.errors import MissingExtra

try:
    import qdrant_edge as engine
except ImportError as error:
    raise MissingExtra("qdrant-edge-py", extra="edge") from error

__all__ = ["edge_config", "edge_filter", "edge_index", "edge_query", "engine"]

_DISTANCES = {"Cosine": engine.Distance.Cosine, "Dot": engine.Distance.Dot}
_DATATYPES = {
    "float16": engine.VectorStorageDatatype.Float16,
    "float32": engine.VectorStorageDatatype.Float32,
}
_ENCODINGS = {"scalar8bits": engine.BinaryQuantizationQueryEncoding.Scalar8Bits}
_INDEXES = {"keyword": engine.KeywordIndexParams}


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


def edge_index(field: str, kind: str) -> Any:
    """The operation that makes a payload index."""
    return engine.UpdateOperation.create_field_index(field, _INDEXES[kind]())


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
        "query": engine.Query.Nearest(body["query"]["nearest"], using=body["using"]),
        "prefetches": [engine.Prefetch(**_stage(one)) for one in inner or []],
        "filter": edge_filter(body.get("filter")),
        "params": _params(body.get("params")),
    }


def _params(value: Json | None) -> Any:
    if value is None:
        return None
    bits = value.get("quantization")
    return engine.SearchParams(
        exact=bool(value.get("exact")),
        quantization=engine.QuantizationSearchParams(rescore=bits.get("rescore")) if bits else None,
    )
