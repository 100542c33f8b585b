"""Filters at random, and records with every odd value that a field can have."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st

from nexus_vdb.types import Metadata

__all__ = ["ALIKE", "FILTERS", "ODD"]

_LARGE = [2**53, 2**53 + 1, -(2**60), 2**63 - 1, 10**400, 1e300]
_DATES = ["2020-01-01", "2020-01-01T01:00:00+01:00", "0001-01-01T00:00:00+05:00", "9999-12-31"]
_ODD_DATES = ["2020-01-01T00", "2020-W01-1", "2020-01-01x00:00", "2020-01-01T23:59:60Z"]
_VALUES: list[Any] = [
    *(0, 1, 2, 1.0, 0.5, -3, 0.1, float(2**53), *_LARGE[:4], 1e300),
    *(True, False, None, "", "a", "1", "true", "A", *_DATES, *_ODD_DATES),
    *([], {}, [None], [[]], [[1]], [1, "a"], [2, [0]], [{"x": 1}], {"x": 1}, {"x": ["a", True]}),
    *({"x": None}, {"x": _DATES[1]}, [*_DATES[:1], "b"], {'"': 1}, {"\\": 1}, {"x": {'"': 1}}),
]

ODD: list[Metadata] = [
    {},
    *({"p": value} for value in _VALUES),
    *({"p": one, "q": other} for one, other in itertools.pairwise(_VALUES)),
    *({name: 1} for name in ("p.x", 'p"', "p\\", "[]", "p[0]", "p[]", "metadata", "é")),
]
"""Fields p, q and others of every type, side by side."""

_SORTS: list[list[Any]] = [
    [0, 1, None, 2, -3, 2**53, -(2**60)],
    [0.5, 1, None, 0.1, 1e300, -0.0],
    [*_DATES, *_ODD_DATES, "2020-01-01T00:00:00.000001Z"],
    ["", "a", "1", None, "true", "é 東京 \u0000", '"'],
    [True, None, False],
    [[], [1, None, 2], None, [2**53 + 1, 0.5]],
    [["a"], [], ["1", None, _DATES[1]], _DATES],
    [[True], [False, True], []],
    [{"x": 1}, {"x": 0.5}, {}, None, {"y": 1}],
    [{"x": ["a"]}, {"x": []}, {"x": None}],
    [[{"x": 1}], []],
    [None],
]

ALIKE: list[list[Metadata]] = [
    [{"p": one, "q": other} for one, other in itertools.product(values, values)]
    for values in _SORTS
]
"""Lists of records whose fields p and q are of one type each."""

_PATHS = ["p", "q", "p.x", "r", "p\\.x", 'p"', "p.\\\\", 'p."', "p[0]", "p[]", "[]", "é", "p\ud800"]
_scalars: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, 2, 1.0, 0.5, -3, 0.1, *_LARGE, True, False, "", "a", "1", "\ud800", *_DATES]
)


def _between(bounds: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["$gt", "$gte", "$lt", "$lte"])
    return st.dictionaries(names, st.sampled_from(bounds), min_size=1)


_plain = st.one_of(
    st.fixed_dictionaries({"$eq": _scalars}),
    st.fixed_dictionaries({"$ne": _scalars}),
    st.fixed_dictionaries({"$in": st.lists(_scalars, max_size=4)}),
    st.fixed_dictionaries({"$nin": st.lists(_scalars, max_size=4)}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
    _between([0, 1, 0.5, -3, *_LARGE]),
    _between([*_DATES, "2019-12-31T23:00:00-01:00", "2020-01-01T00:00:00.000001"]),
)
_conditions = st.one_of(_scalars, _plain, st.fixed_dictionaries({"$not": _plain}))
_paths = st.one_of(st.just("p"), st.sampled_from(_PATHS))
_leaves = st.dictionaries(_paths, _conditions, min_size=1, max_size=2)

FILTERS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=4,
)
"""Every operator, on fields that are there, are not, or are in something else."""
