"""Filters as Qdrant conditions, in the form that its REST interface takes.

Where Qdrant means something else than `nexus_vdb.filters`, the condition is built so that the
difference does not show; where that cannot be done, it lets through too much and says so:

- Numbers are compared by range, for a match of integers does not see floats.
- Ranges compare as 64-bit floats, so bounds from 2**53 on are not exact.
- Dates are read from `dates`, a copy of the metadata with the instants that `parse_date` finds:
  Qdrant reads some other spellings than Python does.
- Paths are quoted; a key with a quote or a backslash in it has no form at all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import chain
from math import inf, nextafter
from typing import Any, TypeAlias

from nexus_vdb.errors import ConfigError
from nexus_vdb.filters import (
    And,
    Exists,
    Filter,
    In,
    Not,
    Or,
    Range,
    Scalar,
    parse_date,
    parse_filter,
)
from nexus_vdb.types import Metadata

__all__ = ["Json", "condition_of", "dates_in", "index_key", "indexes_needed", "plain_key"]

Json: TypeAlias = dict[str, Any]

_NOTHING: Json = {"has_id": []}
_ANYTHING: Json = {"must_not": [_NOTHING]}

_EXACT_BELOW = 2**53
"""Integers up to here are themselves as 64-bit floats."""


def condition_of(part: Filter) -> tuple[Json, bool]:
    """A filter as Qdrant's, and whether it means the same.

    Returns:
        An object for the `filter` field of a request. If the second value is False, it also matches
        records that do not satisfy the filter, and what it finds has to be tried again.
    """
    translator = _Translator()
    return {"must": [translator.translate(part, negated=False)]}, translator.exact


class _Translator:
    """`negated` says whether the place in the tree is under an odd number of `Not`."""

    def __init__(self) -> None:
        self.exact = True

    def translate(self, part: Filter, *, negated: bool) -> Json:
        if isinstance(part, And):
            return {"must": [self.translate(inner, negated=negated) for inner in part.parts]}
        if isinstance(part, Or):
            return _any_of([self.translate(inner, negated=negated) for inner in part.parts])
        if isinstance(part, Not):
            return {"must_not": [self.translate(part.part, negated=not negated)]}
        key = _key("dates" if isinstance(part, Range) and part.is_date else "metadata", part.path)
        if key is None:
            return self._loosely(_ANYTHING, negated)
        if isinstance(part, Exists):
            return {"must_not": [{"is_empty": {"key": key}}]}
        if isinstance(part, Range):
            return self._range(key, part, negated)
        values = part.values if isinstance(part, In) else (part.value,)
        return self._equal(key, values, negated)

    def _equal(self, key: str, values: Sequence[Scalar], negated: bool) -> Json:
        texts = [value for value in values if isinstance(value, str) and _is_unicode(value)]
        found: list[Json] = [{"key": key, "match": {"any": texts}}] if texts else []
        for value in values:
            if isinstance(value, bool):
                found.append({"key": key, "match": {"value": value}})
            elif not isinstance(value, str):
                found.append(self._range(key, Range((), gte=value, lte=value), negated))
        return _any_of(found)

    def _range(self, key: str, part: Range, negated: bool) -> Json:
        bounds = {name: getattr(part, name) for name in ("gt", "gte", "lt", "lte")}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        if part.is_date:
            return {"key": key, "range": {name: _instant(bound) for name, bound in given.items()}}
        if all(abs(bound) < _EXACT_BELOW for bound in given.values()):
            return {"key": key, "range": given}
        wider = {
            name[:2] + "e": _float_outside(bound, towards=inf if name[0] == "l" else -inf)
            for name, bound in given.items()
        }
        return self._loosely({"key": key, "range": wider}, negated)

    def _loosely(self, wider: Json, negated: bool) -> Json:
        # What lets through too much keeps too much away once it is negated.
        self.exact = False
        return _NOTHING if negated else wider


def _any_of(conditions: list[Json]) -> Json:
    # To Qdrant, an empty list of choices is no condition.
    return {"should": conditions} if conditions else _NOTHING


def _key(field: str, path: Sequence[str]) -> str | None:
    if any('"' in key or "\\" in key or not _is_unicode(key) for key in path):
        return None
    return ".".join([field, *(f'"{key}"' for key in path)])


def index_key(field: str, kind: str) -> str:
    """The payload key that an index for a metadata field has, as filters write it.

    Args:
        field: Path of keys joined by dots.
        kind: Of the index; dates are looked up in their copy.

    Raises:
        ConfigError: no filter can name such a field.
    """
    part = parse_filter({field: {"$exists": True}})
    place = "dates" if kind == "datetime" else "metadata"
    key = _key(place, part.path) if isinstance(part, Exists) else None
    if key is None:
        raise ConfigError(f"{field!r} cannot be indexed: no filter can name it")
    return key


def plain_key(key: str) -> str:
    """A key as the server prints it: without the quotes that it does not need."""
    return re.sub(r'"([A-Za-z0-9_-]+)"', r"\1", key)


def indexes_needed(condition: Json) -> dict[str, set[str]]:
    """Kinds of payload index by key that a strict server wants for a condition.

    An empty set where any kind will do.
    """
    needed: dict[str, set[str]] = {}
    for one in chain.from_iterable(condition.values()):
        if "key" in one:
            needed.setdefault(one["key"], set()).add(_index_kind(one))
        elif "is_empty" in one:
            needed.setdefault(one["is_empty"]["key"], set())
        elif "has_id" not in one:
            for key, kinds in indexes_needed(one).items():
                needed.setdefault(key, set()).update(kinds)
    return needed


def _index_kind(condition: Json) -> str:
    if "range" in condition:
        dates = any(isinstance(bound, str) for bound in condition["range"].values())
        return "datetime" if dates else "float"
    return "bool" if "value" in condition["match"] else "keyword"


def _is_unicode(text: str) -> bool:
    # Half a surrogate pair stands in no stored text, and cannot be sent.
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _float_outside(bound: float, *, towards: float) -> float:
    most = sys.float_info.max
    return max(-most, min(most, nextafter(float(max(-most, min(most, bound))), towards)))


def _instant(date: datetime) -> str:
    try:
        date = date.astimezone(timezone.utc)
    except OverflowError:  # in the first or last hours of the calendar
        return date.isoformat()
    return date.replace(tzinfo=None).isoformat() + "Z"


def dates_in(metadata: Metadata) -> Json:
    """The metadata with nothing but its dates, as UTC in one spelling; {} if it has none."""
    found: Json = {}
    for key, value in metadata.items():
        inner: Any = None
        if isinstance(value, dict):
            inner = dates_in(value)
        elif isinstance(value, str):
            inner = _dates([value])
        elif isinstance(value, list):
            inner = _dates([text for text in value if isinstance(text, str)])
        if inner:
            found[key] = inner
    return found


def _dates(texts: list[str]) -> list[str]:
    # Most texts are none, which the fifth letter tells.
    parsed = (parse_date(text) for text in texts if text[4:5] == "-")
    return [_instant(date) for date in parsed if date is not None]
