"""The model behind Haystack's embedders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexus_vdb.errors import MissingExtra
from nexus_vdb.reader import Reader

try:
    from haystack import default_to_dict
except ImportError as error:
    raise MissingExtra("haystack-ai", extra="haystack") from error

__all__ = ["Embedder"]


class Embedder:
    """What both embedders share: a model that is loaded when it is first needed.

    Args:
        model: Bundle name or folder; by default the bundle that is shipped.
    """

    def __init__(self, model: str | None = None) -> None:
        self.model = model
        self._reader = Reader("memory://", model=model)

    def warm_up(self) -> None:
        """Load the model.

        Raises:
            ModelError: there is no such bundle.
        """
        _ = self._reader.encoder

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same component of."""
        made: dict[str, Any] = default_to_dict(self, model=self.model)
        return made

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of 768 numbers."""
        vectors: list[list[float]] = self._reader.encoder.encode(texts).vectors.tolist()
        return vectors
