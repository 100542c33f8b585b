"""Filters over the metadata of one segment: the asked-for field as flat columns, then row masks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_segment import Segment
from nexus_vdb.filters import (
    And,
    Eq,
    Exists,
    Filter,
    In,
    Not,
    Or,
    Range,
    Scalar,
    matches,
    parse_date,
    values_at,
)

__all__ = ["FilterColumns"]

Path: TypeAlias = tuple[str, ...]
Mask: TypeAlias = npt.NDArray[np.bool_]

_KEPT = 16
"""Columns of a segment that stay in memory, at some 4 to 20 bytes a value."""

_EXACT = 2**53
"""Below this, float64 holds every integer."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NO_DATE = np.iinfo(np.int64).min


class FilterColumns:
    """Row masks of one segment; columns are made on first use and some of them kept."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._columns: dict[Path, _Column] = {}

    def mask(self, where: Filter) -> Mask:
        """Which rows of the segment match, dead ones included, bool `[n]`."""
        missing = _paths(where) - self._columns.keys()
        made = {path: _Column(self._segment.rows) for path in missing}
        if made:
            texts = chain.from_iterable(
                one.to_pylist() for one in self._segment.table.arrays("metadata")
            )
            for row, metadata in enumerate(map(json.loads, texts)):
                for path, column in made.items():
                    column.add(row, values_at(metadata, path))
        columns = self._columns | {path: column.freeze() for path, column in made.items()}
        self._columns = dict(list(columns.items())[-_KEPT:])
        return _evaluate(where, columns)


def _paths(where: Filter) -> set[Path]:
    if isinstance(where, And | Or):
        return set().union(*(_paths(part) for part in where.parts))
    return _paths(where.part) if isinstance(where, Not) else {where.path}


def _evaluate(where: Filter, columns: dict[Path, _Column]) -> Mask:
    if isinstance(where, And):
        return np.asarray(np.all([_evaluate(part, columns) for part in where.parts], axis=0))
    if isinstance(where, Or):
        return np.asarray(np.any([_evaluate(part, columns) for part in where.parts], axis=0))
    if isinstance(where, Not):
        return ~_evaluate(where.part, columns)
    return columns[where.path].mask(where)


class _Column:
    """The values at one path: for each type their rows beside them, lists flattened."""

    def __init__(self, rows: int) -> None:
        self._exists = np.zeros(rows, dtype=bool)
        self._numbers = _Values(np.float64)
        self._booleans = _Values(np.bool_)
        self._strings = _Values(np.int64)
        self._dates = _Values(np.int64)
        # Rows with a number that float64 may not hold: these are asked one by one.
        self._odd: dict[int, list[Any]] = {}

    def add(self, row: int, values: list[Any]) -> None:
        self._exists[row] = bool(values)
        for value in values:
            if isinstance(value, bool):
                self._booleans.add(row, value)
            elif isinstance(value, str):
                self._add_string(row, value)
            elif isinstance(value, int | float):
                if abs(value) >= _EXACT:
                    self._odd[row] = values
                else:
                    self._numbers.add(row, value)

    def _add_string(self, row: int, text: str) -> None:
        # Python's keyed 64-bit hash stands for the string: two that meet are not to be expected.
        self._strings.add(row, hash(text))
        date = parse_date(text)
        if date is not None:
            self._dates.add(row, _microseconds(date))

    def freeze(self) -> _Column:
        for values in (self._numbers, self._booleans, self._strings, self._dates):
            values.freeze()
        return self

    def mask(self, leaf: Eq | In | Range | Exists) -> Mask:
        if isinstance(leaf, Exists):
            return self._exists.copy()
        mask = np.zeros(len(self._exists), dtype=bool)
        if isinstance(leaf, Range):
            values = self._dates if leaf.is_date else self._numbers
            mask[values.between(leaf)] = True
        else:
            self._mark_equal(leaf.values if isinstance(leaf, In) else (leaf.value,), mask)
        flat = _replaced(leaf)
        for row, odd in self._odd.items():
            mask[row] = matches(flat, {"": odd})
        return mask

    def _mark_equal(self, wanted: Iterable[Scalar], mask: Mask) -> None:
        wanted = list(wanted)
        mask[self._booleans.among([one for one in wanted if isinstance(one, bool)])] = True
        mask[self._strings.among([hash(one) for one in wanted if isinstance(one, str)])] = True
        numbers = [one for one in wanted if not isinstance(one, bool | str)]
        mask[self._numbers.among([float(_clamped(one)) for one in numbers])] = True


def _replaced(leaf: Eq | In | Range) -> Filter:
    if isinstance(leaf, Eq):
        return Eq(("",), leaf.value)
    if isinstance(leaf, In):
        return In(("",), leaf.values)
    return Range(("",), leaf.gt, leaf.gte, leaf.lt, leaf.lte)


class _Values:
    """Values of one type and the row of each; lists first, arrays once frozen."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind = kind
        self._row_list: list[int] = []
        self._value_list: list[Any] = []

    def add(self, row: int, value: Any) -> None:
        self._row_list.append(row)
        self._value_list.append(value)

    def freeze(self) -> None:
        self._rows = np.array(self._row_list, dtype=np.int32)
        self._values = np.array(self._value_list, dtype=self._kind)
        self._row_list, self._value_list = [], []

    def among(self, wanted: list[Any]) -> npt.NDArray[np.int32]:
        if not wanted:
            return self._rows[:0]
        return self._rows[np.isin(self._values, np.array(wanted, dtype=self._kind))]

    def between(self, part: Range) -> npt.NDArray[np.int32]:
        inside = np.ones(len(self._values), dtype=bool)
        if part.gt is not None:
            inside &= self._values > _bound(part.gt)
        if part.gte is not None:
            inside &= self._values >= _bound(part.gte)
        if part.lt is not None:
            inside &= self._values < _bound(part.lt)
        if part.lte is not None:
            inside &= self._values <= _bound(part.lte)
        return self._rows[inside]


def _bound(bound: float | datetime) -> float:
    return _microseconds(bound) if isinstance(bound, datetime) else _clamped(bound)


def _clamped(number: float) -> float:
    # All numbers of a column are nearer to zero than this, so the comparison stays the same.
    return max(-_EXACT, min(_EXACT, number))


def _microseconds(date: datetime) -> int:
    return (date - _EPOCH) // timedelta(microseconds=1)
