"""An encoder as mteb takes one: `mteb.evaluate(MtebModel(load_encoder()), tasks)`.

The protocol is `mteb.models.EncoderProtocol` of mteb 2, which wants Python 3.11.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nexus_vdb.errors import ConfigError, MissingExtra
from nexus_vdb.interfaces import Encoder
from nexus_vdb.likeness import cosine_matrix, paired_cosines
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import Floats

try:
    from mteb.models import ModelMeta
except ImportError as error:
    raise MissingExtra("mteb", extra="mteb") from error

__all__ = ["MtebModel"]


class MtebModel:
    """Meets mteb's `EncoderProtocol`; instructions and prompts of tasks are not used.

    Args:
        encoder: Makes the vectors.
        truncate_dim: Width of the vectors; the encoder's own by default.

    Raises:
        ConfigError: the encoder has no vectors of that width.
    """

    def __init__(self, encoder: Encoder, *, truncate_dim: int | None = None) -> None:
        self._encoder = encoder
        self._width = encoder.dim if truncate_dim is None else truncate_dim
        if not 1 <= self._width <= encoder.dim:
            raise ConfigError(f"Invalid truncate_dim={self._width}; valid: 1 to {encoder.dim}")

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name, fingerprint and sizes; results of another width are kept apart."""
        narrow = self._width < self._encoder.dim
        return ModelMeta(
            loader=None,
            name=f"nexus-vdb/{self._encoder.name}",
            revision=self._encoder.fingerprint,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=self._encoder.max_tokens,
            embed_dim=self._width,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["ONNX"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            experiment_kwargs={"truncate_dim": self._width} if narrow else None,
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: object,
        hf_split: str,
        hf_subset: str,
        prompt_type: object = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> Floats:
        """Unit rows float32 `[n, d]`.

        Args:
            inputs: Batches whose "text" is a list of texts.
            task_metadata: Not looked at, no more than the five below.
            hf_split: See above.
            hf_subset: See above.
            prompt_type: See above: queries and documents are embedded alike.
            batch_size: See above: the encoder forms batches of its own.
            show_progress_bar: See above.
            precision: "float32" is all there is.

        Raises:
            ConfigError: another precision is asked for.
        """
        if precision != "float32":
            raise ConfigError(f"Invalid precision={precision}; valid: float32")
        texts = [text for batch in inputs for text in batch["text"]]
        vectors = self._encoder.encode(texts).vectors
        if self._width == self._encoder.dim:
            return vectors
        return cut_vectors(vectors, self._width)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Floats:
        """Cosine of each with each, `[n, m]`."""
        cosines: Floats = cosine_matrix(np.asarray(embeddings1), np.asarray(embeddings2))
        return cosines

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Floats:
        """Cosine of each with its counterpart, `[n]`."""
        cosines: Floats = paired_cosines(np.asarray(embeddings1), np.asarray(embeddings2))
        return cosines
