"""Filters over the metadata of one segment: the asked-for fields as columns, then row masks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nexus_vdb.connectors._faiss_columns import Column, Path, Texts
from nexus_vdb.connectors._faiss_halves import Mask
from nexus_vdb.connectors._faiss_segment import Segment
from nexus_vdb.filters import And, Filter, Not, Or

__all__ = ["FilterColumns"]

_KEPT = 16
"""Columns of a segment that stay in memory, at some 4 to 20 bytes a value."""


class FilterColumns:
    """Row masks of one segment; columns are made on first use and some of them kept."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._columns: dict[Path, Column] = {}

    def mask(self, where: Filter) -> Mask:
        """Which rows of the segment match, dead ones included, bool `[n]`."""
        made = {path: Column(path) for path in _paths(where) - self._columns.keys()}
        for array in self._segment.table.arrays("metadata") if made else ():
            texts = Texts(array, self._segment.decode)
            for column in made.values():
                column.add(texts)
        columns = self._columns | {path: column.freeze() for path, column in made.items()}
        self._columns = dict(list(columns.items())[-_KEPT:])
        return _evaluate(where, columns, self._segment.rows)


def _paths(where: Filter) -> set[Path]:
    if isinstance(where, And | Or):
        return set().union(*(_paths(part) for part in where.parts))
    return _paths(where.part) if isinstance(where, Not) else {where.path}


def _evaluate(where: Filter, columns: Mapping[Path, Column], rows: int) -> Mask:
    if isinstance(where, And | Or):
        every = isinstance(where, And)
        mask = np.full(rows, every)
        for part in where.parts:
            found = _evaluate(part, columns, rows)
            mask = mask & found if every else mask | found
        return mask
    if isinstance(where, Not):
        return ~_evaluate(where.part, columns, rows)
    return columns[where.path].mask(where)
