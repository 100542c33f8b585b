"""Searches as requests of Qdrant's REST interface: one for each query, with all its stages.

The stages of a plan are nested, hash → 256 → 768, and the innermost one sees every point. Where
the widest vector has a graph, that is asked instead, and needs no other stage.
"""

from __future__ import annotations

from typing import Any

from nexus_vdb.connectors._qdrant_filter import Json
from nexus_vdb.connectors._qdrant_points import HASH, HIT_FIELDS, vector_name
from nexus_vdb.ranking import cut_vectors, shortlist
from nexus_vdb.types import Floats, QueryBatch, SearchPlan, StoreSchema

__all__ = ["RANDOM", "searches"]

_SPARE = 16
"""Hits asked for beyond k: the engine cuts equal scores at random, we cut them by id."""

_MOST_VISITED = 256
"""Candidates of a graph search at most: 0.99 of the exact top 10 among 50,000 real texts, and a
plan's candidates are counted for the hash, which needs far more of them."""

RANDOM: Json = {"sample": "random"}
"""In the place of a vector: points drawn evenly."""


def searches(
    queries: QueryBatch,
    plan: SearchPlan,
    schema: StoreSchema,
    where: Json | None,
    *,
    graph: bool = False,
) -> list[Json]:
    """One request for each query: hash, then each cut of the plan that is stored.

    An exact search compares at the last cut alone. Where that one is not stored, the points come
    with their vectors instead, to be compared by the caller.

    Args:
        queries: What is looked for.
        plan: How.
        schema: The cuts that are stored.
        where: A condition.
        graph: Whether the widest vector has a graph, which takes the place of the hash.
    """
    exact = plan.candidates == "exact"
    graph = graph and not exact and plan.cuts[-1] == schema.dim
    wanted = plan.cuts[-1:] if exact or graph else plan.cuts
    units = {cut: cut_vectors(queries.vectors, cut) for cut in wanted if cut in schema.cuts}
    output: Json = {"with_payload": HIT_FIELDS}
    if plan.cuts[-1] not in units:
        output["with_vector"] = [vector_name(schema.dim)]
    requests = []
    for row in range(len(queries)):
        stages = [] if exact or graph else [_hash_stage(queries.hash_logits[row], plan)]
        stages += [_cut_stage(unit[row], cut, plan) for cut, unit in units.items()]
        stages[0]["filter"] = where
        if exact:
            stages[0]["params"] = {"exact": True}
        elif graph:
            stages[0]["params"] = {"hnsw_ef": _visited(plan)}
        requests.append(_nested(stages) | output)
    return requests


def _visited(plan: SearchPlan) -> int:
    return max(plan.k + _SPARE, min(int(plan.candidates), _MOST_VISITED))


def _hash_stage(logits: Floats, plan: SearchPlan) -> Json:
    return {
        "query": {"nearest": logits.tolist()},
        "using": HASH,
        "limit": max(int(plan.candidates), plan.k),
        "params": {"quantization": {"rescore": False}},
    }


def _cut_stage(unit: Floats, cut: int, plan: SearchPlan) -> dict[str, Any]:
    last = cut == plan.cuts[-1]
    limit = plan.k + _SPARE if last else shortlist(plan.k)
    return {"query": {"nearest": unit.tolist()}, "using": vector_name(cut), "limit": limit}


def _nested(stages: list[Json]) -> Json:
    request, *rest = stages
    for stage in rest:
        request = stage | {"prefetch": [request]}
    return request
