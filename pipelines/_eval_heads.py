"""The heads of a model as encoders of their own, so that each can be searched with alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nexus_vdb.errors import ConfigError
from nexus_vdb.hashing import BITS
from nexus_vdb.interfaces import Encoder, SupportsHeads
from nexus_vdb.types import Floats, QueryBatch

__all__ = ["HeadRecorder"]


class HeadRecorder:
    """An encoder that remembers what its heads made of each text; meets `interfaces.Encoder`.

    So the network runs once for the fused vectors and all heads. Everything that was encoded is
    kept in memory.

    Args:
        encoder: One that has heads.

    Raises:
        ConfigError: it has none.
    """

    def __init__(self, encoder: Encoder) -> None:
        if not isinstance(encoder, SupportsHeads):
            raise ConfigError(f"{encoder.name} makes one vector a text, and has no heads")
        self._with_heads: SupportsHeads = encoder
        self._encoder: Encoder = encoder
        _, columns = self._with_heads.encode_heads([])
        self._known: dict[str, dict[str, Floats]] = {name: {} for name in columns}
        self.widths = {name: vectors.shape[1] for name, vectors in columns.items()}
        self.name, self.fingerprint = encoder.name, encoder.fingerprint
        self.dim, self.cuts, self.max_tokens = encoder.dim, encoder.cuts, encoder.max_tokens

    @property
    def heads(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.widths)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens in each text."""
        return self._encoder.count_tokens(texts)

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        """As the encoder does."""
        queries, columns = self._with_heads.encode_heads(texts)
        for name, vectors in columns.items():
            self._known[name].update(zip(texts, vectors, strict=True))
        return queries

    def vectors(self, texts: Sequence[str], head: str) -> Floats:
        """What a head makes of texts, float32 `[n, width]`."""
        known = self._known[head]
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            self.encode(missing)
        rows = [known[text] for text in texts]
        return np.stack(rows) if rows else np.empty((0, self.widths[head]), np.float32)

    def head(self, name: str) -> Encoder:
        """A head as an encoder of its own; it has no hash."""
        return _Head(self, name)


class _Head:
    """Meets `interfaces.Encoder`; hash logits are zeros."""

    def __init__(self, recorder: HeadRecorder, head: str) -> None:
        self._recorder, self._head = recorder, head
        self.name = f"{recorder.name}:{head}"
        self.fingerprint = f"{recorder.fingerprint}:{head}"
        self.dim = recorder.widths[head]
        self.cuts: tuple[int, ...] = (self.dim,)
        self.max_tokens = recorder.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._recorder.count_tokens(texts)

    def encode(self, texts: Sequence[str]) -> QueryBatch:
        vectors = self._recorder.vectors(texts, self._head)
        logits = np.zeros((len(vectors), BITS), np.float32)
        return QueryBatch(vectors, logits, np.zeros(len(vectors), np.uint64))
