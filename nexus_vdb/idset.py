"""Sets of ids that fit in memory where a corpus does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

__all__ = ["IdSet"]

_LATEST = 1 << 16
"""Ids that wait to be sorted in: 7 MB."""

_FAN = 4  # a run that is so many times as long as what comes is left alone

Halves = npt.NDArray[np.uint64]


class IdSet:
    """The ids seen so far, as 16-byte digests: sorted runs, and a Python set of the latest.

    About 16 bytes an id, where a set of strings takes more than 100. Many at a time cost 3 µs each,
    one by one 75.
    """

    def __init__(self) -> None:
        self._latest: set[bytes] = set()
        self._runs: list[Halves] = []  # by their first half, the longest run first
        self._settled = 0

    def add(self, key: str) -> bool:
        """Add an id; False if it was there."""
        return self.add_all([key])[0]

    def add_all(self, keys: Sequence[str]) -> list[bool]:
        """Add ids in their order; False for each that was there."""
        digests = _digests(keys)
        new = []
        for digest, old in zip(digests, self._in_runs(digests), strict=True):
            new.append(not old and digest not in self._latest)
            if not old:
                self._latest.add(digest)
        if len(self._latest) >= _LATEST:
            self._settle()
        return new

    def has(self, keys: Sequence[str]) -> list[bool]:
        """Whether each of these ids is there."""
        digests = _digests(keys)
        old = self._in_runs(digests)
        return [one or digest in self._latest for digest, one in zip(digests, old, strict=True)]

    def __contains__(self, key: str) -> bool:
        return self.has([key])[0]

    def __len__(self) -> int:
        return self._settled + len(self._latest)

    def _in_runs(self, digests: Sequence[bytes]) -> list[bool]:
        firsts, seconds = _halves(digests)
        found = np.zeros(len(digests), dtype=bool)
        for run in self._runs:
            places = np.searchsorted(run[0], firsts).clip(max=run.shape[1] - 1)
            for row in np.flatnonzero(run[0, places] == firsts).tolist():
                end = np.searchsorted(run[0], firsts[row], side="right")
                found[row] |= seconds[row] in run[1, places[row] : end]
        return list(found.tolist())

    def _settle(self) -> None:
        parts = [_halves(self._latest)]
        while self._runs and self._runs[-1].shape[1] < _FAN * sum(one.shape[1] for one in parts):
            parts.append(self._runs.pop())
        joined = np.concatenate(parts, axis=1)
        self._runs.append(joined[:, np.argsort(joined[0])])
        self._settled += len(self._latest)
        self._latest = set()


def _digests(keys: Iterable[str]) -> list[bytes]:
    return [blake2b(key.encode(), digest_size=16).digest() for key in keys]


def _halves(digests: Iterable[bytes]) -> Halves:
    """Digests as two numbers each, uint64 `[2, n]`."""
    return np.ascontiguousarray(np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2).T)
