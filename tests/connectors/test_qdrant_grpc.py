"""gRPC, without a server that speaks all of it: what is sent has a form, what goes wrong a type."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import collections_service_pb2_grpc

from nexus_vdb.connectors._qdrant_client import Retry
from nexus_vdb.connectors._qdrant_filter import condition_of
from nexus_vdb.connectors._qdrant_points import collection_config, index_schema
from nexus_vdb.connectors._qdrant_search import RANDOM, searches
from nexus_vdb.connectors.qdrant import QdrantStore
from nexus_vdb.errors import StoreError, StoreNotFound, StoreUnavailable
from nexus_vdb.filters import parse_filter
from nexus_vdb.testing.samples import SAMPLE_FILTERS, sample_queries
from nexus_vdb.types import SearchPlan, StoreSchema

SCHEMA = StoreSchema(dim=96, cuts=(32, 96))
Code = grpc.StatusCode


@pytest.mark.parametrize("where", SAMPLE_FILTERS, ids=str)
def test_filters_mean_the_same_by_grpc(where: dict[str, Any]) -> None:
    part = parse_filter(where)
    assert part is not None
    condition = models.Filter.model_validate(condition_of(part)[0])
    back = GrpcToRest.convert_filter(RestToGrpc.convert_filter(condition))
    again = RestToGrpc.convert_filter(back)
    assert again == RestToGrpc.convert_filter(condition)
    assert again.ByteSize() > 0


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("candidates", [10, "exact"])
def test_searches_have_a_form_for_grpc(candidates: Any, graph: bool) -> None:
    queries, plan = sample_queries(1, dim=96), SearchPlan(3, candidates, (32, 96))
    [request] = searches(queries, plan, SCHEMA, None, graph=graph)
    sent = RestToGrpc.convert_query_request(models.QueryRequest.model_validate(request), "docs")
    assert (sent.using, sent.limit) == ("d96", 19)
    np.testing.assert_allclose(sent.query.nearest.dense.data, queries.vectors[0], atol=1e-6)
    if candidates == "exact":
        assert sent.params.exact
    elif graph:
        assert sent.params.hnsw_ef == 19
    else:
        [narrow] = sent.prefetch
        [hashed] = narrow.prefetch
        assert (narrow.using, hashed.using, hashed.limit) == ("d32", "hash", 10)
        assert not hashed.params.quantization.rescore


def test_the_rest_has_a_form_for_grpc() -> None:
    request = models.QueryRequest.model_validate({"query": RANDOM, "limit": 5})
    assert RestToGrpc.convert_query_request(request, "docs").query.HasField("sample")
    config = models.CreateCollection.model_validate(collection_config(SCHEMA))
    assert isinstance(config.vectors, dict)
    sizes = {name: RestToGrpc.convert_vector_params(one) for name, one in config.vectors.items()}
    assert {name: one.size for name, one in sizes.items()} == {"d32": 32, "d96": 96, "hash": 64}
    assert sizes["hash"].quantization_config.binary.always_ram
    index = models.KeywordIndexParams.model_validate(index_schema("keyword"))
    assert RestToGrpc.convert_keyword_index_params(index).on_disk


class Refusing(collections_service_pb2_grpc.CollectionsServicer):
    """Answers every question about a collection with the next of these codes."""

    def __init__(self) -> None:
        self.codes: list[tuple[Any, str]] = []
        self.retry_after = ""

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802 (the name is the protocol's)
        code, words = self.codes.pop(0)
        if self.retry_after:
            context.set_trailing_metadata((("retry-after", self.retry_after),))
        context.abort(code, words)


@pytest.fixture
def refusing() -> Iterator[tuple[Refusing, str]]:
    servicer = Refusing()
    server = grpc.server(ThreadPoolExecutor(1))
    add: Any = collections_service_pb2_grpc.add_CollectionsServicer_to_server
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"qdrant://127.0.0.1:{port}/docs?grpc={port}"
    server.stop(None).wait()


def fail(url: str, kind: type[StoreError]) -> StoreError:
    with pytest.raises(kind) as caught:
        QdrantStore.open(url, retry=Retry(first=0.01, most=0.02, contact=0.5))
    assert type(caught.value) is kind
    return caught.value


def test_codes_of_grpc_are_told_apart(refusing: tuple[Refusing, str]) -> None:
    servicer, url = refusing
    servicer.codes = [
        (Code.UNAVAILABLE, "down"),
        (Code.DEADLINE_EXCEEDED, "slow"),
        (Code.INTERNAL, "Service internal error"),
        (Code.NOT_FOUND, "Collection `docs` doesn't exist!"),
    ]
    fail(url, StoreNotFound)
    assert servicer.codes == []
    servicer.codes = [(Code.UNAUTHENTICATED, "Must provide an API key")]
    assert "QDRANT_API_KEY" in fail(url, StoreError).hint
    servicer.codes = [(Code.INVALID_ARGUMENT, "Wrong input: no")]
    assert "Wrong input: no" in str(fail(url, StoreError))
    servicer.codes = [(Code.UNAVAILABLE, "down")] * 500
    assert "down" in str(fail(url, StoreUnavailable))


def test_a_rate_limit_of_grpc_is_kept(refusing: tuple[Refusing, str]) -> None:
    servicer, url = refusing
    servicer.codes = [(Code.RESOURCE_EXHAUSTED, "Read rate limit exceeded: …")] * 2
    servicer.retry_after = "3600"
    fail(url, StoreUnavailable)
    assert len(servicer.codes) == 1
