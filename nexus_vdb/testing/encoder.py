"""`FakeEncoder`: deterministic vectors without a model, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from nexus_vdb.hashing import BITS, pack
from nexus_vdb.types import Floats, QueryBatch

__all__ = ["FakeEncoder"]

_BUCKETS = 4096
_PUNCTUATION = ".,;:!?\"'()"


@lru_cache(maxsize=8)
def _projection(dim: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    return random.standard_normal((_BUCKETS, dim), dtype=np.float32)


@lru_cache(maxsize=8)
def _hyperplanes(dim: int, seed: int) -> Floats:
    random = np.random.default_rng(seed + 1)
    return random.standard_normal((dim, BITS), dtype=np.float32)


@lru_cache(maxsize=65536)
def _bucket(word: str) -> int:
    return (
        int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") % _BUCKETS
    )


class FakeEncoder:
    """A hashed bag of words on fixed random projections: texts that share words are near.

    Args:
        dim: Width of the vectors.
        cuts: Widths of the prefixes; by default those of 256 and 512 that are below `dim`, and it.
        seed: Another seed is another model, with another fingerprint.
        max_tokens: Words of a text that are looked at.
    """

    def __init__(
        self,
        dim: int = 768,
        cuts: tuple[int, ...] | None = None,
        *,
        seed: int = 0,
        max_tokens: int = 256,
    ) -> None:
        self._dim = dim
        self._cuts = cuts or (*(cut for cut in (256, 512) if cut < dim), dim)
        self._seed = seed
        self._max_tokens = max_tokens

    @property
    def name(self) -> str:
        """What the model is called."""
        return f"fake-{self._dim}-{self._seed}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the name."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._dim

    @property
    def cuts(self) -> tuple[int, ...]:
        """Widths at which a prefix is a good vector: all are."""
        return self._cuts

    @property
    def max_tokens(self) -> int:
        """Words of a text that are looked at."""
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words in each text."""
        return [len(text.split()) for text in texts]

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        """Unit vectors float32 `[n, dim]` and logits `[n, 64]`; no words count as one word."""
        projection = _projection(self._dim, self._seed)
        planes = _hyperplanes(self._dim, self._seed)
        vectors = np.zeros((len(texts), self._dim), dtype=np.float32)
        logits = np.zeros((len(texts), BITS), dtype=np.float32)
        for row, text in enumerate(texts):
            words = text.lower().split()[: self._max_tokens] or [""]
            buckets = sorted(_bucket(word.strip(_PUNCTUATION)) for word in words)
            total = projection[buckets].sum(axis=0)
            vectors[row] = total / np.linalg.norm(total)
            logits[row] = vectors[row] @ planes
        return QueryBatch(vectors, logits, pack(logits))
