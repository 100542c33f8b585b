from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from nexus_vdb.connectors._qdrant_filter import condition_of, dates_in
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.connectors.qdrant import QdrantStore
from nexus_vdb.connectors.qdrant_edge import QdrantEdgeStore
from nexus_vdb.filters import Or, parse_filter
from nexus_vdb.testing.compare import Pair
from nexus_vdb.testing.store import sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema
from tests.qdrant_local import local_mode
from tests.qdrant_server import quick_folder
from tests.random_filters import FILTERS, ODD

SCHEMA = StoreSchema(dim=4, cuts=(4,))

# Whatever is asked, the same rows as the reference

_INDEXES = {
    "plain": "",
    "strings": "?index=p:keyword,q:number,p.x:bool,r:keyword,p:date",
    "numbers": "?index=p:number,q:keyword,p.x:keyword,r:number,q:date,p.x:date",
    "booleans": "?index=p:bool,q:bool,p.x:number,r:bool",
}


@pytest.fixture(scope="module", params=[*_INDEXES, "local"])
def odd_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Every odd value that a field can have, in a store and in its reference.

    With several payload indexes, which must not change what matches, and in another implementation.
    """
    with ExitStack() as stack:
        reference = MemoryStore.open("memory://", SCHEMA)
        if request.param == "local":
            pair = Pair(QdrantStore.open(stack.enter_context(local_mode()), SCHEMA), reference)
        else:
            index = _INDEXES[request.param]
            url = f"qdrant-edge://{stack.enter_context(quick_folder()) / 'odd'}{index}"
            store = QdrantEdgeStore.open(url, SCHEMA)
            assert len(store.info().details["indexes"]) == 1 + index.count(":")
            pair = Pair(store, reference)
        pair.upsert(replace(sample_records(len(ODD), dim=4), metadata=ODD))
        yield pair
        pair.store.close()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=FILTERS)
def test_random_filters_match_the_same_rows(odd_pair: Pair, where: dict[str, Any]) -> None:
    condition = parse_filter(where)
    assert odd_pair.store.count(condition) == odd_pair.reference.count(condition)
    plan = SearchPlan(k=len(ODD), candidates="exact", cuts=(4,))
    found, expected = (
        {hit.id for hit in one.search(sample_queries(1, dim=4), plan, condition)[0]}
        for one in (odd_pair.store, odd_pair.reference)
    )
    assert found == expected


def test_an_empty_choice_matches_nothing(odd_pair: Pair) -> None:
    assert odd_pair.store.count(Or(())) == odd_pair.reference.count(Or(())) == 0


@pytest.mark.parametrize(
    ("where", "exact"),
    [
        ({"a": 1, "b": "x", "c": True, "d.e": {"$gte": 1.5}, "f": {"$exists": False}}, True),
        ({"a": {"$lt": "2020-01-01"}}, True),
        ({"a": 2**53 - 1}, True),
        ({"a": 2**53}, False),
        ({"$not": {"a": {"$gt": 1e16}}}, False),
        ({'a"': 1}, False),
    ],
)
def test_only_what_qdrant_cannot_decide_is_tried_again(where: dict[str, Any], exact: bool) -> None:
    part = parse_filter(where)
    assert part is not None
    assert condition_of(part)[1] is exact


def test_dates_are_kept_as_instants_in_one_spelling() -> None:
    found = dates_in(
        {
            "day": "2020-06-01",
            "list": ["2020-06-01T14:30:00.5+02:00", "no date", 7],
            "inner": {"when": "2020-06-01 00:00", "what": "x"},
            "text": "2020-06-01 was a Monday",
        }
    )
    assert found == {
        "day": ["2020-06-01T00:00:00Z"],
        "list": ["2020-06-01T12:30:00.500000Z"],
        "inner": {"when": ["2020-06-01T00:00:00Z"]},
    }
