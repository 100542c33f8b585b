"""The settings of an ingest that its store keeps (meta value "ingest"), for `verify` to use."""

from __future__ import annotations

from nexus_vdb.interfaces import Store
from nexus_vdb.settings import Settings

__all__ = ["KEPT", "keep_settings"]

KEPT = (
    "id_field",
    "text_field",
    "title_field",
    "vector_field",
    "chunk_tokens",
    "chunk_overlap",
)


def keep_settings(store: Store, settings: Settings) -> None:
    """Keep what decides the records of a corpus, besides the model; written only if it is new."""
    kept = {name: getattr(settings, name) for name in KEPT}
    if store.info().meta.get("ingest") != kept:
        store.set_meta("ingest", kept)
