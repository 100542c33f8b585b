"""Scanning 64-bit codes by the asymmetric score: FAISS over all of them, or tables over some.

A code is a 16x4-bit product quantizer whose centroids are the 16 corners {-1, +1}^4, so FAISS
scans it with its SIMD kernels (André et al. 2015, doi:10.14778/2856318.2856324), with query tables
rounded to 8 bits; what it returns is scored again exactly.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.hashing import BITS
from nexus_vdb.ranking import Rows, best_rows
from nexus_vdb.types import Floats

__all__ = ["HashScan", "best_codes", "table_scores"]

_SMALL = 4096
"""Codes below which the exact tables are as fast as building and asking an index."""

_OCTETS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS = _OCTETS.astype(np.float32) * 2 - 1

Codes = npt.NDArray[np.uint64]


def table_scores(logits: Floats, codes: Codes) -> Floats:
    """Σ logit_i · (±1) of one query `[64]` with codes uint64 `[n]`: eight table look-ups each."""
    tables = _SIGNS @ logits.reshape(8, 8).T
    octets = np.ascontiguousarray(codes, dtype="<u8").view(np.uint8).reshape(-1, 8)
    scores = np.zeros(len(codes), dtype=np.float32)
    for place in range(8):
        scores += tables[:, place][octets[:, place]]
    return scores


def best_codes(logits: Floats, codes: Codes, rows: Rows, count: int) -> tuple[Rows, Floats]:
    """The rows with the `count` highest scores for a query `[64]`, ties included; exact."""
    scores = table_scores(logits, codes[rows])
    best = best_rows(scores, count)
    return rows[best], scores[best]


class HashScan:
    """The best candidates among the live codes of a segment; its index is built on first use.

    Args:
        codes: uint64 `[n]`, all of the segment.
        rows: The live ones; None for all.
    """

    def __init__(self, codes: Codes, rows: Rows | None) -> None:
        self._codes = codes
        self._rows = rows

    def best(self, logits: Floats, count: int) -> list[tuple[Rows, Floats]]:
        """For each query: rows with about the `count` highest scores, in no order, and the scores.

        Args:
            logits: float32 `[q, 64]`.
            count: Rows wanted; ties may add some.
        """
        n = len(self._codes) if self._rows is None else len(self._rows)
        if n <= max(_SMALL, count):
            every = np.arange(n) if self._rows is None else self._rows
            return [best_codes(one, self._codes, every, count) for one in logits]
        # The rounded tables confuse near ties: a few more are taken and scored exactly.
        wanted = min(n, count + count // 10 + 32)
        _, found = self._index.search(np.ascontiguousarray(logits, dtype=np.float32), wanted)
        rows = found if self._rows is None else self._rows[found]
        pairs = zip(logits, rows, strict=True)
        return [best_codes(one, self._codes, some, count) for one, some in pairs]

    @cached_property
    def _index(self) -> Any:
        codes = self._codes if self._rows is None else self._codes[self._rows]
        return _fast_scan(codes)


def _fast_scan(codes: Codes) -> Any:
    parts, bits = BITS // 4, 4
    corners = (np.arange(16)[:, None] >> np.arange(bits) & 1) * 2.0 - 1
    quantizer = faiss.IndexPQ(BITS, parts, bits, faiss.METRIC_INNER_PRODUCT)
    centroids = np.tile(corners.astype(np.float32), (parts, 1, 1)).ravel()
    faiss.copy_array_to_vector(centroids, quantizer.pq.centroids)
    quantizer.is_trained = True
    quantizer.add_sa_codes(np.ascontiguousarray(codes, dtype="<u8").view(np.uint8).reshape(-1, 8))
    return faiss.IndexPQFastScan(quantizer)  # type: ignore[arg-type]
