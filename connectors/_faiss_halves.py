"""Float16 rows compared with queries where they lie, in memory or in a mapped file.

FAISS decodes and multiplies float16 in its SIMD kernels; an index that is a view of the rows costs
microseconds to make and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_maps import HELD, let_go
from nexus_vdb.ranking import Rows, best_rows, cut_vectors
from nexus_vdb.threads import in_threads, one_blas_thread
from nexus_vdb.types import Floats

__all__ = [
    "Halves",
    "Mask",
    "Scored",
    "best_of",
    "floats",
    "highest",
    "highest_of",
    "one_faiss_thread",
    "threads_for",
]

Halves: TypeAlias = npt.NDArray[np.float16]
Mask: TypeAlias = npt.NDArray[np.bool_]
Scored: TypeAlias = tuple[Rows, Floats]
"""Rows and the score of each."""

_FEW = 3
"""Queries up to which FAISS on float16 is quicker than decoding once for one matrix product."""

_SPARE = 32
"""Rows asked for beyond those wanted, so that near ties are seldom a reason to ask again."""

_BLOCK = 16384
"""Rows whose products with all queries are held at a time."""

_STEP = 512
"""Rows that are decoded and multiplied at a time: 1.5 MiB at 768 dimensions stay in the cache."""

_ROUNDING = 1e-6
"""What float32 sums of unit rows may differ by: equal rows have other products at the edges of a
matrix product's tiles, on some processors, and still are ties."""

_EACH = 8
"""Queries that make a thread worth starting."""

_CHUNK = 1 << 16
"""Values decoded at a time, so that they stay in the cache."""


def floats(halves: Halves, *, out: Floats | None = None) -> Floats:
    """Finite float16 rows as float32, `[n, d]`, in half the time of numpy's own cast.

    The bits of a half, moved to where a float has them, are its value times 2 ** -112.
    """
    if out is None:
        out = np.empty(halves.shape, dtype=np.float32)
    bits, step = out.view(np.int32), max(1, _CHUNK // max(1, halves.shape[1]))
    for start in range(0, len(halves), step):
        part, value = bits[start : start + step], out[start : start + step]
        np.copyto(part, halves[start : start + step].view(np.int16))
        np.left_shift(part, 13, out=part)
        np.bitwise_and(part, np.int32(-0x70002000), out=part)  # sign, exponent and mantissa
        np.multiply(value, np.float32(2.0**112), out=value)
    return out


def highest(
    halves: Halves,
    queries: Floats,
    k: int,
    *,
    slack: float = 0.0,
    among: Mask | None = None,
    normalize: bool = False,
) -> list[Scored]:
    """For each query the k rows of highest inner product, and those within `slack` of the last.

    Args:
        halves: float16 `[n, d]`.
        queries: float32 `[q, d]`.
        k: Rows wanted; fewer where there are fewer.
        slack: How much less than the k-th is near enough.
        among: Which rows are meant, bool `[n]`; None for all.
        normalize: Whether rows are made unit rows before they are compared.
    """
    count = len(halves) if among is None else int(np.count_nonzero(among))
    if count == 0 or not len(queries):
        nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return [nothing for _ in queries]
    if normalize or len(queries) > _FEW:
        return _by_products(halves, queries, k, slack=slack, among=among, normalize=normalize)
    return _by_faiss(halves, queries, min(k, count), slack=slack, among=among)


def _by_faiss(
    halves: Halves, queries: Floats, k: int, *, slack: float, among: Mask | None
) -> list[Scored]:
    halves = np.ascontiguousarray(halves)
    count = len(halves) if among is None else int(np.count_nonzero(among))
    index, selected = _view(halves), None
    if among is not None:
        bitmap = np.packbits(among, bitorder="little")
        library: Any = faiss  # its stubs know the C++ signatures only
        selected = library.SearchParameters(sel=library.IDSelectorBitmap(bitmap))

    def search(query: Floats) -> Scored:
        wanted = k + _SPARE
        while True:
            scores, rows = index.search(query[None], min(wanted, count), params=selected)
            near = scores[0] >= scores[0][k - 1] - slack
            if wanted >= count or not near.all():
                near &= rows[0] >= 0  # what is not a number is not found
                return rows[0][near], scores[0][near]
            wanted *= 4

    with one_faiss_thread():
        return [search(query) for query in np.ascontiguousarray(queries, dtype=np.float32)]


def threads_for(queries: int) -> int:
    """As many threads as FAISS may use, as long as each has some of the queries to work on."""
    return min(faiss.omp_get_max_threads(), queries // _EACH)


@contextmanager
def one_faiss_thread() -> Iterator[None]:
    """Threads that FAISS shares small work out to only wait for each other.

    The number is the calling thread's own.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _view(halves: Halves) -> Any:
    kind = faiss.ScalarQuantizer.QT_fp16
    index: Any = faiss.IndexScalarQuantizer(halves.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    address = faiss.cast_integer_to_void_ptr(halves.ctypes.data)
    # The owner of an empty index's codes is nobody: the rows stay numpy's.
    vector: Any = faiss.MaybeOwnedVectorUInt8
    index.codes = vector.create_view(address, halves.nbytes, index.codes.owner)
    index.ntotal = len(halves)
    return index


def highest_of(
    halves: Halves,
    queries: Floats,
    candidates: Sequence[Rows],
    k: int,
    *,
    slack: float = 0.0,
    normalize: bool = False,
) -> list[Scored]:
    """As `highest`, of other rows for each query: one pass over all rows for many of both.

    Args:
        halves: float16 `[n, d]`.
        queries: float32 `[q, d]`.
        candidates: Rows of each query.
        k: See `highest`.
        slack: …
        normalize: …
    """
    slack = max(slack, _ROUNDING)
    candidates = [np.sort(rows) for rows in candidates]

    def pick(number: int, first: int, scores: Floats) -> Scored:
        start, end = np.searchsorted(candidates[number], (first, first + len(scores)))
        rows = candidates[number][start:end]
        mine = scores[rows - first]
        best = best_rows(mine, k, slack=slack)
        return rows[best], mine[best]

    def best(start: int) -> list[Scored]:
        part = halves[start : start + _BLOCK]
        products = _products(part, queries, normalize=normalize)
        return [pick(number, start, scores) for number, scores in enumerate(products)]

    return _in_blocks(best, halves, k, slack=slack)


def _by_products(
    halves: Halves,
    queries: Floats,
    k: int,
    *,
    slack: float,
    among: Mask | None,
    normalize: bool,
) -> list[Scored]:
    slack = max(slack, _ROUNDING)

    def best(start: int) -> list[Scored]:
        rows = np.arange(start, min(start + _BLOCK, len(halves)))
        part = halves[start : start + _BLOCK]
        if among is not None and not among[rows].all():
            rows = rows[among[rows]]
            part = halves[rows]
        found = []
        for scores in _products(part, queries, normalize=normalize):
            best_ones = best_rows(scores, k, slack=slack)
            found.append((rows[best_ones], scores[best_ones]))
        return found

    return _in_blocks(best, halves, k, slack=slack)


def _in_blocks(
    best: Callable[[int], list[Scored]], halves: Halves, k: int, *, slack: float
) -> list[Scored]:
    """The best of what is best in the block of rows from each start on."""

    def block(start: int) -> list[Scored]:
        found = best(start)
        if halves.nbytes > HELD:
            let_go(halves[start : start + _BLOCK])
        return found

    threads = faiss.omp_get_max_threads()  # to be asked first: FAISS's own BLAS sets it as well
    with one_blas_thread():
        parts = in_threads(block, range(0, len(halves), _BLOCK), threads=threads)
    return [best_of(list(mine), k, slack=slack) for mine in zip(*parts, strict=True)]


def _products(part: Halves, queries: Floats, *, normalize: bool) -> Floats:
    """Inner products float32 `[q, n]` of queries with rows."""
    buffer = np.empty((_STEP, part.shape[1]), dtype=np.float32)
    products = np.empty((len(queries), len(part)), dtype=np.float32)
    for first in range(0, len(part), _STEP):
        some = part[first : first + _STEP]
        units = floats(some, out=buffer[: len(some)])
        if normalize:
            units = cut_vectors(units, units.shape[1])
        products[:, first : first + _STEP] = queries @ units.T
    return products


def best_of(parts: list[Scored], k: int, *, slack: float = 0.0) -> Scored:
    """The k best of several lists, and those within `slack` of the last."""
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    if len(parts) == 1:
        rows, scores = parts[0]
    else:
        rows = np.concatenate([part for part, _ in parts])
        scores = np.concatenate([part for _, part in parts])
    best = best_rows(scores, k, slack=slack)
    return rows[best], scores[best]
