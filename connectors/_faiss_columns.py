"""One metadata field of a segment as flat columns, read from the JSON of its rows.

Arrow parses JSON ten times as fast as Python, but takes one type for all rows only. So each batch
is tried with the likely types; one that has several, or what Arrow does not read, is left to
Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from nexus_vdb.connectors._faiss_halves import Mask
from nexus_vdb.filters import (
    Eq,
    Exists,
    Filter,
    In,
    Range,
    Scalar,
    matches,
    parse_date,
    values_at,
)
from nexus_vdb.ranking import Rows
from nexus_vdb.types import Metadata

__all__ = ["Column", "Path", "Texts"]

Path: TypeAlias = tuple[str, ...]

_SCALARS = (pa.string(), pa.float64(), pa.bool_(), pa.struct([]))
_KINDS = (*_SCALARS, *(pa.list_(kind) for kind in _SCALARS))
"""What a field may be in a whole batch; numbers that float64 does not hold are read by Python."""

_MOST = 1 << 30
"""Bytes of a batch that Arrow may parse in one piece."""

_EXACT = 2**53
"""Below this, float64 holds every integer."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Texts:
    """The metadata of one batch, parsed when first needed.

    Args:
        array: Arrow strings, each a JSON object.
        decode: What makes a dict of one.
    """

    def __init__(self, array: Any, decode: Callable[[str], Metadata]) -> None:
        self._array, self._decode = array, decode

    def __len__(self) -> int:
        return len(self._array)

    def values(self, path: Path, row: int) -> list[Any]:
        """What stands at a path in one row."""
        return values_at(self._decode(self._array[row].as_py()), path)

    def all_values(self, path: Path) -> list[list[Any]]:
        """What stands at a path, row by row."""
        # Kept no longer than needed: a million dicts at once are slow to make.
        return [values_at(self._decode(text), path) for text in self._array.to_pylist()]

    def read(self, path: Path, kind: Any) -> Any | None:
        """The values at a path as an Arrow array; None if they are not all of that kind."""
        lines = self._lines
        if lines.size >= _MOST:
            return None
        try:
            for key in reversed(path):
                kind = pa.struct([(key, kind)])
            table = pa_json.read_json(
                pa.BufferReader(lines),
                read_options=pa_json.ReadOptions(use_threads=False, block_size=lines.size + 1),
                parse_options=pa_json.ParseOptions(
                    explicit_schema=pa.schema(kind), unexpected_field_behavior="ignore"
                ),
            )
        except (pa.ArrowException, UnicodeError):  # half of a surrogate pair is no Unicode
            return None
        if len(table) != len(self):
            return None
        array = table.column(0).combine_chunks()
        for number in range(1, len(path)):
            array = pc.struct_field(array, path[number])
        return array

    @cached_property
    def _lines(self) -> Any:
        empty, end = (pa.scalar(one, pa.large_string()) for one in ("", "\n"))
        joined = pc.binary_join_element_wise(self._array, empty, end)
        _, ends, content = joined.buffers()
        return content.slice(0, int(np.frombuffer(ends, "<i8")[len(joined)]))


class Column:
    """The values at one path: for each type their rows beside them, lists flattened.

    Args:
        path: Keys.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kind = _KINDS[0]
        self._numbers = _Values(np.float64)
        self._booleans = _Values(np.bool_)
        self._strings = _Values(np.int64)
        self._dates = _Values(np.int64)
        # Rows with a number that float64 may not hold: these are asked one by one.
        self._odd: dict[int, list[Any]] = {}
        self._rows = 0
        self._parts: list[Mask] = []

    # Reading

    def add(self, texts: Texts) -> None:
        """The next rows."""
        self._parts.append(self._add(self._rows, texts))
        self._rows += len(texts)

    def freeze(self) -> Column:
        """All rows are there: be ready to be asked."""
        self._exists = np.concatenate([np.zeros(0, dtype=bool), *self._parts])
        self._parts = []
        for values in (self._numbers, self._booleans, self._strings, self._dates):
            values.freeze()
        return self

    def _add(self, first: int, texts: Texts) -> Mask:
        for kind in sorted(_KINDS, key=lambda one: one != self._kind):
            array = texts.read(self._path, kind)
            if array is not None:
                self._kind = kind
                return self._add_array(first, array, texts)
        found = texts.all_values(self._path)
        self._add_mixed(first, found)
        return np.array([bool(values) for values in found], dtype=bool)

    def _add_array(self, first: int, array: Any, texts: Texts) -> Mask:
        exists = np.asarray(array.is_valid())
        rows = np.arange(len(array))
        if pa.types.is_list(array.type):
            lengths = array.value_lengths().fill_null(0).to_numpy()
            rows, array, exists = np.repeat(rows, lengths), array.flatten(), lengths > 0
        rows, array = rows[np.asarray(array.is_valid())], array.drop_null()
        if pa.types.is_string(array.type):
            self._add_strings(rows + first, array)
        elif pa.types.is_boolean(array.type):
            self._booleans.add(rows + first, np.asarray(array))
        elif pa.types.is_floating(array.type):
            numbers = array.to_numpy()
            large = np.abs(numbers) >= _EXACT
            for row in np.unique(rows[large]).tolist():
                self._odd[row + first] = texts.values(self._path, row)
            self._numbers.add(rows[~large] + first, numbers[~large])
        return exists

    def _add_strings(self, rows: Rows, array: Any) -> None:
        encoded = array.dictionary_encode()
        which, different = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        # Python's keyed 64-bit hash stands for the string: two that meet are not to be expected.
        self._strings.add(rows, np.array([hash(text) for text in different], np.int64)[which])
        dates = [parse_date(text) for text in different]
        if any(dates):
            dated = np.array([date is not None for date in dates])[which]
            instants = np.array([_microseconds(date or _EPOCH) for date in dates], np.int64)
            self._dates.add(rows[dated], instants[which[dated]])

    def _add_mixed(self, first: int, found: list[list[Any]]) -> None:
        strings, numbers, booleans = [], [], []
        for row, values in enumerate(found, first):
            for value in values:
                if isinstance(value, bool):
                    booleans.append((row, value))
                elif isinstance(value, str):
                    strings.append((row, value))
                elif isinstance(value, int | float):
                    if abs(value) >= _EXACT:
                        self._odd[row] = values
                    else:
                        numbers.append((row, value))
        self._booleans.add_pairs(booleans)
        self._numbers.add_pairs(numbers)
        self._strings.add_pairs([(row, hash(text)) for row, text in strings])
        dates = [(row, parse_date(text)) for row, text in strings]
        self._dates.add_pairs([(row, _microseconds(date)) for row, date in dates if date])

    # Asking

    def mask(self, leaf: Eq | In | Range | Exists) -> Mask:
        """Which rows satisfy a condition on the field, bool `[n]`."""
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
    """Values of one type and the row of each: parts first, arrays once frozen."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind = kind
        self._parts: list[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]] = []

    def add(self, rows: Rows, values: npt.NDArray[Any]) -> None:
        self._parts.append((rows.astype(np.int32), values.astype(self._kind)))

    def add_pairs(self, pairs: list[tuple[int, Any]]) -> None:
        rows = np.array([row for row, _ in pairs], dtype=np.int64)
        self.add(rows, np.array([value for _, value in pairs], dtype=self._kind))

    def freeze(self) -> None:
        none = np.zeros(0, np.int32), np.zeros(0, self._kind)
        rows, values = zip(none, *self._parts, strict=True)
        self._rows, self._values = np.concatenate(rows), np.concatenate(values)
        self._parts = []

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
