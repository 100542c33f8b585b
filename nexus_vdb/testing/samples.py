"""Records, queries and filters to test stores with: deterministic, and odd where data is odd."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_vdb.hashing import BITS, pack
from nexus_vdb.types import Floats, Metadata, QueryBatch, Records

__all__ = ["SAMPLE_FILTERS", "sample_id", "sample_metadata", "sample_queries", "sample_records"]

_NAMESPACE = uuid.UUID("6f0c1a52-9a0e-4d0b-8f6a-5d1f3f0a7c11")
_CLUSTERS = 20
_MIXED: list[Any] = [1, True, "1", 1.0, "true", None, [], [1, "1"], 0, False]
_DATES = [
    "2019-02-28",
    "2020-06-01T12:00:00Z",
    "2020-06-01T14:30:00+02:00",
    "2021-12-31T23:59:59",
    "2022-01-01T00:30:00+01:00",
    "spring 2020",
]

SAMPLE_FILTERS: list[dict[str, Any]] = [
    {"lang": "en"},
    {"lang": {"$eq": "de"}},
    {"lang": {"$ne": "en"}},
    {"lang": {"$in": ["en", "fr", "xx"]}},
    {"lang": {"$nin": ["en", "fr"]}},
    {"lang": {"$in": []}},
    {"lang": "EN"},
    {"year": 2003},
    {"year": 2003.0},
    {"year": {"$gte": 2005}},
    {"year": {"$gt": 2005, "$lte": 2009}},
    {"year": {"$lt": 2004.5}},
    {"year": {"$exists": False}},
    {"year": {"$not": {"$gte": 2005}}},
    {"score": {"$gt": -1.5, "$lt": 8}},
    {"score": -2.75},
    {"draft": True},
    {"draft": {"$ne": True}},
    {"tags": "red"},
    {"tags": {"$in": ["blue", "green"]}},
    {"tags": {"$ne": "red"}},
    {"tags": {"$exists": True}},
    {"tags": {"$exists": False}},
    {"sizes": {"$gte": 4, "$lt": 6}},
    {"author.name": "Ada"},
    {"author.address.city": "Zürich"},
    {"author": {"$exists": True}},
    {"author.address": {"$exists": False}},
    {"editors.name": "Ada"},
    {"mixed": 1},
    {"mixed": True},
    {"mixed": False},
    {"mixed": 0},
    {"mixed": "1"},
    {"mixed": {"$in": [True, "1"]}},
    {"mixed": {"$gte": 1}},
    {"mixed": {"$exists": False}},
    {"big": 2**53 - 3},
    {"published": {"$gte": "2020-06-01"}},
    {"published": {"$gt": "2020-06-01T12:00:00Z", "$lte": "2021-12-31T23:59:59Z"}},
    {"published": {"$lt": "2020-06-01T14:15:00+02:00"}},
    {"published": "spring 2020"},
    {"published": {"$not": {"$gte": "2020-01-01"}}},
    {"dotted\\.key": 1},
    {"dotted.key": {"$exists": True}},
    {"nothing": {"$exists": True}},
    {"nothing": {"$ne": 1}},
    {"blank": ""},
    {"lang": "en", "year": {"$gte": 2005}},
    {"$and": [{"lang": "en"}, {"tags": "red"}]},
    {"$or": [{"lang": "de"}, {"year": {"$lt": 2002}}]},
    {"$not": {"lang": "en"}},
    {"$not": {"$or": [{"lang": "en"}, {"tags": "red"}]}},
    {"$and": [{"$or": [{"lang": "en"}, {"lang": "fr"}]}, {"$not": {"draft": True}}]},
    {"$or": [{"$and": [{"year": {"$gte": 2003}}, {"year": {"$lt": 2006}}]}, {"tags": "green"}]},
]
"""`where` dicts: every operator, nesting, lists, dates, missing fields, mixed types."""


def sample_id(index: int, seed: int = 0) -> str:
    """The id of `sample_records(n, seed=seed)` at `index`."""
    return str(uuid.uuid5(_NAMESPACE, f"{seed}/{index}"))


def sample_metadata(index: int) -> Metadata:
    """Every kind of JSON value, some of them missing, null, empty or of changing type."""
    metadata: Metadata = {
        "lang": ["en", "de", "fr"][index % 3],
        "score": index * 0.25 - 3,
        "draft": index % 4 == 0,
        "tags": [["red", "blue"], ["green"], [], ["red"], ["blue", "green"]][index % 5],
        "sizes": [index % 7, 9],
        "author": {"name": ["Ada", "Émile"][index % 2], "address": {"city": "Zürich"}},
        "editors": [{"name": "Ada"}, {"name": "Bo"}],
        "mixed": _MIXED[index % len(_MIXED)],
        "published": _DATES[index % len(_DATES)],
        "big": 2**53 - index,
        "dotted.key": index % 2,
        "text": "naïve 東京 🚀 \u0000 line\nbreak",
        "blank": "",
        "null": None,
        "object": {},
        "nested": [[1, 2], {"a": [None, 0.1]}],
        "index": index,
    }
    if index % 11:
        metadata["year"] = 2000 + index % 13
    if index % 7 == 0:
        metadata["author"] = None
    return metadata


def sample_records(n: int, seed: int = 0, dim: int = 768) -> Records:
    """Records with clustered unit vectors float32 `[n, dim]`, three chunks to a document."""
    vectors, logits = _points(n, seed, dim)
    return Records(
        ids=[sample_id(index, seed) for index in range(n)],
        document_ids=[f"doc/{seed}/{index // 3}" for index in range(n)],
        ordinals=np.arange(n, dtype=np.int32) % 3,
        texts=[f"Text {index} of {seed}: naïve 東京 🚀\n" * (index % 4) for index in range(n)],
        metadata=[sample_metadata(index) for index in range(n)],
        content_hashes=[
            hashlib.sha256(f"{seed}/{index // 3}".encode()).hexdigest() for index in range(n)
        ],
        vectors=vectors,
        codes=pack(logits),
    )


def sample_queries(n: int, seed: int = 1000, dim: int = 768) -> QueryBatch:
    """Queries from the clusters that `sample_records` draws from."""
    vectors, logits = _points(n, seed, dim)
    return QueryBatch(vectors, logits, pack(logits))


def _points(n: int, seed: int, dim: int) -> tuple[Floats, Floats]:
    fixed = np.random.default_rng(dim)
    centres = _normal(fixed, _CLUSTERS, dim)
    planes = _normal(fixed, dim, BITS)
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(_CLUSTERS, size=n)] + _normal(random, n, dim) * 0.8
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = vectors.astype(np.float32)
    return unit, unit @ planes


def _normal(random: np.random.Generator, rows: int, columns: int) -> Floats:
    return random.standard_normal((rows, columns), dtype=np.float32)
