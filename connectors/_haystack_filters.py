"""Haystack's filter dictionaries as filters of `nexus_vdb.filters`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from nexus_vdb.errors import FilterError, MissingExtra
from nexus_vdb.filters import parse_filter
from nexus_vdb.reader import Where

try:
    from haystack.errors import FilterError as HaystackFilterError
except ImportError as error:
    raise MissingExtra("haystack-ai", extra="haystack") from error

__all__ = ["where_of"]

_RANGES = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_FIELDS = {"id", "content", "blob", "score", "embedding", "sparse_embedding", "meta"}


def where_of(filters: dict[str, Any] | None) -> Where | None:
    """The same condition for a store; None for None or {}.

    Dates in ranges are ISO 8601 strings or datetimes. A list in a document's metadata meets a
    condition if one of its elements does, as everywhere in this project.

    Raises:
        haystack.errors.FilterError: the filter cannot be understood, or is not on metadata.
    """
    if not filters:
        return None
    where = _condition(filters)
    try:
        parse_filter(where)
    except FilterError as error:
        raise HaystackFilterError(str(error)) from error
    return where


def _condition(filters: Any) -> Where:
    if not isinstance(filters, dict):
        raise HaystackFilterError(f"a filter is a dictionary, not {filters!r}")
    return _comparison(filters) if "field" in filters else _logic(filters)


def _logic(filters: dict[str, Any]) -> Where:
    operator, conditions = _value(filters, "operator"), _value(filters, "conditions")
    if not isinstance(conditions, list) or not conditions:
        raise HaystackFilterError(f"'conditions' is a list of filters, not {conditions!r}")
    parts = [_condition(part) for part in conditions]
    if operator == "NOT":
        return {"$not": {"$and": parts}}
    if operator in ("AND", "OR"):
        return {f"${operator.lower()}": parts}
    raise HaystackFilterError(f"Invalid operator={operator!r}; valid: AND, OR, NOT")


def _comparison(filters: dict[str, Any]) -> Where:
    key = _key(filters["field"])
    operator, value = _value(filters, "operator"), _value(filters, "value")
    if operator in _RANGES:
        # Nothing is more or less than None: no value is one of none.
        return {key: {"$in": []} if value is None else {_RANGES[operator]: _plain(value)}}
    compare = _OTHERS.get(operator)
    if compare is None:
        valid = ", ".join([*_OTHERS, *_RANGES])
        raise HaystackFilterError(f"Invalid operator={operator!r}; valid: {valid}")
    return compare(key, value)


def _equal(key: str, value: Any) -> Where:
    return {key: {"$exists": False} if value is None else {"$eq": _plain(value)}}


def _within(key: str, values: Any) -> Where:
    if not isinstance(values, list):
        raise HaystackFilterError(f"{key}: 'in' and 'not in' take a list, not {values!r}")
    within: Where = {key: {"$in": [_plain(value) for value in values if value is not None]}}
    return {"$or": [within, _equal(key, None)]} if None in values else within


_OTHERS: dict[str, Callable[[str, Any], Where]] = {
    "==": _equal,
    "!=": lambda key, value: {"$not": _equal(key, value)},
    "in": _within,
    "not in": lambda key, values: {"$not": _within(key, values)},
}


def _key(field: Any) -> str:
    """The path of a metadata field, which may do without its `meta.`."""
    if not isinstance(field, str) or field in _FIELDS:
        raise HaystackFilterError(
            f"{field!r} is no field of the metadata; filter by 'meta.NAME' instead"
        )
    return field.removeprefix("meta.").replace("\\", "\\\\")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _value(filters: dict[str, Any], key: str) -> Any:
    if key not in filters:
        raise HaystackFilterError(f"{key!r} is missing in {filters}")
    return filters[key]
