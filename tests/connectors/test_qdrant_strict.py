"""A server in strict mode: what it refuses is asked for in another way, or explained."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.connectors.qdrant import QdrantStore
from nexus_vdb.errors import ConfigError, FilterError, StoreError
from nexus_vdb.filters import parse_filter
from nexus_vdb.interfaces import SupportsSample
from nexus_vdb.testing.compare import Pair
from nexus_vdb.testing.samples import SAMPLE_FILTERS
from nexus_vdb.testing.store import sample_id, sample_queries, sample_records
from nexus_vdb.types import SearchPlan, StoreSchema
from tests.qdrant_faults import RefusedError
from tests.qdrant_server import QdrantServer, quick_folder

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))
NO_SCANS = {
    "enabled": True,
    "unindexed_filtering_retrieve": False,
    "unindexed_filtering_update": False,
}
EXACT = SearchPlan(k=5, candidates="exact", cuts=(96,))


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with quick_folder() as folder, QdrantServer(folder) as server:
        yield server


def make(server: QdrantServer, options: str = "", count: int = 60, **strict: Any) -> Pair:
    server.strict = NO_SCANS | strict
    store = QdrantStore.open(server.url("docs", options), SCHEMA)
    pair = Pair(store, MemoryStore.open("memory://", SCHEMA))
    pair.upsert(sample_records(count, dim=96))
    server.requests.clear()
    return pair


def indexes(server: QdrantServer) -> dict[str, str]:
    return {key: one["data_type"] for key, one in server.collections["docs"].indexes.items()}


# Indexes


def test_indexes_of_the_url_are_made_before_there_is_data(server: QdrantServer) -> None:
    options = "?index=year:number,author.name:keyword,draft:bool,published:date,a b:keyword"
    pair = make(server, options)
    assert indexes(server) == {
        "document_id": "keyword",
        "metadata.year": "float",
        "metadata.author.name": "keyword",
        "metadata.draft": "bool",
        "dates.published": "datetime",
        'metadata."a b"': "keyword",
    }
    where = {"year": {"$gte": 2005}, "draft": False, "published": {"$gt": "2020-01-01"}}
    pair.check_search(sample_queries(2, dim=96), EXACT, where)
    assert [request.path.rpartition("/")[2] for request in server.requests] == ["batch"]
    pair.store.close()
    QdrantStore.open(server.url("docs", options), SCHEMA).close()
    assert not any(request.path.endswith("/index") for request in server.requests)
    QdrantStore.open(server.url("docs", "?index=lang:keyword"), SCHEMA).close()
    assert indexes(server)["metadata.lang"] == "keyword"


def test_fields_that_no_filter_can_name_are_refused(server: QdrantServer) -> None:
    for field in ('a"b', "a..b"):
        with pytest.raises((ConfigError, FilterError), match=field):
            QdrantStore.open(server.url("docs", f"?index={field}:keyword"), SCHEMA)
    assert server.collections == {}


@pytest.mark.parametrize(
    ("where", "made"),
    [
        ({"lang": "en"}, {"metadata.lang": "keyword"}),
        ({"year": {"$gte": 2005}}, {"metadata.year": "float"}),
        ({"year": 2005}, {"metadata.year": "float"}),
        ({"draft": {"$ne": True}}, {"metadata.draft": "bool"}),
        ({"published": {"$gt": "2020-06-01"}}, {"dates.published": "datetime"}),
        ({"year": {"$exists": False}}, {"metadata.year": "float"}),
        ({"draft": {"$exists": True}}, {"metadata.draft": "bool"}),
        ({"tags": {"$exists": True}}, {"metadata.tags": "keyword"}),
        ({"never": {"$exists": True}}, {"metadata.never": "keyword"}),
        (
            {"$or": [{"lang": "de"}, {"$not": {"author.name": "Ada"}}]},
            {"metadata.lang": "keyword", "metadata.author.name": "keyword"},
        ),
    ],
    ids=str,
)
def test_an_index_is_made_when_a_filter_needs_it(
    server: QdrantServer, where: dict[str, Any], made: dict[str, str]
) -> None:
    pair = make(server)
    for _ in range(2):
        pair.check_search(sample_queries(2, dim=96), EXACT, where)
        condition = parse_filter(where)
        assert pair.store.count(condition) == pair.reference.count(condition)
    assert indexes(server) == {"document_id": "keyword", **made}
    made_now = [request for request in server.requests if request.path.endswith("/index")]
    assert len(made_now) == len(made)
    assert all(request.body["field_schema"]["on_disk"] for request in made_now)
    pair.store.close()


def test_deleting_by_filter_makes_an_index_too(
    server: QdrantServer, caplog: pytest.LogCaptureFixture
) -> None:
    pair = make(server)
    where = parse_filter({"lang": "de"})
    with caplog.at_level(logging.INFO, logger="nexus_vdb"):
        assert pair.store.delete(where=where) == pair.reference.delete(where=where) > 0
    assert "making a payload index (keyword) on metadata." in caplog.text
    ids = [sample_id(row) for row in range(20)]
    assert pair.store.delete(ids=ids) == pair.reference.delete(ids=ids)
    pair.check_rows()
    pair.store.close()


def test_a_field_has_one_index(server: QdrantServer) -> None:
    pair = make(server)
    for where in ({"mixed": {"$in": [1, "1"]}}, {"mixed": 1, "lang": "en"}, {"mixed": "1"}):
        condition = parse_filter(where)
        if where == {"mixed": 1, "lang": "en"}:
            assert pair.store.count(condition) == pair.reference.count(condition)
        else:
            with pytest.raises(StoreError, match=r"metadata.*mixed.* several: float, keyword"):
                pair.store.count(condition)
    assert indexes(server)["metadata.mixed"] == "float"
    pair.store.close()


def test_who_may_not_make_an_index_is_told(server: QdrantServer) -> None:
    pair = make(server)
    server.faults += ["", "", 403]
    with pytest.raises(StoreError, match=r"refused \(403\)") as caught:
        pair.store.count(parse_filter({"lang": "en"}))
    assert "QDRANT_API_KEY" in caught.value.hint
    pair.store.close()


def test_every_filter_works_on_a_strict_server(server: QdrantServer) -> None:
    pair = make(server)
    refused = 0
    for where in SAMPLE_FILTERS:
        condition = parse_filter(where)
        try:
            assert pair.store.count(condition) == pair.reference.count(condition)
        except StoreError as error:
            assert "several" in str(error)
            refused += 1
    assert refused <= 6  # those on the field of mixed types
    pair.store.close()


# Limits


def test_requests_keep_to_the_limits_that_the_collection_has(server: QdrantServer) -> None:
    pair = make(
        server,
        count=150,
        max_query_limit=40,
        upsert_max_batchsize=16,
        search_max_batchsize=3,
        condition_max_size=7,
    )
    assert len(server.requests) == 0
    pair.check_rows()
    pair.check_search(sample_queries(8, dim=96), EXACT)
    pair.check_search(sample_queries(2, dim=96), EXACT, {"lang": "en"})
    documents = pair.reference.get([sample_id(row) for row in range(150)]).document_ids
    assert pair.store.fingerprints(documents) == pair.reference.fingerprints(documents)
    assert isinstance(pair.store, SupportsSample)
    assert len(pair.store.sample(100)) == 100
    ids = [sample_id(row) for row in range(30)]
    assert pair.store.delete(ids=ids) == pair.reference.delete(ids=ids) == 30
    pair.check_rows()
    plan = SearchPlan(k=3, candidates=100, cuts=(96,))
    with pytest.raises(StoreError, match='Limit exceeded 100 > 40 for "limit"') as caught:
        pair.store.search(sample_queries(1, dim=96), plan)
    assert "--candidates" in caught.value.hint
    pair.store.close()


def test_exact_search_that_is_not_allowed_is_explained(server: QdrantServer) -> None:
    pair = make(server)
    server.collections["docs"].strict["search_allow_exact"] = False
    with pytest.raises(StoreError, match="Exact search disabled") as caught:
        pair.store.search(sample_queries(1, dim=96), EXACT)
    assert "search_allow_exact" in caught.value.hint
    pair.store.close()


def test_a_rate_limit_that_a_batch_can_never_keep_splits_it(
    server: QdrantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = QdrantServer.answer
    message = (
        "Write rate limit exceeded, request larger than rate limiter capacity, "
        "please try to split your request"
    )

    def limited(self: QdrantServer, method: str, path: str, body: Any) -> Any:
        if method == "PUT" and "batch" in body and len(body["batch"]["ids"]) > 20:
            raise RefusedError(429, message)
        return answer(self, method, path, body)

    monkeypatch.setattr(QdrantServer, "answer", limited)
    pair = make(server, count=90)
    pair.check_rows()
    pair.store.close()
