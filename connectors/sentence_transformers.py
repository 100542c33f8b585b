"""An encoder in the shape of a `SentenceTransformer`, for evaluators, clustering and the like.

    model = SentenceModel(load_encoder())
    InformationRetrievalEvaluator(queries, corpus, relevant)(model)

Neither sentence-transformers nor torch is imported, unless a tensor is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexus_vdb.errors import ConfigError, MissingExtra
from nexus_vdb.interfaces import Encoder
from nexus_vdb.likeness import cosine_matrix, paired_cosines
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import Floats

__all__ = ["MetricsCard", "SentenceModel"]


class MetricsCard:
    """What evaluators have found.

    Attributes:
        metrics: Figures by name, of all evaluators so far.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def set_evaluation_metrics(
        self, evaluator: object, metrics: dict[str, float], epoch: int = 0, step: int = 0
    ) -> None:
        """Called by each evaluator when it is done."""
        self.metrics.update(metrics)


class SentenceModel:
    """The methods by which sentence-transformers uses a model, over an `Encoder`.

    Queries and documents are embedded alike, and there are no named prompts. Vectors are unit rows
    at every width, so that `normalize_embeddings` changes nothing.

    Args:
        encoder: Makes the vectors.
        truncate_dim: Width of the vectors; the encoder's own by default.

    Raises:
        ConfigError: the encoder has no vectors of that width.
    """

    similarity_fn_name = "cosine"

    def __init__(self, encoder: Encoder, *, truncate_dim: int | None = None) -> None:
        self.encoder = encoder
        self.truncate_dim = self._width(truncate_dim, encoder.dim)
        self.max_seq_length = encoder.max_tokens
        self.model_card_data = MetricsCard()

    def get_sentence_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.truncate_dim

    get_embedding_dimension = get_sentence_embedding_dimension

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
    ) -> Any:
        """Unit rows float32 `[n, d]`; a lone text gives its vector `[d]`.

        `batch_size`, `show_progress_bar`, `device` and `normalize_embeddings` are taken for the
        sake of callers: the encoder forms batches of its own, and runs where it was loaded.

        Args:
            sentences: Texts.
            prompt_name: There are none.
            prompt: Put before each text.
            batch_size: Changes nothing.
            show_progress_bar: Changes nothing.
            precision: "float32" is all there is.
            convert_to_numpy: An array; else a list of rows.
            convert_to_tensor: A tensor on the CPU instead.
            device: Changes nothing.
            normalize_embeddings: Changes nothing.
            truncate_dim: Width of these vectors.

        Raises:
            ConfigError: a prompt's name, another precision, or a width that cannot be had.
            MissingExtra: a tensor is asked for, and torch is not installed.
        """
        if prompt_name is not None:
            raise ConfigError(
                f"no prompt {prompt_name!r}: this model has no named ones", hint="give prompt="
            )
        if precision != "float32":
            raise ConfigError(f"Invalid precision={precision}; valid: float32")
        alone = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        width = self._width(truncate_dim, self.truncate_dim)
        batch = self.encoder.encode([(prompt or "") + text for text in texts])
        vectors = batch.vectors
        if width < self.encoder.dim:
            vectors = cut_vectors(vectors, width)
        rows: Any = vectors
        if convert_to_tensor:
            rows = _tensor(vectors)
        elif not convert_to_numpy:
            rows = list(vectors)
        return rows[0] if alone else rows

    encode_query = encode
    encode_document = encode

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each with each, `[n, m]`; see `cosine_matrix`."""
        return cosine_matrix(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each with its counterpart, `[n]`."""
        return paired_cosines(embeddings1, embeddings2)

    def _width(self, asked: int | None, default: int) -> int:
        width = default if asked is None else asked
        if not 1 <= width <= self.encoder.dim:
            raise ConfigError(f"Invalid truncate_dim={width}; valid: 1 to {self.encoder.dim}")
        return width


def _tensor(vectors: Floats) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="distill") from error
    return torch.from_numpy(vectors)
