"""Scanning the 64-bit codes of a segment by the asymmetric score: all of them, some, or some lists.

A code is a 16x4-bit product quantizer whose centroids are the 16 corners {-1, +1}^4, so FAISS
scans it with its SIMD kernels (André et al. 2015, doi:10.14778/2856318.2856324), with query tables
rounded to 8 bits; a few are scored again exactly. FAISS keeps a number of 8 bytes with each entry,
so an entry is two codes, and a query is two, each with zeros for the other's half: 12 bytes a code.
To make the index takes 50 ms for a million, so that is done where all codes are scanned, and it is
not kept on disk.

Of many candidates all above a score are taken: to keep the best of thousands in order takes FAISS
several times as long as the scan itself. A sample says which score so many are above.

With a code's own signs as logits (`nexus_vdb.hashing.signs`) the score ranks by Hamming distance.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_halves import Mask, Scored, one_faiss_thread, threads_for
from nexus_vdb.connectors._faiss_lists import Lists
from nexus_vdb.hashing import BITS
from nexus_vdb.ranking import Rows, best_rows
from nexus_vdb.threads import in_threads
from nexus_vdb.types import Floats

__all__ = ["HashScan", "best_codes", "scan_lists", "table_scores"]

_SMALL = 4096
"""Codes below which the exact tables are as fast as building and asking an index."""

_SAMPLE = 16_384
"""Codes that say which score so many are above."""

_MANY_WANTED = 4096
"""Candidates from which all above a score are taken in place of the best."""

_SURE = 100
"""Of the sample among the candidates, so that it tells within a tenth how many there are."""

_ROUNDED = 0.005
"""What tables of 8 bits may take from a score, as a share of the highest that there can be."""

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
        self._n = len(codes) if self._places is None else len(self._places)

    def best(self, logits: Floats, count: int) -> list[Scored]:
        """For each query: places with about the `count` highest scores, and the scores.

        Args:
            logits: float32 `[q, 64]`.
            count: Places wanted; ties may add some.
        """
        if self._n <= max(_SMALL, count):
            every = np.arange(self._n) if self._places is None else self._places
            codes = self._codes[every]
            return [best_codes(one, codes, every, count) for one in logits]
        threads = threads_for(len(logits))
        return in_threads(lambda one: self._best(one, count), list(logits), threads=threads)

    def _best(self, logits: Floats, count: int) -> Scored:
        with one_faiss_thread():
            scores, found = self._above(logits, count)
            if len(found) < count:
                # The rounded tables confuse near ties: a few more are taken and scored exactly.
                found = self._ranked(logits, min(self._n, count + count // 10 + 32))
                places = self._at(np.sort(found))
                return best_codes(logits, self._codes[places], places, count)
        best = best_rows(scores, count)
        return self._at(found[best]), scores[best]

    def _above(self, logits: Floats, count: int) -> tuple[Floats, Rows]:
        """Scores and numbers of all above the score that `count` should be above.

        Empty where few are wanted; else seldom fewer than `count`, for two standard deviations of
        how many of the sample are among them are added.
        """
        rank = count * len(self._sample) / self._n
        if rank < _SURE or count < _MANY_WANTED:
            return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
        rank = min(int(rank + 2 * rank**0.5), len(self._sample))
        scores = table_scores(logits, self._sample)
        least = np.partition(scores, -rank)[-rank] - _ROUNDED * np.abs(logits).sum()
        limits, scores, found = self._index.range_search(_paired(logits), float(least))
        found = found * 2
        found[limits[1] :] += 1
        there = found < self._n
        return (scores, found) if there.all() else (scores[there], found[there])

    def _ranked(self, logits: Floats, count: int) -> Rows:
        """Numbers of the `count` best, and some more, by rounded scores."""
        entries = self._index.ntotal
        each = count // 2 + 4 * math.isqrt(count)  # the halves seldom differ by more
        while True:
            scores, found = self._index.search(_paired(logits), min(each, entries))
            least = np.partition(scores.ravel(), -count)[-count]
            if each >= entries or scores.min(axis=1).max() <= least:
                numbers = found * 2 + np.array([[0], [1]])
                return np.asarray(numbers[numbers < self._n])
            each *= 2

    def _at(self, numbers: Rows) -> Rows:
        return numbers if self._places is None else self._places[numbers]

    @cached_property
    def _sample(self) -> Codes:
        every = self._codes if self._places is None else self._codes[self._places]
        return every[:: max(1, len(every) // _SAMPLE)].copy()

    @cached_property
    def _index(self) -> Any:
        codes = self._codes if self._places is None else self._codes[self._places]
        return _fast_scan(codes)


def _paired(logits: Floats) -> Floats:
    """A query `[64]` for the first and one for the second codes of all entries, `[2, 128]`."""
    paired = np.zeros((2, 2 * BITS), dtype=np.float32)
    paired[0, :BITS] = paired[1, BITS:] = logits
    return paired


def _fast_scan(codes: Codes) -> Any:
    if len(codes) % 2:
        codes = np.append(codes, codes[-1:])  # never found: its number is that of no code
    width, bits, entries = 2 * BITS, 4, len(codes) // 2
    parts = width // bits
    corners = (np.arange(16)[:, None] >> np.arange(bits) & 1) * 2.0 - 1
    one_list = faiss.IndexFlatIP(width)  # only an index of lists finds all above a score
    one_list.add(np.zeros((1, width), dtype=np.float32))
    quantizer: Any = faiss.IndexIVFPQ(one_list, width, 1, parts, bits, faiss.METRIC_INNER_PRODUCT)
    centroids = np.tile(corners.astype(np.float32), (parts, 1, 1)).ravel()
    faiss.copy_array_to_vector(centroids, quantizer.pq.centroids)
    quantizer.by_residual, quantizer.is_trained, quantizer.ntotal = False, True, entries
    octets, numbers = np.ascontiguousarray(codes, dtype="<u8").view(np.uint8), np.arange(entries)
    pointers = faiss.swig_ptr(numbers), faiss.swig_ptr(octets)
    quantizer.invlists.add_entries(0, entries, *pointers)
    index: Any = faiss.IndexIVFPQFastScan(quantizer)
    index.referenced_objects = [one_list]
    return index
