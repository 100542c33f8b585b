"""Which class serves which URL or file name. Upper floors are named by string and imported on use.

Other distributions add theirs by entry points: group `nexus_vdb.stores` (name: URL scheme), group
`nexus_vdb.sources` (name: file suffix such as ".csv").
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import PurePosixPath
from typing import Any, cast

from nexus_vdb.errors import ConfigError, StoreCorrupt
from nexus_vdb.interfaces import Store, SupportsCheck
from nexus_vdb.types import StoreSchema

__all__ = [
    "check_store",
    "load_job",
    "open_store",
    "source_class",
    "source_suffixes",
    "store_schemes",
]

_STORES = {
    "faiss": "nexus_vdb.connectors.faiss:FaissStore",
    "memory": "nexus_vdb.connectors.memory:MemoryStore",
    "parquet": "nexus_vdb.connectors.parquet_store:ParquetStore",
    "qdrant": "nexus_vdb.connectors.qdrant:QdrantStore",
    "qdrants": "nexus_vdb.connectors.qdrant:QdrantStore",
    "qdrant-edge": "nexus_vdb.connectors.qdrant_edge:QdrantEdgeStore",
}

_SOURCES = {
    ".parquet": "nexus_vdb.connectors.parquet:ParquetSource",
    ".jsonl": "nexus_vdb.connectors.jsonl:JsonlSource",
    ".ndjson": "nexus_vdb.connectors.jsonl:JsonlSource",
}

_JOBS = {
    "copy": "nexus_vdb.pipelines.copy",
    "ingest": "nexus_vdb.pipelines.ingest",
}

_COMPRESSIONS = (".gz", ".zst")


@cache
def _known(group: str) -> dict[str, str]:
    built_in = _STORES if group == "nexus_vdb.stores" else _SOURCES
    return {entry.name: entry.value for entry in entry_points(group=group)} | built_in


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def store_schemes() -> list[str]:
    """Every URL scheme that has a store."""
    return sorted(_known("nexus_vdb.stores"))


def open_store(url: str, schema: StoreSchema | None = None) -> Store:
    """Open the store at a URL; make it if a schema is given and it is not there.

    Raises:
        ConfigError: no store serves that scheme.
        StoreNotFound: nothing is there, and no schema was given.
        StoreError: it is there but cannot be used; see the subclasses.
    """
    return cast(Store, _store_class(url).open(url, schema))


def check_store(url: str, progress: Callable[[int, int], None] | None = None) -> list[StoreCorrupt]:
    """See whether what a store keeps is still as it was written; see `SupportsCheck`.

    Raises:
        ConfigError: no store serves that scheme, or it cannot be checked.
        StoreNotFound: nothing is there.
    """
    kind = _store_class(url)
    if not isinstance(kind, SupportsCheck):
        raise ConfigError(
            f"{url} cannot be checked: {kind.__name__} keeps no checksums",
            hint="nexus-vdb verify compares a store with its corpus",
        )
    return kind.check(url, progress)


def _store_class(url: str) -> Any:
    scheme, separator, _ = url.partition("://")
    target = _known("nexus_vdb.stores").get(scheme)
    if not separator or target is None:
        raise ConfigError(
            f"no store for {url!r}",
            hint="a store URL starts with one of: "
            + ", ".join(f"{name}://" for name in store_schemes()),
        )
    return _load(target)


def load_job(name: str) -> Any:
    """The pipeline module behind a method of `Collection`, which stands below it."""
    return importlib.import_module(_JOBS[name])


def source_suffixes() -> list[str]:
    """Every file suffix that has a source; each may be followed by .gz or .zst."""
    return sorted(_known("nexus_vdb.sources"))


def source_class(path: str) -> Any:
    """The source class for a file, by its suffix (a trailing .gz or .zst is looked past).

    Raises:
        ConfigError: no source serves that suffix.
    """
    name = PurePosixPath(path).name.lower()
    for ending in _COMPRESSIONS:
        name = name.removesuffix(ending)
    target = _known("nexus_vdb.sources").get(PurePosixPath(name).suffix)
    if target is None:
        raise ConfigError(
            f"no source for {path!r}",
            hint=f"files must end in one of: {', '.join(source_suffixes())}",
        )
    return _load(target)
