"""Frequent pairs of neighbouring pieces, and a vector for each beside those of its pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nexus_vdb.model.data import TokenTable

__all__ = ["Bigrams"]

_FIRST = 65_536  # a vocabulary has at most so many pieces: a pair is first · 65,536 + second
_SPREAD = 1_000_003  # a prime


class Bigrams(nn.Module):
    """A table with a row for each of the pairs of pieces that are most frequent.

    What a small network would have to work out in its blocks, the meaning of a word of several
    pieces or of a fixed phrase, is looked up, which costs memory and no products (vectors for
    frequent n-grams: Yu et al. 2025, arXiv:2502.01637). A pair's slot is its hash, and belongs to
    the most frequent pair of all that fall there; any other finds zeros.

    Args:
        rows: Slots.
        dim: Width of a vector.
    """

    keys: Tensor  # int64 [rows]; the pair that a slot belongs to, -1 for none

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, dim)
        self.register_buffer("keys", torch.full((rows,), -1, dtype=torch.int64))
        nn.init.zeros_(self.table.weight)

    @property
    def started(self) -> bool:
        """Whether the slots have been given to pairs."""
        return bool((self.keys >= 0).any())

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `[B, T]` → `[B, T, dim]`: the vector of each piece and the one before it."""
        before = nn.functional.pad(ids[:, :-1], (1, 0))
        slots = (before * _SPREAD + ids) % len(self.keys)
        known = self.keys[slots] == before * _FIRST + ids
        vectors: Tensor = self.table(slots) * known[..., None]
        return vectors

    def start(self, tables: Sequence[TokenTable]) -> None:
        """Give the slots to the pairs that are most frequent in texts, with vectors of zero."""
        seen = np.concatenate([_pairs(table) for table in tables])
        pairs, counts = np.unique(seen, return_counts=True)
        pairs = pairs[np.argsort(counts, kind="stable")]
        slots = (pairs // _FIRST * _SPREAD + pairs % _FIRST) % len(self.keys)
        keys = np.full(len(self.keys), -1)
        keys[slots] = pairs  # of several, the last stays
        self.keys.copy_(torch.from_numpy(keys))
        nn.init.zeros_(self.table.weight)


def _pairs(table: TokenTable) -> np.ndarray:
    """All pairs of neighbours within the texts, int64."""
    tokens = table.tokens.astype(np.int64)
    pairs = tokens[:-1] * _FIRST + tokens[1:]
    within = np.ones(len(tokens), dtype=bool)
    within[table.offsets[1:-1] - 1] = False  # the last of a text has no neighbour after it
    return pairs[within[:-1]]
