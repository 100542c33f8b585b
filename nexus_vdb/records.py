"""Picking and joining rows of `Records` and `QueryBatch`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nexus_vdb.types import QueryBatch, Records

__all__ = ["join_records", "no_records", "take_queries", "take_records"]


def no_records(dim: int) -> Records:
    """Zero records of width `dim`."""
    vectors = np.zeros((0, dim), dtype=np.float32)
    ordinals, codes = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.uint64)
    return Records([], [], ordinals, [], [], [], vectors, codes)


def take_records(records: Records, rows: Sequence[int]) -> Records:
    """Some rows, in the order given; metadata dicts are shared, not copied."""
    index = np.array(rows, dtype=np.int64)
    return Records(
        ids=[records.ids[row] for row in rows],
        document_ids=[records.document_ids[row] for row in rows],
        ordinals=records.ordinals[index],
        texts=[records.texts[row] for row in rows],
        metadata=[records.metadata[row] for row in rows],
        content_hashes=[records.content_hashes[row] for row in rows],
        vectors=records.vectors[index],
        codes=records.codes[index],
    )


def take_queries(queries: QueryBatch, rows: Sequence[int]) -> QueryBatch:
    """Some queries, in the order given."""
    index = np.array(rows, dtype=np.int64)
    return QueryBatch(queries.vectors[index], queries.hash_logits[index], queries.codes[index])


def join_records(parts: Sequence[Records]) -> Records:
    """One after the other; at least one part."""
    return Records(
        ids=[one for part in parts for one in part.ids],
        document_ids=[one for part in parts for one in part.document_ids],
        ordinals=np.concatenate([part.ordinals for part in parts]),
        texts=[one for part in parts for one in part.texts],
        metadata=[one for part in parts for one in part.metadata],
        content_hashes=[one for part in parts for one in part.content_hashes],
        vectors=np.concatenate([part.vectors for part in parts]),
        codes=np.concatenate([part.codes for part in parts]),
    )
