"""The end of an ingest: a store that was filled is made ready to be searched."""

from __future__ import annotations

from nexus_vdb.interfaces import Encoder, Store, SupportsOptimize
from nexus_vdb.tuning import tune

__all__ = ["finish"]

_TIDY = 5  # a store that has grown by a fifth is worth tidying up


def finish(store: Store, encoder: Encoder | None, *, written: int) -> None:
    """Tidy up the store, choose its hash and measure it, where that is worth the time.

    Args:
        store: Holds everything that the ingest wrote.
        encoder: The model that filled it; none for ready-made vectors.
        written: Records written.
    """
    if isinstance(store, SupportsOptimize) and written * _TIDY > store.count():
        store.optimize()
    tune(store, encoder)
