"""64-bit codes: packing, text form, Hamming distance, asymmetric score, ITQ for foreign vectors.

Bit i of a code, least significant first, is `logit_i > 0`. Documents keep the 64 bits; a query
keeps its real-valued logits, which rank candidates better than its own bits would.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_vdb.errors import ConfigError
from nexus_vdb.types import Floats

__all__ = [
    "BITS",
    "ItqHash",
    "asymmetric_scores",
    "from_hex",
    "hamming",
    "pack",
    "signs",
    "to_hex",
]

BITS = 64

Codes = npt.NDArray[np.uint64]


def pack(logits: Floats) -> Codes:
    """Codes uint64 `[n]` of logits float32 `[n, 64]`."""
    bits = np.packbits(np.asarray(logits) > 0, axis=1, bitorder="little")
    return bits.reshape(-1, BITS // 8).view("<u8").ravel().astype(np.uint64)


def signs(codes: Codes) -> Floats:
    """Codes uint64 `[n]` as float32 `[n, 64]` of +1 and -1.

    As the hash logits of a query they rank by Hamming distance: it is (64 - score) / 2.
    """
    octets = np.ascontiguousarray(codes, dtype="<u8").view(np.uint8).reshape(-1, BITS // 8)
    return np.unpackbits(octets, axis=1, bitorder="little").astype(np.float32) * 2 - 1


def to_hex(codes: Codes) -> list[str]:
    """16 lowercase hex digits each: JSON tools lose the low bits of 64-bit integers."""
    return [f"{int(code):016x}" for code in codes]


def from_hex(digits: Sequence[str]) -> Codes:
    """The inverse of `to_hex`."""
    return np.array([int(text, 16) for text in digits], dtype=np.uint64)


def hamming(queries: Codes, codes: Codes) -> npt.NDArray[np.uint8]:
    """Differing bits, uint8 `[q, n]`."""
    distances: npt.NDArray[np.uint8] = np.bitwise_count(queries[:, None] ^ codes[None, :])
    return distances


def asymmetric_scores(hash_logits: Floats, codes: Codes) -> Floats:
    """Σ logit_i · (±1), float32 `[q, n]`; higher is nearer.

    Asymmetric distances for binary codes: Gordo et al. 2014, doi:10.1109/TPAMI.2013.101.
    """
    return hash_logits.astype(np.float32) @ signs(codes).T


@dataclass(frozen=True, slots=True, eq=False)
class ItqHash:
    """Iterative quantization: a rotation of the leading principal components (Gong et al. 2013).

    Attributes:
        mean: float32 `[d]`, taken off before projecting.
        projection: float32 `[d, 64]`.
    """

    mean: Floats
    projection: Floats

    @classmethod
    def fit(cls, vectors: Floats, *, iterations: int = 25, seed: int = 0) -> ItqHash:
        """Fit on float32 `[n, d]`; n of some thousands is enough.

        Raises:
            ConfigError: fewer than 64 dimensions or vectors.
        """
        if min(vectors.shape) < BITS:
            raise ConfigError(
                f"a {BITS}-bit hash needs at least {BITS} vectors of {BITS} dimensions, "
                f"not {vectors.shape[0]} of {vectors.shape[1]}"
            )
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        _, axes = np.linalg.eigh(centred.T @ centred)
        components = axes[:, -BITS:]
        reduced = centred @ components
        random = np.random.default_rng(seed).standard_normal((BITS, BITS))
        rotation = np.linalg.qr(random)[0].astype(np.float32)
        for _ in range(iterations):
            # Orthogonal Procrustes: the rotation that brings the data nearest to its own signs.
            left, _, right = np.linalg.svd(np.sign(reduced @ rotation).T @ reduced)
            rotation = (left @ right).T.astype(np.float32)
        return cls(mean.astype(np.float32), (components @ rotation).astype(np.float32))

    def logits(self, vectors: Floats) -> Floats:
        """Hash logits float32 `[n, 64]` of float32 `[n, d]`."""
        # The mean is taken off afterwards: no copy of the vectors is made.
        shift = self.mean @ self.projection
        return np.asarray(vectors @ self.projection - shift, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back; kept in a store's meta.

        Arrays are base64 of little-endian float32: a fifth of the size of digits, and read at once.
        """
        return {"mean": _encoded(self.mean), "projection": _encoded(self.projection)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ItqHash:
        """The inverse of `to_json`; lists of numbers are understood as well."""
        mean, projection = value["mean"], value["projection"]
        if isinstance(mean, str) and isinstance(projection, str):
            return cls(*_decoded(mean, projection))
        return cls(np.array(mean, dtype=np.float32), np.array(projection, dtype=np.float32))


def _encoded(array: Floats) -> str:
    return b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()


@lru_cache(maxsize=4)  # every search asks for the rotation of its store
def _decoded(mean: str, projection: str) -> tuple[Floats, Floats]:
    arrays = [np.frombuffer(b64decode(text), dtype="<f4") for text in (mean, projection)]
    return arrays[0], arrays[1].reshape(-1, BITS)
