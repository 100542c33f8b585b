"""How a search is planned: which cuts, and how many candidates the hash has to let through.

A store says by its meta value "hash" whether its codes can be used: "model" (bits of the encoder),
"itq" (a rotation fitted on its own vectors, kept as "itq"); absent, every search is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import ConfigError, DimensionMismatch, FingerprintMismatch
from nexus_vdb.hashing import BITS, ItqHash, asymmetric_scores, pack
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.records import join_records, take_records
from nexus_vdb.types import Floats, QueryBatch, Records, SearchPlan, StoreInfo

__all__ = [
    "EXACT_BELOW",
    "Candidates",
    "calibrate",
    "check_model",
    "choose_candidates",
    "fit_hash",
    "has_hash",
    "make_plan",
    "needs_calibration",
    "opening_words",
    "stored_hash",
    "vector_queries",
]

Depths = npt.NDArray[np.int64]

Candidates = int | Literal["auto", "exact"]

EXACT_BELOW = 20_000
"""Records up to which comparing all of them costs no more than the way around it."""

_EXACT_SHARE = 4  # more than a quarter of the records as candidates: compare all of them
_GROWTH = 1.2
_SAMPLE, _QUERIES, _QUERY_WORDS, _TOP = 20_000, 256, 16, 10
_FIT_FROM = 4096
_LEVELS = (0.9, 0.95, 0.98, 0.99)
_DEFAULT_SHARE, _DEFAULT_LEAST = 0.03, 200


def has_hash(info: StoreInfo) -> bool:
    """Whether the store's codes can be used."""
    return "hash" in info.meta


def stored_hash(info: StoreInfo) -> ItqHash | None:
    """The rotation fitted on the store's own vectors, where its codes come from one."""
    return ItqHash.from_json(info.meta["itq"]) if info.meta.get("hash") == "itq" else None


def vector_queries(vectors: Floats, itq: ItqHash | None) -> QueryBatch:
    """Ready-made vectors float32 `[q, d]`, which need not be unit rows, as queries or records."""
    unit = cut_vectors(np.asarray(vectors, dtype=np.float32), vectors.shape[1])
    logits = np.zeros((len(unit), BITS), np.float32) if itq is None else itq.logits(unit)
    return QueryBatch(unit, logits, pack(logits))


def fit_hash(store: Store) -> ItqHash | None:
    """Give a store of ready-made vectors its hash, once it has enough of them to fit one.

    The rotation is kept with the store, then the codes of the records it has are filled in, and
    only then is the hash declared, so that a kill in between leaves a store that is searched
    exactly.
    """
    info = store.info()
    if info.count < _FIT_FROM or info.schema.dim < BITS:
        return None
    if "itq" in info.meta:
        itq = ItqHash.from_json(info.meta["itq"])
    else:
        itq = ItqHash.fit(_first_records(store).vectors)
        store.set_meta("itq", itq.to_json())
    for records in store.scan():
        store.upsert(replace(records, codes=pack(itq.logits(records.vectors))))
    store.set_meta("hash", "itq")
    return itq


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
    if not has_hash(info):
        candidates = "exact"
    elif candidates == "auto":
        candidates = choose_candidates(info, k=k, target_recall=target_recall, matching=matching)
    elif candidates != "exact":
        candidates = max(candidates, k)
    cuts = (*(cut for cut in schema.cuts if cut < dim), dim)
    return SearchPlan(k=k, candidates=candidates, cuts=cuts, target_recall=target_recall)


def _check(k: int, candidates: object, target_recall: float) -> None:
    if k < 1:
        raise ConfigError(f"Invalid k={k}; valid: 1 or more")
    number = isinstance(candidates, int) and not isinstance(candidates, bool) and candidates > 0
    if not number and candidates not in ("auto", "exact"):
        raise ConfigError(f"Invalid candidates={candidates}; valid: a number, auto, exact")
    if not 0 < target_recall <= 1:
        raise ConfigError(f"Invalid target_recall={target_recall}; valid: above 0, at most 1")


def choose_candidates(
    info: StoreInfo, *, k: int, target_recall: float = 0.98, matching: int | None = None
) -> int | Literal["exact"]:
    """Candidates that reach the target, from the store's calibration; 3 % where it has none.

    They grow in proportion to the records searched, and are never fewer than 10 for each hit.
    "exact" where that is cheaper: few records, or a large share of them needed.
    """
    count = info.count if matching is None else min(matching, info.count)
    share = _share(info.meta.get("calibration"), target_recall)
    needed = max(math.ceil(share * count), 10 * k, _DEFAULT_LEAST)
    if count <= EXACT_BELOW or needed * _EXACT_SHARE > count:
        return "exact"
    return needed


def _share(calibration: dict[str, Any] | None, target_recall: float) -> float:
    if calibration is None:
        return _DEFAULT_SHARE
    levels = {float(level): c for level, c in calibration["table"].items()}
    reached = [c for level, c in sorted(levels.items()) if level >= target_recall]
    return float(reached[0] / calibration["sample"]) if reached else 1.0


def needs_calibration(info: StoreInfo) -> bool:
    """Whether the store is large enough and has grown by a fifth since it was last measured."""
    known = info.meta.get("calibration", {"n": 0})
    return has_hash(info) and info.count > max(EXACT_BELOW, _GROWTH * known["n"])


def calibrate(
    store: Store, queries_of: Callable[[Records], QueryBatch], *, seed: int = 0
) -> dict[str, Any]:
    """Measure how deep the hash order has to be read, and keep it as the meta value "calibration".

    Queries are made of the store's own records; a record is left out of its own answer.

    Args:
        store: Has a hash and more than ten records.
        queries_of: Turns sampled records into queries, as searching would; see `opening_words`.
        seed: Of the sample.

    Returns:
        `n` records at the time, `sample` records compared with, and `table`: the candidates that
        hold that share of the exact top 10, by share.
    """
    corpus = _first_records(store)
    own = np.random.default_rng(seed).permutation(len(corpus))[:_QUERIES]
    queries = queries_of(take_records(corpus, own.tolist()))
    depths = _depths(queries, corpus, own)
    reached = np.quantile(depths, _LEVELS, method="higher")
    table = {str(level): int(depth) for level, depth in zip(_LEVELS, reached, strict=True)}
    found = {"n": store.count(), "sample": len(corpus), "table": table}
    store.set_meta("calibration", found)
    return found


def opening_words(texts: Sequence[str]) -> list[str]:
    """The first words of each text: about as long as what people ask."""
    return [" ".join(text.split()[:_QUERY_WORDS]) for text in texts]


def _first_records(store: Store) -> Records:
    parts, count = [], 0
    for records in store.scan():
        parts.append(records)
        count += len(records)
        if count >= _SAMPLE:
            break
    return join_records(parts)


def _depths(queries: QueryBatch, corpus: Records, own: npt.NDArray[np.int64]) -> Depths:
    """Place in the hash order of each record of the exact top, `[q, 10]`, from 1."""
    rows = np.arange(len(queries))
    cosines = queries.vectors @ corpus.vectors.T
    hashed = asymmetric_scores(queries.hash_logits, corpus.codes)
    cosines[rows, own] = hashed[rows, own] = -np.inf
    top = np.argpartition(-cosines, _TOP, axis=1)[:, :_TOP]
    found = np.take_along_axis(hashed, top, axis=1)
    return np.stack([(hashed[row, :, None] >= found[row]).sum(axis=0) for row in rows])
