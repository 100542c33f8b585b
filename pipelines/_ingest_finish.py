"""The end of an ingest: a store that was filled is made ready to be searched."""

from __future__ import annotations

import logging

from nexus_vdb.interfaces import Encoder, Store, SupportsOptimize
from nexus_vdb.tuning import tune

__all__ = ["finish", "reconcile"]

_log = logging.getLogger("nexus_vdb.pipelines.ingest")

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


def reconcile(store: Store, expected: int) -> None:
    """Warn where a store does not hold as many records as the ingest has left there.

    No error, for others may write to it at the same time.
    """
    found = store.count()
    if found != expected:
        _log.warning(
            "%s holds %d records, %d were expected: unless somebody else writes to it, "
            "writes were lost; the same command again makes up for them",
            store.info().url,
            found,
            expected,
        )
