"""What a verification draws from a corpus, and what it looks at in records."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import ConfigError
from nexus_vdb.hashing import signs
from nexus_vdb.interfaces import BadRow, Source, SupportsVectors
from nexus_vdb.types import Document, Floats

__all__ = ["Batch", "Lowest", "Selected", "codes_differ", "implausible", "rank", "share_or_count"]

T = TypeVar("T")

Batch: TypeAlias = tuple[list[Document], "Floats | None"]
"""Documents, and the ready-made vector of each, if they have some."""

_NORM = 5e-3
"""Off 1 by this, a vector is no unit row: float16 alone accounts for a hundredth of it."""

_DECIDED = 0.25
"""Logits below this share of their mean may change sign by rounding: with a model of 8-bit weights,
those up to 0.08 did, from one batch to another."""


def rank(key: str, seed: int) -> float:
    """A number in [0, 1) that is always the same for a key."""
    return int.from_bytes(blake2b(f"{seed}/{key}".encode(), digest_size=8).digest(), "big") / 2**64


def share_or_count(sample: str | None) -> tuple[float, int | None]:
    """The share of the documents to look at, or their number.

    Raises:
        ConfigError: it is neither a number such as 500 nor a share such as 10%.
    """
    if sample is None:
        return 1.0, None
    try:
        if sample.endswith("%"):
            share = float(sample[:-1]) / 100
            if 0 < share <= 1:
                return share, None
        elif int(sample) > 0:
            return 1.0, int(sample)
    except ValueError:
        pass
    raise ConfigError(f"Invalid sample={sample!r}; valid: a number such as 500, or 10%")


class Lowest(Generic[T]):
    """The `count` things of lowest rank among those offered: a sample that order cannot change."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, T]] = []
        self._offered = 0

    def offer(self, at: float, one: T) -> None:
        """Keep it, if it is among the lowest so far."""
        self._offered += 1  # decides where ranks are equal, so that things need no order
        entry = (-at, self._offered, one)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif self._count:
            heapq.heappushpop(self._heap, entry)

    def all(self) -> list[T]:
        """Lowest rank first."""
        return [one for _, _, one in sorted(self._heap, key=lambda entry: -entry[0])]


class Selected:
    """Meets `interfaces.Source` and `SupportsVectors`: another source's documents of some ids."""

    def __init__(self, source: Source, ids: Iterable[str]) -> None:
        self._source = source
        self._ids = frozenset(ids)

    def read(self, *, batch_size: int, on_bad_row: BadRow) -> Iterator[list[Document]]:
        """As the source does, without the other documents."""
        for documents in self._source.read(batch_size=batch_size, on_bad_row=on_bad_row):
            if kept := [document for document in documents if document.id in self._ids]:
                yield kept

    def read_with_vectors(
        self, *, batch_size: int, on_bad_row: BadRow
    ) -> Iterator[tuple[list[Document], Floats]]:
        """As the source does, without the other documents.

        Raises:
            ConfigError: it has no vectors.
        """
        if not isinstance(self._source, SupportsVectors):
            raise ConfigError("this source has no ready-made vectors", hint="drop --vector-field")
        for documents, vectors in self._source.read_with_vectors(
            batch_size=batch_size, on_bad_row=on_bad_row
        ):
            rows = [row for row, document in enumerate(documents) if document.id in self._ids]
            if rows:
                yield [documents[row] for row in rows], vectors[rows]

    def size(self) -> int:
        """How many are selected."""
        return len(self._ids)


def implausible(vectors: Floats) -> npt.NDArray[np.bool_]:
    """Which rows of `[n, d]` are no unit vectors, or not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        return np.asarray(~(np.abs(norms - 1) <= _NORM))


def codes_differ(codes: npt.NDArray[np.uint64], logits: Floats) -> npt.NDArray[Any]:
    """Which codes uint64 `[n]` have a bit that clearly is not the sign of its logit `[n, 64]`."""
    sizes = np.abs(logits)
    decided = sizes > _DECIDED * sizes.mean(axis=1, keepdims=True)
    return np.asarray((decided & ((logits > 0) != (signs(codes) > 0))).any(axis=1))
