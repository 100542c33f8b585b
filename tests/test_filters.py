from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from nexus_vdb.errors import FilterError
from nexus_vdb.filters import (
    And,
    Eq,
    Exists,
    In,
    Not,
    Or,
    Range,
    matches,
    parse_date,
    parse_filter,
    values_at,
)


def holds(where: dict[str, Any], metadata: dict[str, Any]) -> bool:
    part = parse_filter(where)
    assert part is not None
    return matches(part, metadata)


@pytest.mark.parametrize(
    ("where", "tree"),
    [
        ({"a": 1}, Eq(("a",), 1)),
        ({"a.b": "x"}, Eq(("a", "b"), "x")),
        ({"a\\.b.c": "x"}, Eq(("a.b", "c"), "x")),
        ({"a": {"$eq": True}}, Eq(("a",), True)),
        ({"a": {"$ne": 1}}, Not(Eq(("a",), 1))),
        ({"a": {"$in": [1, "x"]}}, In(("a",), (1, "x"))),
        ({"a": {"$nin": []}}, Not(In(("a",), ()))),
        ({"a": {"$gte": 1, "$lt": 2.5}}, Range(("a",), gte=1, lt=2.5)),
        ({"a": {"$exists": True}}, Exists(("a",))),
        ({"a": {"$exists": False}}, Not(Exists(("a",)))),
        ({"a": {"$not": {"$gt": 1}}}, Not(Range(("a",), gt=1))),
        ({"a": 1, "b": 2}, And((Eq(("a",), 1), Eq(("b",), 2)))),
        ({"a": {"$gt": 1, "$ne": 3}}, And((Range(("a",), gt=1), Not(Eq(("a",), 3))))),
        ({"$or": [{"a": 1}, {"b": 2}]}, Or((Eq(("a",), 1), Eq(("b",), 2)))),
        ({"$and": [{"a": 1}]}, And((Eq(("a",), 1),))),
        ({"$not": {"a": 1, "b": 2}}, Not(And((Eq(("a",), 1), Eq(("b",), 2))))),
        ({}, None),
        (None, None),
    ],
    ids=str,
)
def test_parsing(where: Any, tree: Any) -> None:
    assert parse_filter(where) == tree


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([], "a filter is an object"),
        ({"a": None}, "cannot compare"),
        ({"a": [1]}, "cannot compare"),
        ({"a": float("nan")}, "finite"),
        ({"a": {}}, "empty condition"),
        ({"a": {"$foo": 1}}, r"unknown operator '\$foo'.*valid"),
        ({"a": {"b": 1}}, "unknown operator 'b'"),
        ({"$foo": 1}, r"unknown operator '\$foo'"),
        ({"a": {"$in": 1}}, "takes a list"),
        ({"a": {"$in": [None]}}, "cannot compare"),
        ({"a": {"$exists": 1}}, "true or false"),
        ({"a": {"$gt": "soon"}}, "not a date"),
        ({"a": {"$gt": True}}, "numbers or dates"),
        ({"a": {"$gt": 1, "$lt": "2020-01-01"}}, "not of both"),
        ({"$or": []}, "takes a list"),
        ({"$or": {"a": 1}}, "takes a list"),
        ({"$and": [{}]}, "empty filter"),
        ({"$not": {}}, "empty filter"),
        ({"a..b": 1}, "not a path"),
        ({"": 1}, "not a path"),
    ],
    ids=str,
)
def test_what_cannot_be_understood(where: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_filter(where)


@pytest.mark.parametrize("empty", [{}, {"a": None}, {"a": []}], ids=str)
def test_missing_null_and_empty_are_the_same(empty: dict[str, Any]) -> None:
    assert values_at(empty, ("a",)) == []
    for condition in (1, "", False, {"$in": [0, ""]}, {"$gte": 0}, {"$exists": True}):
        assert not holds({"a": condition}, empty)
        assert holds({"$not": {"a": condition}}, empty)
    assert holds({"a": {"$ne": 1}}, empty)
    assert holds({"a": {"$nin": [1]}}, empty)
    assert holds({"a": {"$exists": False}}, empty)


@pytest.mark.parametrize(
    ("value", "wanted", "equal"),
    [
        (1, 1.0, True),
        (1.0, 1, True),
        (True, True, True),
        (1, True, False),
        (True, 1, False),
        (0, False, False),
        ("1", 1, False),
        (1, "1", False),
        ("true", True, False),
        ("", "", True),
        ("a", "A", False),
        (2**53 + 1, 2**53, False),
        (2**53 + 1, 2**53 + 1, True),
        ({"x": 1}, "x", False),
    ],
)
def test_equality_minds_the_type(value: Any, wanted: Any, equal: bool) -> None:
    assert holds({"a": wanted}, {"a": value}) is equal
    assert holds({"a": {"$in": [wanted]}}, {"a": value}) is equal
    assert holds({"a": {"$ne": wanted}}, {"a": value}) is not equal
    assert holds({"a": wanted}, {"a": [None, {}, value]}) is equal


def test_a_list_matches_by_any_element_and_inner_lists_are_not_entered() -> None:
    assert holds({"a": {"$gt": 4}}, {"a": [1, 5]})
    assert not holds({"a": {"$gt": 5}}, {"a": [1, 5]})
    assert not holds({"a": 1}, {"a": [[1]]})
    assert not holds({"a.b": 1}, {"a": [{"b": 1}]})
    assert holds({"a": {"$exists": True}}, {"a": [[]]})


def test_paths_go_through_dicts_only() -> None:
    metadata = {"a": {"b": {"c": 7}}, "x.y": 1}
    assert values_at(metadata, ("a", "b", "c")) == [7]
    assert holds({"a.b.c": 7}, metadata)
    assert holds({"x\\.y": 1}, metadata)
    assert not holds({"x.y": 1}, metadata)
    assert not holds({"a.b.c.d": 7}, metadata)


@pytest.mark.parametrize(
    ("bounds", "inside"),
    [
        ({"$gt": 2}, [2.5, 3]),
        ({"$gte": 2}, [2, 2.5, 3]),
        ({"$lt": 2}, [1]),
        ({"$lte": 2}, [1, 2]),
        ({"$gt": 1, "$lt": 3}, [2, 2.5]),
        ({"$gt": 3, "$lt": 1}, []),
    ],
    ids=str,
)
def test_ranges_of_numbers(bounds: dict[str, Any], inside: list[float]) -> None:
    values: list[float] = [1, 2, 2.5, 3]
    assert [one for one in values if holds({"a": bounds}, {"a": one})] == inside
    others: list[Any] = [True, "2", None, {}, "2020-01-01"]
    assert not any(holds({"a": bounds}, {"a": one}) for one in others)


def test_ranges_of_dates_compare_instants() -> None:
    noon = {"a": "2020-06-01T12:00:00+02:00"}
    assert holds({"a": {"$gte": "2020-06-01T10:00:00Z", "$lte": "2020-06-01T10:00:00"}}, noon)
    assert holds({"a": {"$lt": "2020-06-01T10:00:01"}}, noon)
    assert holds({"a": {"$gt": "2020-06-01"}}, noon)
    assert not holds({"a": {"$gt": "2020-06-01"}}, {"a": "yesterday"})
    assert not holds({"a": {"$gt": "2020-06-01"}}, {"a": 2021})


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2024-05-31", datetime(2024, 5, 31, tzinfo=timezone.utc)),
        ("2024-05-31T10:20", datetime(2024, 5, 31, 10, 20, tzinfo=timezone.utc)),
        ("2024-05-31 10:20:30Z", datetime(2024, 5, 31, 10, 20, 30, tzinfo=timezone.utc)),
        (
            "2024-05-31T10:20:30.250000-05:30",
            datetime(2024, 5, 31, 10, 20, 30, 250000, timezone(-timedelta(hours=5, minutes=30))),
        ),
        ("2024-05-31T10:20:30.123456789Z", datetime(2024, 5, 31, 10, 20, 30, 123456, timezone.utc)),
        ("2024-05-31t10:20:30,5z", datetime(2024, 5, 31, 10, 20, 30, 500000, timezone.utc)),
        (
            "2024-05-31T10:20+0200",
            datetime(2024, 5, 31, 10, 20, tzinfo=timezone(timedelta(hours=2))),
        ),
        ("2024-05-31T10:20-02", datetime(2024, 5, 31, 12, 20, tzinfo=timezone.utc)),
        ("0001-01-01T00:00:00+05:00", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))),
        ("2024-13-01", None),
        ("2023-02-29", None),
        ("2024-05-31T24:00", None),
        ("2024-05-31T23:59:60Z", None),
        ("2024-05-31T10:20+24:00", None),
        ("2024-05-31T10:20+02:60", None),
        ("2024-05-31T10", None),
        ("2024-05-31x10:20", None),
        ("2024-05-31Z", None),
        ("2024-W22-5", None),
        ("2024-05-31T102030", None),
        ("2024-05-31\n", None),
        ("٢٠٢٤-٠٥-٣١", None),
        ("2024-05-31x", None),
        ("20240531", None),
        ("about 2024", None),
        ("", None),
    ],
)
def test_dates(text: str, date: datetime | None) -> None:
    assert parse_date(text) == date


def test_and_or_not_combine() -> None:
    metadata = {"a": 1, "b": "x"}
    assert holds({"$and": [{"a": 1}, {"b": "x"}]}, metadata)
    assert not holds({"$and": [{"a": 1}, {"b": "y"}]}, metadata)
    assert holds({"$or": [{"a": 2}, {"b": "x"}]}, metadata)
    assert not holds({"$or": [{"a": 2}, {"b": "y"}]}, metadata)
    assert holds({"$not": {"$or": [{"a": 2}, {"b": "y"}]}}, metadata)
    assert holds({"a": {"$not": {"$gt": 1}}}, metadata)
