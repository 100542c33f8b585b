from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from nexus_vdb.connectors._qdrant_address import Address
from nexus_vdb.connectors._qdrant_client import Retry
from nexus_vdb.connectors._qdrant_options import Layout
from nexus_vdb.connectors.memory import MemoryStore
from nexus_vdb.connectors.qdrant import QdrantStore
from nexus_vdb.errors import (
    ConfigError,
    StoreCorrupt,
    StoreError,
)
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.compare import Pair
from nexus_vdb.testing.store import (
    StoreContract,
    sample_queries,
    sample_records,
)
from nexus_vdb.types import SearchPlan, StoreSchema
from tests.qdrant_server import LIVE, QdrantServer, live_collection, quick_folder

SCHEMA = StoreSchema(dim=96, cuts=(32, 96), fingerprint="a" * 64, model="fake")
QUICK = Retry(first=0.01, most=0.05)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with quick_folder() as folder, QdrantServer(folder) as server:
        yield server


@pytest.fixture
def store(server: QdrantServer) -> Iterator[QdrantStore]:
    """Sixty records, and a server that has forgotten the requests so far."""
    store = QdrantStore.open(server.url("docs"), SCHEMA, retry=QUICK)
    store.upsert(sample_records(60, dim=96))
    server.requests.clear()
    yield store
    store.close()


class TestQdrantStore(StoreContract):
    @pytest.fixture
    def store_url(self, server: QdrantServer) -> str:
        return server.url("docs")


@pytest.mark.skipif(not LIVE, reason="NEXUS_TEST_QDRANT_URL names no server")
class TestLiveQdrantStore(StoreContract):
    @pytest.fixture
    def store_url(self) -> Iterator[str]:
        with live_collection() as url:
            yield url


# What is sent


def test_the_collection_is_made_with_its_index_before_there_is_data(server: QdrantServer) -> None:
    QdrantStore.open(server.url("docs"), SCHEMA).close()
    made = next(request for request in server.requests if request.method == "PUT")
    vectors = made.body["vectors"]
    sizes = {name: one["size"] for name, one in vectors.items()}
    assert sizes == {"d32": 32, "d96": 96, "hash": 64}
    assert vectors["d96"]["distance"] == "Cosine"
    assert vectors["hash"]["distance"] == "Dot"
    bits = vectors["hash"]["quantization_config"]["binary"]
    assert (bits["always_ram"], bits["query_encoding"]) == (True, "scalar8bits")
    assert made.body["hnsw_config"]["m"] == 0
    assert not any(one.get("hnsw_config") for one in vectors.values())
    assert made.body["on_disk_payload"] and all(one["on_disk"] for one in vectors.values())
    assert not made.body.get("shard_number") and not made.body.get("replication_factor")
    assert made.body["metadata"] == {
        "nexus_vdb": {
            "format": 1,
            "dim": 96,
            "cuts": [32, 96],
            "fingerprint": "a" * 64,
            "model": "fake",
        }
    }
    assert server.requests[-1].path == "/collections/docs/index"
    assert server.requests[-1].body["field_name"] == "document_id"


def test_shards_and_copies_are_options(server: QdrantServer) -> None:
    QdrantStore.open(server.url("docs", "?shards=3&replicas=2"), SCHEMA).close()
    body = server.collections["docs"].body
    assert (body["shard_number"], body["replication_factor"]) == (3, 2)


def test_a_graph_over_the_vector_takes_the_place_of_the_hash(server: QdrantServer) -> None:
    pair = Pair(
        QdrantStore.open(server.url("docs", "?hnsw=16"), SCHEMA),
        MemoryStore.open("memory://", SCHEMA),
    )
    body = server.collections["docs"].body
    assert body["vectors"]["d96"]["hnsw_config"]["m"] == 16
    assert body["hnsw_config"]["m"] == 0
    pair.upsert(sample_records(60, dim=96))
    assert pair.store.info().details["search"] == "graph"
    pair.store.close()
    pair.store = QdrantStore.open(server.url("docs"))
    plan = SearchPlan(k=5, candidates=40, cuts=(32, 96))
    for where in (None, {"lang": "en"}):
        server.requests.clear()
        pair.check_search(sample_queries(2, dim=96), plan, where)
        [search, _] = server.requests[-1].body["searches"]
        assert (search["using"], search.get("prefetch")) == ("d96", None)
        assert search["params"]["hnsw_ef"] == 40
    assert pair.store.info().details["search"] == "graph"
    pair.store.close()


def test_an_index_that_a_cut_off_making_lacks_is_made_later(server: QdrantServer) -> None:
    QdrantStore.open(server.url("docs"), SCHEMA).close()
    server.collections["docs"].indexes.clear()
    QdrantStore.open(server.url("docs"), SCHEMA).close()
    assert list(server.collections["docs"].indexes) == ["document_id"]


def test_a_batch_of_queries_is_one_nested_request(server: QdrantServer, store: QdrantStore) -> None:
    plan = SearchPlan(k=5, candidates=40, cuts=(32, 96))
    store.search(sample_queries(8, dim=96), plan, parse_filter({"lang": "en"}))
    [request] = server.requests
    assert request.path == "/collections/docs/points/query/batch"
    assert len(request.body["searches"]) == 8
    wide = request.body["searches"][0]
    [narrow] = wide["prefetch"] if isinstance(wide["prefetch"], list) else [wide["prefetch"]]
    [hashed] = narrow["prefetch"] if isinstance(narrow["prefetch"], list) else [narrow["prefetch"]]
    assert [stage["using"] for stage in (wide, narrow, hashed)] == ["d96", "d32", "hash"]
    assert hashed["limit"] == 40
    assert hashed["params"]["quantization"]["rescore"] is False
    assert hashed["filter"]["must"]


def test_fingerprints_ask_for_three_fields_at_once(
    server: QdrantServer, store: QdrantStore
) -> None:
    found = store.fingerprints([f"doc/0/{index}" for index in range(30)])
    assert len(found) == 20
    [request] = server.requests
    assert request.body["with_payload"] == ["document_id", "ordinal", "content_hash"]


def test_uploads_stay_far_below_what_a_server_takes(server: QdrantServer) -> None:
    pair = Pair(QdrantStore.open(server.url("docs"), SCHEMA), MemoryStore.open("memory://", SCHEMA))
    records = sample_records(150, dim=96)
    texts = [letter * 150_000 for letter in "aé\n" * 50]
    pair.upsert(replace(records, texts=texts))
    uploads = [one for one in server.requests if one.path == "/collections/docs/points"]
    assert sum(one.size for one in uploads) > 28e6
    assert 4 <= len(uploads) <= 6
    assert all(one.size <= 8 << 20 for one in uploads)
    assert pair.store.count() == 150
    assert pair.store.get(records.ids).texts == texts
    pair.store.close()


def test_coordinates_survive_the_shorter_numbers(server: QdrantServer, store: QdrantStore) -> None:
    records = sample_records(60, dim=96)
    np.testing.assert_allclose(store.get(records.ids).vectors, records.vectors, atol=2e-4)


# Meta


def test_meta_lie_in_the_metadata_of_the_collection(
    server: QdrantServer, store: QdrantStore
) -> None:
    server.collections["docs"].metadata["theirs"] = {"a": 1}
    store.set_meta("nothing", None)
    store.set_meta("scale", 1.0)
    assert store.info().meta == {"nothing": None, "scale": 1.0}
    metadata = server.collections["docs"].metadata
    assert metadata["theirs"] == {"a": 1}
    assert metadata["nexus_vdb.scale"] == "1.0"
    assert store.count() == 60
    assert store.info().details["engine"] == "Qdrant 1.16.0"


def test_collections_of_others_are_left_alone(server: QdrantServer, store: QdrantStore) -> None:
    metadata = server.collections["docs"].metadata
    schema = metadata.pop("nexus_vdb")
    for asked in (None, SCHEMA):
        with pytest.raises(StoreError, match="did not make"):
            QdrantStore.open(server.url("docs"), asked)
    metadata["nexus_vdb"] = schema | {"format": 99}
    with pytest.raises(StoreError, match="format 99"):
        QdrantStore.open(server.url("docs"))
    metadata["nexus_vdb"] = {"format": 1}
    with pytest.raises(StoreCorrupt, match="damaged"):
        QdrantStore.open(server.url("docs"))


def test_points_of_others_are_named(server: QdrantServer, store: QdrantStore) -> None:
    server.upsert(
        "docs",
        {
            "batch": {
                "ids": ["00000000-0000-0000-0000-000000000001"],
                "vectors": {"d96": [[1.0] * 96], "d32": [[1.0] * 32], "hash": [[1.0] * 64]},
                "payloads": [{"title": "not ours"}],
            }
        },
    )
    with pytest.raises(StoreCorrupt, match="0001 has no field"):
        list(store.scan())


# The address


def test_the_key_is_sent(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    with pytest.warns(UserWarning, match="insecure connection"):
        QdrantStore.open(server.url("docs"), SCHEMA).close()
    assert {request.headers.get("api-key") for request in server.requests} == {"secret"}


def test_urls() -> None:
    found = Address.parse("qdrant://localhost:7000/my%20docs")
    assert (found.host, found.port, found.collection) == ("localhost", 7000, "my docs")
    assert (found.tls, found.grpc, found.prefix) == (False, 0, "")
    assert (found.timeout, found.patience, found.layout) == (60, 180, Layout())
    options = (
        "grpc=1&timeout=5&patience=0&hnsw=16&shards=2&replicas=3&index=a.b:number,tags:keyword"
    )
    found = Address.parse(f"qdrants://x.example/proxy/docs/?{options}")
    assert (found.tls, found.port, found.prefix, found.collection) == (True, 6333, "/proxy", "docs")
    assert (found.grpc, found.timeout, found.patience) == (6334, 5, 0)
    index = {'metadata."a"."b"': "float", 'metadata."tags"': "keyword"}
    assert found.layout == Layout(hnsw=16, shards=2, replicas=3, index=index)
    assert Address.parse("qdrant://h/c?grpc=7334").grpc == 7334


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("qdrant://localhost:6333", "names no collection"),
        ("qdrant://localhost/", "names no collection"),
        ("qdrant:///docs", "names no host"),
        ("qdrant://localhost:x/docs", "not a URL"),
        ("qdrant://localhost/docs?speed=9", "unknown option 'speed'"),
        ("qdrant://localhost/docs?patience=long", "Invalid patience='long'"),
        ("qdrant://localhost/docs?timeout=0", "Invalid timeout='0'"),
        ("qdrant://localhost/docs?index=year", "Invalid index='year'"),
        ("qdrant://localhost/docs?index=year:int", "valid: FIELD:KIND with a kind of keyword,"),
    ],
)
def test_urls_that_cannot_be_understood(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        QdrantStore.open(url)


def test_collections_with_odd_names(server: QdrantServer) -> None:
    url = server.url("a%20b%2Fc")
    QdrantStore.open(url, SCHEMA).close()
    assert list(server.collections) == ["a b/c"]
    store = QdrantStore.open(url)
    assert store.count() == 0
    store.close()
