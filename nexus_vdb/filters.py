"""`where={…}`: parsed into a small typed tree that every store gives the same meaning.

    {"year": 2020}                           equality; a list matches if it contains the value
    {"year": {"$gte": 2018, "$lt": 2021}}    numbers, or dates as ISO 8601 strings
    {"lang": {"$in": ["en", "de"]}, "draft": {"$ne": True}}          all keys must hold
    {"$or": [{"author.name": "Ada"}, {"author": {"$exists": False}}]}

Meaning, the same everywhere:

- A key is a path of dict keys joined by dots; a backslash keeps a dot inside a key.
- A missing field, `null` and `[]` are the same: they equal nothing, lie in no range, do not exist.
- Strings, numbers and booleans never equal one another: `True` is not 1, but 1 equals 1.0.
- A list matches a condition if any of its elements does; elements that are lists are not entered.
- Dates are compared as instants; one without an offset is taken as UTC.
- `$ne`, `$nin` and `$not` are the exact complement, so they also match where the field is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

from nexus_vdb.errors import FilterError
from nexus_vdb.types import Metadata

__all__ = [
    "And",
    "Eq",
    "Exists",
    "Filter",
    "In",
    "Not",
    "Or",
    "Range",
    "Scalar",
    "matches",
    "parse_date",
    "parse_filter",
    "values_at",
]

Scalar: TypeAlias = str | bool | int | float
Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Eq:
    """The field equals the value, or is a list with an element that does."""

    path: Path
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """The field, or an element of it, equals one of the values."""

    path: Path
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field, or an element of it, lies between the bounds: all numbers, or all datetimes."""

    path: Path
    gt: float | datetime | None = None
    gte: float | datetime | None = None
    lt: float | datetime | None = None
    lte: float | datetime | None = None

    @property
    def is_date(self) -> bool:
        """Whether the bounds are datetimes."""
        return any(isinstance(b, datetime) for b in (self.gt, self.gte, self.lt, self.lte))


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there, not null, and not an empty list."""

    path: Path


@dataclass(frozen=True, slots=True)
class And:
    """All of them hold."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of them holds at least."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    part: Filter


Filter: TypeAlias = Eq | In | Range | Exists | And | Or | Not

_BOUNDS = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS = ("$eq", "$ne", "$in", "$nin", *_BOUNDS, "$exists", "$not")


def parse_filter(where: Mapping[str, Any] | None) -> Filter | None:
    """The tree for a `where` dict; None for None or {}.

    Raises:
        FilterError: an operator is unknown or its operand is of the wrong type.
    """
    if where is None:
        return None
    if not isinstance(where, Mapping):
        raise FilterError(f'a filter is an object such as {{"year": 2020}}, not {where!r}')
    return _join([part for key, value in where.items() for part in _parse_entry(key, value)])


def _join(parts: list[Filter]) -> Filter | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return And(tuple(parts))


def _parse_entry(key: str, value: Any) -> list[Filter]:
    if key in ("$and", "$or"):
        if not isinstance(value, list) or not value:
            raise FilterError(f"{key} takes a list of filters, not {value!r}")
        parts = tuple(_required(part) for part in value)
        return [And(parts) if key == "$and" else Or(parts)]
    if key == "$not":
        return [Not(_required(value))]
    if key.startswith("$"):
        raise FilterError(f"unknown operator {key!r}; between filters stand $and, $or, $not")
    path = _parse_path(key)
    if not isinstance(value, Mapping):
        return [Eq(path, _scalar(key, value))]
    if not value:
        raise FilterError(f"{key}: an empty condition")
    bounds = {name: operand for name, operand in value.items() if name in _BOUNDS}
    found = [_range(path, key, bounds)] if bounds else []
    return found + [
        _condition(path, key, name, operand)
        for name, operand in value.items()
        if name not in _BOUNDS
    ]


def _required(where: Any) -> Filter:
    part = parse_filter(where)
    if part is None:
        raise FilterError("an empty filter inside $and, $or or $not")
    return part


def _condition(path: Path, key: str, operator: str, operand: Any) -> Filter:
    if operator in ("$in", "$nin"):
        if not isinstance(operand, list):
            raise FilterError(f"{key}: {operator} takes a list, not {operand!r}")
        within = In(path, tuple(_scalar(key, value) for value in operand))
        return within if operator == "$in" else Not(within)
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise FilterError(f"{key}: $exists takes true or false, not {operand!r}")
        return Exists(path) if operand else Not(Exists(path))
    if operator == "$eq":
        return Eq(path, _scalar(key, operand))
    if operator == "$ne":
        return Not(Eq(path, _scalar(key, operand)))
    if operator == "$not":
        inner = _join(_parse_entry(key, operand))
        return Not(_required(None) if inner is None else inner)
    raise FilterError(f"{key}: unknown operator {operator!r}; valid: {', '.join(_OPERATORS)}")


def _range(path: Path, key: str, bounds: Mapping[str, Any]) -> Range:
    parsed = {name.removeprefix("$"): _bound(key, value) for name, value in bounds.items()}
    if len({isinstance(bound, datetime) for bound in parsed.values()}) > 1:
        raise FilterError(f"{key}: a range is of numbers or of dates, not of both")
    return Range(path, **parsed)


def _bound(key: str, value: Any) -> float | datetime:
    if isinstance(value, str):
        date = parse_date(value)
        if date is None:
            raise FilterError(
                f"{key}: {value!r} is not a date; ranges take numbers, or dates such as 2024-05-31"
            )
        return date
    number = _scalar(key, value)
    if isinstance(number, bool | str):
        raise FilterError(f"{key}: ranges take numbers or dates, not {value!r}")
    return number


def _scalar(key: str, value: Any) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"{key}: {value!r} is not a finite number")
    if isinstance(value, str | bool | int | float):
        return value
    hint = 'null is asked for by {"$exists": false}' if value is None else "use $in for several"
    raise FilterError(f"{key}: cannot compare with {value!r}", hint=hint)


def _parse_path(key: str) -> Path:
    parts = tuple(re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\)\.", key))
    if not all(parts):
        raise FilterError(f"{key!r} is not a path of keys joined by dots")
    return parts


_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?([Zz]|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
"""RFC 3339, and what is often seen of ISO 8601 beside it: the same with every version of Python."""


def parse_date(text: str) -> datetime | None:
    """The instant an ISO 8601 string names (UTC where it has no offset), or None.

    A day; or a day, "T" or a space, and a time to minutes, seconds or parts of a second, of which
    microseconds count; then nothing, "Z" or an offset such as +02:00, +0200 or +02.
    """
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    *numbers, part, offset = found.groups()
    try:
        zone = _zone(offset) if offset else timezone.utc
        year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
        micro = int((part or "")[:6].ljust(6, "0"))
        return datetime(year, month, day, hour, minute, second, micro, zone)
    except ValueError:
        return None


def _zone(offset: str) -> timezone:
    if offset in "Zz":
        return timezone.utc
    hours, minutes = int(offset[1:3]), int(offset[3:].removeprefix(":") or 0)
    if hours > 23 or minutes > 59:
        raise ValueError(offset)
    distance = timedelta(hours=hours, minutes=minutes)
    return timezone(-distance if offset[0] == "-" else distance)


def values_at(metadata: Metadata, path: Path) -> list[Any]:
    """The values a condition on `path` looks at: the field, or a list's elements; [] if missing."""
    value: Any = metadata
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return []
        value = value[key]
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def matches(part: Filter, metadata: Metadata) -> bool:
    """Whether one record's metadata satisfies the filter: the reference for every store."""
    if isinstance(part, And):
        return all(matches(inner, metadata) for inner in part.parts)
    if isinstance(part, Or):
        return any(matches(inner, metadata) for inner in part.parts)
    if isinstance(part, Not):
        return not matches(part.part, metadata)
    values = values_at(metadata, part.path)
    if isinstance(part, Exists):
        return bool(values)
    if isinstance(part, Range):
        return any(_in_range(part, value) for value in values)
    wanted = part.values if isinstance(part, In) else (part.value,)
    return any(_equal(value, one) for value in values for one in wanted)


def _equal(value: Any, wanted: Scalar) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(isinstance(value, str | int | float) and value == wanted)


def _in_range(part: Range, value: Any) -> bool:
    if part.is_date:
        value = parse_date(value) if isinstance(value, str) else None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        value = None
    return value is not None and (
        (part.gt is None or value > part.gt)
        and (part.gte is None or value >= part.gte)
        and (part.lt is None or value < part.lt)
        and (part.lte is None or value <= part.lte)
    )
