"""What every store refuses, so that all of them refuse it in the same words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from nexus_vdb.errors import ConfigError, DimensionMismatch, FingerprintMismatch, StoreError
from nexus_vdb.types import Floats, QueryBatch, Records, SearchPlan, StoreSchema

__all__ = [
    "check_meta",
    "check_plan",
    "check_records",
    "check_schema",
    "check_selection",
    "check_vectors",
]


def check_schema(url: str, *, stored: StoreSchema | None, asked: StoreSchema) -> None:
    """Refuse a schema that makes no sense, or that the store at `url` does not have.

    Args:
        url: Named in the error.
        stored: What the store was made with; None if it is to be made now.
        asked: What the caller wants.

    Raises:
        ConfigError: the cuts do not rise up to `dim`.
        DimensionMismatch: the store has another width.
        FingerprintMismatch: both name a model, and not the same.
    """
    rising = sorted(set(asked.cuts)) == list(asked.cuts)
    if not asked.cuts or not rising or asked.cuts[0] < 1 or asked.cuts[-1] != asked.dim:
        raise ConfigError(
            f"cuts={asked.cuts} do not fit dim={asked.dim}",
            hint="cuts rise, and the last one is the width of the vectors",
        )
    if stored is None:
        return
    if stored.dim != asked.dim:
        raise DimensionMismatch(
            f"{url} holds vectors of {stored.dim} dimensions, not {asked.dim}",
            hint="use the model that filled it, or another store",
        )
    if stored.fingerprint and asked.fingerprint and stored.fingerprint != asked.fingerprint:
        raise FingerprintMismatch(
            f"{url} was filled by {stored.model or 'a model'} ({stored.fingerprint[:12]}), "
            f"not by {asked.model or 'this one'} ({asked.fingerprint[:12]})",
            hint="use the model that filled it, or ingest into another store",
        )


def check_records(records: Records, dim: int) -> None:
    """Refuse vectors of another width than `dim`, and such as have no direction.

    Raises:
        DimensionMismatch: they are of another width.
        StoreError: one holds NaN or infinity.
    """
    if len(records):
        check_vectors(records.vectors, dim)


def check_vectors(vectors: Floats, dim: int) -> None:
    """As `check_records`, for vectors `[n, d]` by themselves.

    Raises:
        DimensionMismatch: they are of another width.
        StoreError: one holds NaN or infinity.
    """
    if vectors.shape[1:] != (dim,):
        raise DimensionMismatch(
            f"the store holds vectors of {dim} dimensions, not {vectors.shape[1]}",
            hint="use the model that filled the store, or another store",
        )
    _check_finite(vectors)


def check_plan(queries: QueryBatch, plan: SearchPlan, dim: int) -> None:
    """Refuse a search that a store of width `dim` cannot carry out.

    Raises:
        DimensionMismatch: the queries are of another width.
        ConfigError: `k`, `candidates` or `cuts` cannot be used.
        StoreError: a query holds NaN or infinity.
    """
    if len(queries) and queries.vectors.shape[1:] != (dim,):
        raise DimensionMismatch(
            f"the store holds vectors of {dim} dimensions, the query has "
            f"{queries.vectors.shape[1]}",
            hint="use the model that filled the store",
        )
    _check_finite(queries.vectors)
    if plan.k < 1:
        raise ConfigError(f"k={plan.k}: at least one hit must be asked for")
    if plan.candidates == "auto" or (plan.candidates != "exact" and plan.candidates < 1):
        raise ConfigError(
            f"candidates={plan.candidates!r} reached a store",
            hint='a store takes a positive number or "exact"',
        )
    if not plan.cuts or any(not 1 <= cut <= dim for cut in plan.cuts):
        raise ConfigError(f"cuts={plan.cuts} do not lie between 1 and {dim}")


def check_selection(ids: Sequence[str] | None, where: object | None) -> None:
    """Refuse a deletion that names both ids and a filter, or neither.

    Raises:
        ConfigError: it does.
    """
    if (ids is None) == (where is None):
        raise ConfigError("delete takes either ids or a filter")


def check_meta(key: str, value: Any) -> Any:
    """The value as JSON gives it back: a copy, with tuples as lists.

    Raises:
        ConfigError: JSON has no form for it.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"meta {key!r} is not a JSON value: {error}") from error


def _check_finite(vectors: Floats) -> None:
    # A single NaN would make every comparison of scores false.
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise StoreError(
            f"vector {row} of the batch holds NaN or infinity",
            hint="see what the model makes of that text",
        )
