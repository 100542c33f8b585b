"""The first stage of an ingest: from a source to batches of documents."""

from __future__ import annotations

from collections.abc import Iterator

from nexus_vdb.errors import ConfigError
from nexus_vdb.interfaces import BadRow, Source, SupportsVectors
from nexus_vdb.pipelines._ingest_stages import Batch

__all__ = ["read_batches"]

_READ = 512  # documents asked for in one call


def read_batches(
    source: Source, vector_field: str | None, on_bad_row: BadRow, *, batch_size: int = _READ
) -> Iterator[Batch]:
    """Documents, and their vectors where a field has them, at most `batch_size` in one batch.

    Raises:
        SourceError: see `Source.read`.
        ConfigError: the source has no vectors.
    """
    if vector_field is None:
        for documents in source.read(batch_size=batch_size, on_bad_row=on_bad_row):
            yield documents, None
    elif isinstance(source, SupportsVectors):
        yield from source.read_with_vectors(batch_size=batch_size, on_bad_row=on_bad_row)
    else:
        raise ConfigError("this source has no ready-made vectors", hint="drop --vector-field")
