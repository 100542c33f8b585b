"""Coarse lists of a large segment: near rows stand together, so that a search need not visit all.

Vectors are projected on the leading axes of a sample and clustered in two levels, as a vocabulary
tree (Nistér and Stewénius 2006, doi:10.1109/CVPR.2006.264): a row looks only into the clusters
below its two nearest of the upper level, which costs a twentieth of comparing it with all lists
and misplaces few.

    lists.npz     axes float32 [c, p]; centroids float16 [l, p], unit rows; starts int64 [l + 1]
    order.u32     uint32 [2, n]: the row at each place, the place of each row

A place is a position in the order of the lists: list i has the places starts[i] to starts[i + 1].
`codes.u64` and `prefix.f16` of such a segment stand in this order.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_halves import Halves, floats, highest, one_faiss_thread
from nexus_vdb.connectors._faiss_maps import HELD, let_go
from nexus_vdb.ranking import Rows
from nexus_vdb.threads import in_threads, one_blas_thread
from nexus_vdb.types import Floats

__all__ = ["LISTED", "LISTED_IN_PASSING", "Lists", "list_rows", "read_lists"]

LISTED = 500_000
"""Rows from which a segment has lists. Near rows that stand together are scanned and gathered with
fewer misses, a sixth of the time at a million, even where all are visited."""

LISTED_IN_PASSING = 1_000_000
"""Rows from which a merge while writing makes them; those of fewer wait for `optimize`."""

_AXES = 96
"""Leading axes that are clustered: at 64 more lists have to be visited, at 256 hardly fewer."""

_MOST = 16_384
_SAMPLE_PER_LIST = 32
_SAMPLE = 1 << 25
"""Values of the sample at most: 128 MiB."""

_ROUNDS_ABOVE, _ROUNDS = 8, 6
_BLOCK, _STEP = 131_072, 4096

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Which places are near what.

    Attributes:
        axes: float32 `[c, p]`: projects the narrowest vectors kept.
        centroids: float16 `[l, p]`, unit rows.
        starts: int64 `[l + 1]`: first place of each list, and the number of places.
    """

    axes: Floats
    centroids: Halves
    starts: Numbers

    def __len__(self) -> int:
        return len(self.centroids)

    def nearest(self, units: Floats, share: float) -> list[Numbers]:
        """For each query the lists to visit, rising; at least one.

        Args:
            units: Queries float32 `[q, c]`, at the width that the axes take.
            share: Of all lists.
        """
        count = max(1, int(np.ceil(share * len(self))))
        found = highest(self.centroids, units @ self.axes, count)
        return [np.sort(lists) for lists, _ in found]

    def places(self, lists: Numbers) -> tuple[list[slice], Rows]:
        """The places of some lists: as slices, and one by one."""
        begins, ends = self.starts[lists], self.starts[lists + 1]
        sizes = ends - begins
        shifts = begins - (np.cumsum(sizes) - sizes)
        places = np.arange(int(sizes.sum())) + np.repeat(shifts, sizes)
        return [slice(*pair) for pair in zip(begins.tolist(), ends.tolist(), strict=True)], places

    def of(self, places: Rows) -> Numbers:
        """The list of each place."""
        return np.searchsorted(self.starts, places, side="right") - 1


def read_lists(path: Path) -> Lists:
    """The lists in a file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return Lists(file["axes"], file["centroids"], file["starts"])
    except (KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from error


def list_rows(path: Path, halves: Halves, *, seed: int = 0) -> tuple[Rows, int]:
    """Cluster rows, and write their lists.

    Args:
        path: Of the file to write; on disk when this returns.
        halves: Unit rows, float16 `[n, c]`, which may be a mapped file.
        seed: Of the sample.

    Returns:
        The row at each place, int64 `[n]`, and the number of lists.
    """
    threads = faiss.omp_get_max_threads()
    with one_faiss_thread(), one_blas_thread():
        axes, centroids, lists = _clustered(halves, np.random.default_rng(seed), threads)
    starts = np.zeros(len(centroids) + 1, dtype=np.int64)
    np.cumsum(np.bincount(lists, minlength=len(centroids)), out=starts[1:])
    with path.open("wb") as file:
        np.savez(file, axes=axes, centroids=centroids, starts=starts)
        file.flush()
        os.fsync(file.fileno())
    return np.argsort(lists, kind="stable"), len(centroids)


def _clustered(
    halves: Halves, random: np.random.Generator, threads: int
) -> tuple[Floats, Halves, npt.NDArray[np.int32]]:
    """Axes, centroids, and the list of each row."""
    count = len(halves)
    wanted = min(_MOST, round(4 * count**0.5))
    size = min(count, _SAMPLE_PER_LIST * wanted, _SAMPLE // halves.shape[1])
    sample = _sample(halves, np.sort(random.choice(count, size, replace=False)))
    axes = _leading(sample)
    project = _projection(axes)
    tree = _Tree.grow(project(sample), wanted)
    del sample

    def assigned(start: int) -> npt.NDArray[np.int32]:
        with one_faiss_thread():  # of this thread's work
            return tree.assign(_projected(halves[start : start + _BLOCK], project))

    lists = in_threads(assigned, range(0, count, _BLOCK), threads=threads)
    return axes, tree.centroids.astype(np.float16), np.concatenate(lists)


def _sample(halves: Halves, rows: Rows) -> Floats:
    sample = np.empty((len(rows), halves.shape[1]), dtype=np.float32)
    step = HELD // halves.strides[0]
    ends = np.searchsorted(rows, range(0, len(halves) + step, step))
    for start, end in pairwise(ends.tolist()):
        floats(halves[rows[start:end]], out=sample[start:end])
        let_go(halves)
    return sample


def _leading(sample: Floats) -> Floats:
    # Not centred: inner products are kept, as far as so few axes can.
    _, axes = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(axes[:, -_AXES:], dtype=np.float32)


def _projection(axes: Floats) -> Callable[[Floats], Floats]:
    library: Any = faiss  # its stubs know the C++ signatures only
    transform = library.LinearTransform(*axes.shape, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(axes.T).ravel(), transform.A)
    transform.is_trained = True

    def project(units: Floats) -> Floats:
        projected = transform.apply(units)
        faiss.normalize_L2(projected)
        return np.asarray(projected)

    return project


def _projected(halves: Halves, project: Callable[[Floats], Floats]) -> Floats:
    starts = range(0, len(halves), _STEP)
    parts = [project(floats(halves[start : start + _STEP])) for start in starts]
    let_go(halves)
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True, eq=False)
class _Tree:
    """Two levels of centroids: those below upper centroid i are first[i] to first[i + 1]."""

    upper: Floats
    centroids: Floats
    first: Numbers

    @classmethod
    def grow(cls, sample: Floats, wanted: int) -> _Tree:
        """Cluster a sample of unit rows into about `wanted` lists."""
        upper = _clusters(sample, round(wanted**0.5), _ROUNDS_ABOVE)
        below, parts, sizes = _nearest(sample, upper, 1)[1][:, 0], [], [0]
        for number in range(len(upper)):
            mine = sample[below == number]
            if len(mine):
                share = max(1, round(wanted * len(mine) / len(sample)))
                parts.append(_clusters(mine, share, _ROUNDS))
            sizes.append(sum(map(len, parts)))
        return cls(upper, np.concatenate(parts), np.array(sizes, dtype=np.int64))

    def assign(self, units: Floats) -> npt.NDArray[np.int32]:
        """The list of each row: the best below its two nearest upper centroids."""
        best = np.full(len(units), -np.inf, dtype=np.float32)
        lists = np.zeros(len(units), dtype=np.int32)
        for uppers in _nearest(units, self.upper, min(2, len(self.upper)))[1].T:
            for number, rows in _groups(uppers):
                first, end = self.first[number : number + 2]
                if first < end:
                    scores, found = _nearest(units[rows], self.centroids[first:end], 1)
                    better = scores[:, 0] > best[rows]
                    best[rows[better]] = scores[better, 0]
                    lists[rows[better]] = found[better, 0] + first
        return lists


def _groups(numbers: Numbers) -> Iterator[tuple[int, Rows]]:
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)


def _clusters(sample: Floats, count: int, rounds: int) -> Floats:
    if len(sample) <= count:
        return sample
    kmeans = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=rounds,
        spherical=True,
        seed=1,
        min_points_per_centroid=1,
        max_points_per_centroid=256,
    )
    kmeans.train(sample)
    return np.asarray(kmeans.centroids)


def _nearest(units: Floats, centroids: Floats, count: int) -> tuple[Floats, Numbers]:
    index = faiss.IndexFlatIP(units.shape[1])
    index.add(centroids)
    scores, numbers = index.search(units, count)
    return scores, numbers
