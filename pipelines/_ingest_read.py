"""The first stage of an ingest: from a source to batches of documents."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_vdb.errors import ConfigError
from nexus_vdb.interfaces import BadRow, Source, SupportsVectors
from nexus_vdb.pipelines._ingest_stages import Batch

__all__ = ["read_batches"]

_READ = 512  # documents asked for in one call
_READ_VECTORS = 2048
"""With ready-made vectors: while that many are compared with the store, as many can be written."""


def read_batches(
    source: Source, vector_field: str | None, on_bad_row: BadRow, *, batch_size: int = 0
) -> Iterator[Batch]:
    """Documents, and their vectors where a field has them.

    Args:
        source: Is read once.
        vector_field: None for documents alone.
        on_bad_row: Told of rows that are no documents.
        batch_size: Most documents of a batch; by default what suits an ingest.

    Raises:
        SourceError: see `Source.read`.
        ConfigError: the source has no vectors.
    """
    if vector_field is None:
        for documents in source.read(batch_size=batch_size or _READ, on_bad_row=on_bad_row):
            yield documents, None
    elif isinstance(source, SupportsVectors):
        yield from source.read_with_vectors(
            batch_size=batch_size or _READ_VECTORS, on_bad_row=on_bad_row
        )
    else:
        raise ConfigError("this source has no ready-made vectors", hint="drop --vector-field")
