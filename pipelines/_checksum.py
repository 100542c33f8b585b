"""Whether two stores hold the same records, whatever the order and the precision they keep."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nexus_vdb.interfaces import Store
from nexus_vdb.stages import ahead
from nexus_vdb.tables import scan_tables, vectors_of
from nexus_vdb.types import Floats

__all__ = ["Checksum", "checksum"]

Words = npt.NDArray[np.uint64]

_BATCH = 8192
_KEYS = ("id", "document_id", "ordinal", "content_hash", "code", "text")


@dataclass(slots=True)
class Checksum:
    """Of records in whatever order: their ids, texts, content hashes, codes and vectors.

    Attributes:
        count: Records.
        exact: With every bit of the vectors as float32.
        half: With the vectors rounded to float16, which is what some stores keep.
    """

    count: int = 0
    exact: int = 0
    half: int = 0

    def add(self, table: Any) -> None:
        """Take in an Arrow batch of records."""
        keys, vectors = _key_words(table), vectors_of(table) + np.float32(0)  # no negative zeros
        exact = half = _total(keys, vectors)
        if not _are_halves(vectors):
            half = _total(keys, vectors.astype(np.float16).astype(np.float32))
        self.count += len(table)
        self.exact = (self.exact + exact) % 2**64
        self.half = (self.half + half) % 2**64

    def shared(self, other: Checksum) -> tuple[str, str] | None:
        """The precision to which both are equal, and the sum in hex digits; None if at none."""
        if self.count == other.count and self.exact == other.exact:
            return "float32", f"{self.exact:016x}"
        if self.count == other.count and self.half == other.half:
            return "float16", f"{self.half:016x}"
        return None


def checksum(store: Store) -> Checksum:
    """The checksum of all that a store holds; reads it once."""
    total = Checksum()
    with closing(ahead(table for table in scan_tables(store, _BATCH))) as tables:
        for table in tables:
            total.add(table)
    return total


def _key_words(table: Any) -> Words:
    """A digest of all but the vectors, and of metadata, which a store may write otherwise."""
    columns = [table.column(name).cast(pa.large_string()) for name in _KEYS]
    joined = pc.binary_join_element_wise(*columns, pa.scalar("\0", pa.large_string()))
    rows = joined.cast(pa.large_binary()).to_pylist()
    return np.frombuffer(
        b"".join([blake2b(row, digest_size=8).digest() for row in rows]), dtype="<u8"
    )


_LOW, _LEAST_NORMAL, _UNITS = 0x1FFF, 2.0**-14, np.float32(2.0**24)


def _are_halves(vectors: Floats) -> bool:
    """Whether float16 holds all of these finite numbers as they are, of which none is large."""
    if (vectors.view(np.int32) & _LOW).any():  # more bits than the mantissa of a half has
        return False
    small = vectors[np.abs(vectors) < _LEAST_NORMAL] * _UNITS
    return bool((small == np.rint(small)).all())


def _total(keys: Words, vectors: Floats) -> int:
    """Sum over the rows of a digest of key and vector."""
    octets = np.ascontiguousarray(vectors).view(np.uint8)
    padded = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    words = padded.view("<u8")
    words = words ^ (words >> _SHIFTS[2])  # else two signs that change in odd places cancel out
    with np.errstate(over="ignore"):
        return int(_mixed(keys + _mixed(words @ _factors(words.shape[1]))).sum())


@cache
def _factors(count: int) -> Words:
    return np.random.default_rng(0).integers(0, 2**63, count, dtype=np.uint64) * 2 + 1


def _mixed(words: Words) -> Words:
    # The finalizer of SplitMix64 (Steele et al. 2014): every bit in moves half of the bits out.
    words = (words ^ (words >> _SHIFTS[0])) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> _SHIFTS[1])) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> _SHIFTS[2])


_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
