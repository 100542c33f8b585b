"""How a search is planned: which cuts, and how many candidates the hash has to let through.

A store says by its meta value "hash" whether its codes can be used: "model" (bits of the encoder),
"itq" (a rotation fitted on its own vectors, kept as "itq"); without one every search is exact.
Which of the two it is, is decided in `rotation`; what "auto" rests on is measured in `calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from nexus_vdb.errors import ConfigError, DimensionMismatch, FingerprintMismatch
from nexus_vdb.hashing import BITS, ItqHash, pack
from nexus_vdb.interfaces import Encoder
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import Floats, QueryBatch, SearchPlan, StoreInfo

__all__ = [
    "EXACT_BELOW",
    "EXACT_SHARE",
    "Candidates",
    "Depth",
    "calibration_points",
    "check_model",
    "choose_depth",
    "cost",
    "expected_recall",
    "has_hash",
    "make_plan",
    "reaches",
    "stored_hash",
    "vector_queries",
]

Candidates = int | Literal["auto", "exact"]

Depth = tuple[int | Literal["exact"], float]
"""Candidates of a plan, and its probes."""

EXACT_BELOW = 20_000
"""Records up to which comparing all of them costs no more than the way around it."""

EXACT_SHARE = 4
"""One in so many records as a candidate: comparing all of them costs no more."""

_TOP = 10
"""Hits that recall is measured of."""

_POWER = 0.6
"""The depth that holds a top 10 goes with the number of records to this power (see `_scale`).

Of 10,000 to 200,000 texts it was 0.56 to 0.67, for k from 10 to 100 one less 0.62 as it should be.
"""

_LEAST, _LEAST_PER_HIT = 200, 10
_DEFAULT_SHARE = 0.03  # where nothing has been measured
# What a search costs, in codes scanned one after the other: a candidate to gather and compare, and
# where only some lists are visited, a code to pick out and a candidate among its near ones.
_CANDIDATE, _LISTED_CODE, _LISTED_CANDIDATE = 130.0, 22.0, 80.0


def has_hash(info: StoreInfo) -> bool:
    """Whether the store's codes can be used."""
    return info.meta.get("hash") is not None


def stored_hash(info: StoreInfo) -> ItqHash | None:
    """The rotation fitted on the store's own vectors, where its codes come from one."""
    return ItqHash.from_json(info.meta["itq"]) if info.meta.get("hash") == "itq" else None


def vector_queries(vectors: Floats, itq: ItqHash | None) -> QueryBatch:
    """Ready-made vectors float32 `[q, d]`, which need not be unit rows, as queries or records."""
    unit = cut_vectors(np.asarray(vectors, dtype=np.float32), vectors.shape[1])
    logits = np.zeros((len(unit), BITS), np.float32) if itq is None else itq.logits(unit)
    return QueryBatch(unit, logits, pack(logits))


def check_model(info: StoreInfo, encoder: Encoder) -> None:
    """Refuse to search a store with another model than the one that filled it.

    Raises:
        DimensionMismatch: its vectors are of another width.
        FingerprintMismatch: it is another model.
    """
    schema = info.schema
    if encoder.dim != schema.dim:
        raise DimensionMismatch(
            f"{info.url} holds vectors of {schema.dim} dimensions, "
            f"{encoder.name} makes {encoder.dim}",
            hint="name the model that filled the store",
        )
    if schema.fingerprint and schema.fingerprint != encoder.fingerprint:
        raise FingerprintMismatch(
            f"{info.url} was filled by {schema.model} ({schema.fingerprint[:12]}), "
            f"not by {encoder.name} ({encoder.fingerprint[:12]})",
            hint=f"use --model {schema.model}, or ingest into a new store",
        )


def make_plan(
    info: StoreInfo,
    *,
    k: int = 10,
    candidates: Candidates = "auto",
    dim: int | None = None,
    valid_dims: Sequence[int] = (),
    target_recall: float = 0.98,
    matching: int | None = None,
) -> SearchPlan:
    """A plan that the store can carry out, with "auto" resolved.

    Args:
        info: The store's.
        k: Hits to return.
        candidates: How many records the hash lets through; see `choose_candidates` for "auto".
        dim: Width at which scores are cosines; the store's full width by default.
        valid_dims: Widths that `dim` may have besides the store's cuts: those of the model.
        target_recall: What "auto" aims at.
        matching: Records that satisfy the filter, if there is one.

    Raises:
        ConfigError: `k`, `candidates`, `dim` or `target_recall` cannot be used.
    """
    _check(k, candidates, target_recall)
    schema = info.schema
    dims = sorted({*(dim for dim in valid_dims if dim < schema.dim), *schema.cuts})
    dim = dim or schema.dim
    if dim not in dims:
        raise ConfigError(f"Invalid dim={dim}; valid: {', '.join(map(str, dims))}")
    probes = 1.0
    if not has_hash(info):
        candidates = "exact"
    elif candidates == "auto":
        candidates, probes = choose_depth(info, k=k, target_recall=target_recall, matching=matching)
    elif candidates != "exact":
        candidates = max(candidates, k)
    cuts = (*(cut for cut in schema.cuts if cut < dim), dim)
    return SearchPlan(k, candidates, cuts, target_recall, probes)


def _check(k: int, candidates: object, target_recall: float) -> None:
    if k < 1:
        raise ConfigError(f"Invalid k={k}; valid: 1 or more")
    number = isinstance(candidates, int) and not isinstance(candidates, bool) and candidates > 0
    if not number and candidates not in ("auto", "exact"):
        raise ConfigError(f"Invalid candidates={candidates}; valid: a number, auto, exact")
    if not 0 < target_recall <= 1:
        raise ConfigError(f"Invalid target_recall={target_recall}; valid: above 0, at most 1")


def choose_depth(
    info: StoreInfo, *, k: int, target_recall: float = 0.98, matching: int | None = None
) -> Depth:
    """The cheapest measured candidates and probes that reach the target.

    Reaching it means by more than the standard error of the measurement. Candidates are carried
    over to the records searched and to k, and are never fewer than 10 for each hit; of a store
    that was never measured, 3 % are taken. A filtered search probes everything.

    Args:
        info: The store's.
        k: Hits to return.
        target_recall: Share of the exact answer to find.
        matching: Records that satisfy the filter, if there is one.

    Returns:
        "exact" where that is cheaper (few records, or a large share of them needed), or where
        nothing that was measured reaches the target.
    """
    count = info.count if matching is None else min(matching, info.count)
    points = calibration_points(info)
    needed, probes = math.ceil(_DEFAULT_SHARE * count), 1.0
    if points:
        reached = [
            point
            for point in points
            if reaches(point, target_recall) and (matching is None or point["probes"] >= 1)
        ]
        if not reached:
            return "exact", 1.0
        measured = info.meta["calibration"]["n"]
        best = min(reached, key=lambda point: cost(point, measured))
        needed = math.ceil(best["candidates"] * _scale(count / measured, k))
        probes = float(best["probes"])
    needed = max(needed, _LEAST_PER_HIT * k, _LEAST)
    if count <= EXACT_BELOW or needed * EXACT_SHARE > count:
        return "exact", 1.0
    return needed, probes


def expected_recall(
    info: StoreInfo, plan: SearchPlan, *, matching: int | None = None
) -> float | None:
    """Share of the exact top k that such a search finds on average.

    It is that of the deepest measured search that is no deeper than this one.

    Args:
        info: The store's.
        plan: As carried out.
        matching: Records that satisfy the filter, if there is one.

    Returns:
        1.0 for an exact search; None where no such thing was measured: without a calibration, for
        another width than the store's, and for fewer candidates than were ever tried.
    """
    if plan.candidates == "exact" or not has_hash(info):
        return 1.0
    points = calibration_points(info)
    if not points or plan.candidates == "auto" or plan.cuts[-1] != info.schema.dim:
        return None
    count = info.count if matching is None else matching
    depth = plan.candidates / _scale(max(count, 1) / info.meta["calibration"]["n"], plan.k)
    known = [
        float(point["recall"])
        for point in points
        if point["candidates"] <= max(depth, 1) * (1 + 1e-9) and point["probes"] <= plan.probes
    ]
    return max(known, default=None)


def calibration_points(info: StoreInfo) -> list[dict[str, Any]]:
    """What was measured of the store; nothing where that was in a way not used any more."""
    calibration = info.meta.get("calibration") or {}
    points: list[dict[str, Any]] = calibration.get("points", [])
    return points


def reaches(point: dict[str, Any], target: float) -> bool:
    """Whether the recall of a point is above a target by more than its standard error."""
    return bool(point["recall"] - point["error"] >= target)


def cost(point: dict[str, Any], count: int) -> float:
    """Of a search of `count` records with a point's candidates and probes, in codes scanned."""
    candidates, probes = float(point["candidates"]), float(point["probes"])
    if probes >= 1:
        return count + _CANDIDATE * candidates
    return _LISTED_CODE * probes * count + _LISTED_CANDIDATE * candidates


def _scale(grown: float, k: int) -> float:
    """By how much more candidates hold the top k of a store `grown` times as large.

    The top k of n records is, in a random n · 10 / k of them, the top 10: a depth that goes with
    n to a power p for ten hits goes with k to 1 - p for n records. Growth itself is taken to be
    in proportion, and fewer hits to need as many candidates as ten, both to be safe.
    """
    records = grown if grown > 1 else grown**_POWER
    return float(records * max(k / _TOP, 1) ** (1 - _POWER))
