"""Scanning the 64-bit codes of a segment by the asymmetric score: all of them, some, or some lists.

A code is a 16x4-bit product quantizer whose centroids are the 16 corners {-1, +1}^4, so FAISS
scans it with its SIMD kernels (André et al. 2015, doi:10.14778/2856318.2856324), with query tables
rounded to 8 bits; what it returns is scored again exactly. Its index takes 8 bytes a code and
30 ms for a million of them, so it is made where all codes are scanned, and not kept on disk.

With a code's own signs as logits (`nexus_vdb.hashing.signs`) the score ranks by Hamming distance.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_halves import Mask, Scored
from nexus_vdb.connectors._faiss_lists import Lists
from nexus_vdb.hashing import BITS
from nexus_vdb.ranking import Rows, best_rows
from nexus_vdb.types import Floats

__all__ = ["HashScan", "best_codes", "scan_lists", "table_scores"]

_SMALL = 4096
"""Codes below which the exact tables are as fast as building and asking an index."""

_MANY = 16_384
"""Codes from which four look-ups in large tables are faster, making these included, than eight."""

_OCTETS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS = _OCTETS.astype(np.float32) * 2 - 1

Codes = npt.NDArray[np.uint64]


def table_scores(logits: Floats, codes: Codes) -> Floats:
    """Σ logit_i · (±1) of one query `[64]` with codes uint64 `[n]`, by table look-ups."""
    tables = np.asarray(logits, dtype=np.float32).reshape(8, 8) @ _SIGNS.T
    parts = np.ascontiguousarray(codes, dtype="<u8").view(np.uint8).reshape(-1, 8)
    if len(codes) >= _MANY:
        tables = (tables[1::2, :, None] + tables[0::2, None, :]).reshape(4, -1)
        parts = parts.view("<u2")
    scores = np.zeros(len(codes), dtype=np.float32)
    for place, table in enumerate(tables):
        # No index can be out of bounds: "clip" only spares the check.
        scores += table.take(parts[:, place], mode="clip")
    return scores


def best_codes(logits: Floats, codes: Codes, places: Rows, count: int) -> Scored:
    """The places with the `count` highest scores for a query `[64]`, ties included; exact.

    Args:
        logits: The query's.
        codes: uint64 `[n]`, of these places.
        places: int64 `[n]`.
        count: Places wanted.
    """
    scores = table_scores(logits, codes)
    best = best_rows(scores, count)
    return places[best], scores[best]


def scan_lists(
    lists: Lists, codes: Codes, numbers: Rows, logits: Floats, count: int, *, live: Mask | None
) -> Scored:
    """As `best_codes`, of the live places of some lists.

    Args:
        lists: The segment's.
        codes: All of the segment, uint64 `[n]`.
        numbers: Lists to visit.
        logits: Of one query, `[64]`.
        count: Places wanted.
        live: Which places count, bool `[n]`; None for all.
    """
    slices, places = lists.places(numbers)
    visited = np.concatenate([codes[part] for part in slices])
    if live is not None:
        here = np.concatenate([live[part] for part in slices])
        visited, places = visited[here], places[here]
    return best_codes(logits, visited, places, count)


class HashScan:
    """The best candidates among the live codes of a segment; its index is built on first use.

    Args:
        codes: uint64 `[n]`, all of the segment.
        live: Which places count, bool `[n]`; None for all.
    """

    def __init__(self, codes: Codes, live: Mask | None) -> None:
        self._codes = codes
        self._places = None if live is None else np.flatnonzero(live)

    def best(self, logits: Floats, count: int) -> list[Scored]:
        """For each query: places with about the `count` highest scores, rising, and the scores.

        Args:
            logits: float32 `[q, 64]`.
            count: Places wanted; ties may add some.
        """
        n = len(self._codes) if self._places is None else len(self._places)
        if n <= max(_SMALL, count):
            every = np.arange(n) if self._places is None else self._places
            codes = self._codes[every]
            return [best_codes(one, codes, every, count) for one in logits]
        # The rounded tables confuse near ties: a few more are taken and scored exactly.
        wanted = min(n, count + count // 10 + 32)
        _, found = self._index.search(np.ascontiguousarray(logits, dtype=np.float32), wanted)
        found.sort(axis=1)  # neighbours in the files are read together
        places = found if self._places is None else self._places[found]
        pairs = zip(logits, places, strict=True)
        return [best_codes(one, self._codes[some], some, count) for one, some in pairs]

    @cached_property
    def _index(self) -> Any:
        codes = self._codes if self._places is None else self._codes[self._places]
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
