"""The signs of narrow vectors: a sixteenth of their bytes, enough to tell the near from the far.

    signs.u8      uint8 [n, ⌈c / 8⌉]: bit i of a row is the sign of coordinate i, set for minus

They stand between the hash and the narrow vectors: of 30,000 candidates among a million texts, the
fifth with the fewest signs unlike the query's had all but 0.002 of the exact top ten, and to read
and compare signs takes a tenth of the time.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from nexus_vdb.ranking import Rows, best_rows, shortlist

__all__ = ["SIGNED", "SIGNS", "Signs", "fewest_unlike", "kept", "signs_of", "signs_width"]

SIGNS = "signs.u8"

SIGNED = 50_000
"""Rows from which a segment has signs: among fewer there are never many candidates."""

_LEAST, _SHARE = 4000, 5
"""Candidates that are left, and one in how many where there are more of them."""

Signs: TypeAlias = npt.NDArray[np.uint8]


def signs_width(width: int) -> int:
    """Bytes of the signs of so many coordinates."""
    return -(-width // 8)


def signs_of(vectors: npt.NDArray[np.floating[Any]]) -> Signs:
    """The signs of vectors `[n, c]` of 16 or 32 bits a number, uint8 `[n, ⌈c / 8⌉]`."""
    bits = vectors.view(f"<i{vectors.itemsize}")  # to compare integers takes a tenth of the time
    return np.packbits(bits < 0, axis=1, bitorder="little")


def kept(candidates: int, k: int) -> int:
    """How many of so many candidates are left for k hits when their signs were compared."""
    return max(_LEAST, candidates // _SHARE, shortlist(k))


def fewest_unlike(signs: Signs, query: Signs, count: int) -> Rows:
    """The positions, rising, of the `count` rows with the fewest signs unlike a query's, and ties.

    Args:
        signs: uint8 `[n, b]`.
        query: uint8 `[1, b]`.
        count: Rows wanted.
    """
    unlike = np.empty((1, len(signs)), dtype=np.int32)
    library: Any = faiss  # its stubs know some of it only
    signs = np.ascontiguousarray(signs)
    asked, rows, found = [library.swig_ptr(one) for one in (query, signs, unlike)]
    library.hammings(asked, rows, 1, *signs.shape, found)
    return best_rows(-unlike[0], count)
