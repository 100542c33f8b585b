"""The settings that a store keeps of its ingest (meta value "ingest") for the next and `verify`."""

from __future__ import annotations

from typing import TypeVar

from nexus_vdb.interfaces import Store
from nexus_vdb.settings import Settings

__all__ = ["KEPT", "as_filled", "keep_settings"]

AnySettings = TypeVar("AnySettings", bound=Settings)

_CHUNKS = ("chunk_tokens", "chunk_overlap")

KEPT = ("id_field", "text_field", "title_field", "vector_field", *_CHUNKS)


def keep_settings(store: Store, settings: Settings) -> None:
    """Keep what decides the records of a corpus, besides the model; written only if it is new."""
    kept = {name: getattr(settings, name) for name in KEPT}
    if store.info().meta.get("ingest") != kept:
        store.set_meta("ingest", kept)


def as_filled(store: Store, settings: AnySettings) -> AnySettings:
    """Chunks as long as those in the store where nothing else is said: other ones are all new."""
    kept = store.info().meta.get("ingest") or {}
    unsaid = [name for name in _CHUNKS if name not in settings.model_fields_set]
    return settings.model_copy(update={name: kept[name] for name in unsaid if name in kept})
