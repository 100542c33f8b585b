"""Semantic search over your own files: embed, hash and rerank, on FAISS or Qdrant.

import nexus_vdb as nx
docs = nx.open("faiss://./index")
docs.ingest("corpus/*.parquet")
docs.search("which drugs lower blood pressure", k=5)
"""

from nexus_vdb.aio import AsyncCollection
from nexus_vdb.collection import Collection, open
from nexus_vdb.errors import (
    ConfigError,
    DimensionMismatch,
    FilterError,
    FingerprintMismatch,
    MissingExtra,
    ModelError,
    NexusError,
    SourceError,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreNotFound,
    StoreUnavailable,
)
from nexus_vdb.hits import Hits
from nexus_vdb.registry import open_store
from nexus_vdb.types import (
    Chunk,
    Document,
    Hit,
    QueryBatch,
    Records,
    SearchPlan,
    StoreInfo,
    StoreSchema,
)

__all__ = [
    "AsyncCollection",
    "Chunk",
    "Collection",
    "ConfigError",
    "DimensionMismatch",
    "Document",
    "FilterError",
    "FingerprintMismatch",
    "Hit",
    "Hits",
    "MissingExtra",
    "ModelError",
    "NexusError",
    "QueryBatch",
    "Records",
    "SearchPlan",
    "SourceError",
    "StoreCorrupt",
    "StoreError",
    "StoreInfo",
    "StoreLocked",
    "StoreNotFound",
    "StoreSchema",
    "StoreUnavailable",
    "open",
    "open_store",
]
