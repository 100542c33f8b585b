"""Start a network where learning is short: from a teacher's vectors and the corpus's own counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from nexus_vdb.model.batches import PairBatches, TextBatch, text_batches
from nexus_vdb.model.data import TokenTable
from nexus_vdb.model.lexicon import K1, Lexicon
from nexus_vdb.model.network import EntityBag, NexusModel

__all__ = [
    "TeacherSpace",
    "fit_anchors",
    "start_bag",
    "start_from_counts",
    "start_from_pieces",
    "start_gates",
    "turned_to",
    "without_idle_blocks",
]

Array = npt.NDArray[np.float32]

_TURNED = 4096  # texts

_SIF = 1e-3  # Arora et al. 2017: weight a / (a + p)


@dataclass(frozen=True, slots=True, eq=False)
class TeacherSpace:
    """A teacher's space turned so that leading coordinates carry most, at the student's width.

    Attributes:
        basis: float32 `[teacher dim, semantic dim]`; columns past the teacher's rank are zero.
    """

    basis: Array

    @classmethod
    def fit(cls, vectors: npt.NDArray[np.float16], *, dim: int) -> TeacherSpace:
        """From a sample of the teacher's vectors `[n, d]`, by uncentred PCA (cosines are kept)."""
        sample = vectors[:: max(1, len(vectors) // 50_000)].astype(np.float32)
        _, axes = np.linalg.eigh(sample.T @ sample)
        basis = np.zeros((vectors.shape[1], dim), np.float32)
        kept = axes[:, ::-1][:, :dim]
        basis[:, : kept.shape[1]] = kept
        return cls(basis)

    def turn(self, vectors: npt.NDArray[np.float16]) -> Array:
        """Teacher vectors `[n, d]` → targets of the semantic head, float32 `[n, semantic dim]`."""
        return np.asarray(vectors.astype(np.float32) @ self.basis)


@torch.no_grad()
def turned_to(model: NexusModel, batches: PairBatches) -> npt.NDArray[np.float16]:
    """Teacher vectors turned to where a trained network's semantic head has the same texts.

    A teacher's space is known but for a rotation, and that of another run's pairs is another one.
    Orthogonal Procrustes (Schönemann 1966) on some thousand partners.

    Returns:
        float16 `[2, n, semantic dim]`.
    """
    assert batches.teacher is not None
    rows = np.arange(min(_TURNED, len(batches.b)))
    model.eval()
    parts = [model(ids, mask).semantic for ids, mask in text_batches(batches.b, rows)]
    model.train()
    targets = batches.teacher[1][rows].astype(np.float32)
    left, _, right = np.linalg.svd(targets.T @ torch.cat(parts).float().numpy())
    return np.stack([_turned(side, left @ right) for side in batches.teacher])


def _turned(vectors: npt.NDArray[np.float16], rotation: Array) -> npt.NDArray[np.float16]:
    parts = np.array_split(vectors, max(1, len(vectors) // 8192))
    return np.concatenate(
        [(part.astype(np.float32) @ rotation).astype(np.float16) for part in parts]
    )


@torch.no_grad()
def start_from_pieces(model: NexusModel, pieces: Array) -> None:
    """Start token i as the teacher's vector of piece i: float32 `[V, semantic dim]`."""
    width = min(model.config.d_model, pieces.shape[1])
    scale = 1 / np.sqrt(np.square(pieces[:, :width]).mean())  # about 1 a coordinate, as AdamW likes
    model.tokens.weight.zero_()
    model.tokens.weight[:, :width] = torch.from_numpy(pieces[:, :width] * scale)
    model.semantic.weight.copy_(torch.eye(*model.semantic.weight.shape))


@torch.no_grad()
def start_from_counts(model: NexusModel, table: TokenTable) -> None:
    """Pooling weights from a piece's frequency (SIF)."""
    vocab = model.config.vocab_size
    frequency = table.counts(vocab) / max(1, len(table.tokens))
    model.pooling.log_weight.weight[:, 0] = torch.from_numpy(np.log(_SIF / (_SIF + frequency)))


@torch.no_grad()
def start_bag(bag: EntityBag, lexicon: Lexicon, *, seed: int = 0) -> None:
    """Signs for each term, IDF as weight: a projection of the exact bags, a bit a number.

    Random signs keep distances as well as normal deviates do (Achlioptas 2003); these are rows of
    Hadamard matrices, each with its rows and columns shuffled and turned. Terms of one matrix are
    orthogonal, and terms that weigh alike in the texts share one, which makes all of them nearly a
    tight frame: the least that terms can disturb one another (Benedetto and Fickus 2003).
    """
    count, dim = len(lexicon.idf), bag.table.embedding_dim
    # The share of texts that have a term is about exp(-IDF), its square in their bags' IDF².
    order = np.argsort(-np.exp(-lexicon.idf) * lexicon.idf**2, kind="stable")
    random = np.random.default_rng(seed)
    size = 1 << (dim - 1).bit_length()
    square = scipy.linalg.hadamard(size)
    for start in range(0, count, size):
        terms = order[start : start + size]
        rows, columns = (random.permutation(size) for _ in range(2))
        signs = square[rows[: len(terms), None], columns[:dim]] * random.choice([-1, 1], dim)
        bag.table.weight[torch.from_numpy(terms)] = torch.from_numpy(signs).float()
    bag.table.weight[count:] = 1  # of no term
    bag.terms.copy_(torch.from_numpy(lexicon.terms))
    bag.log_weight.weight.zero_()
    bag.log_weight.weight[:count, 0] = torch.from_numpy(np.log(lexicon.idf.clip(1e-3)))
    bag.log_k1.fill_(math.log(K1))


@torch.no_grad()
def start_gates(model: NexusModel, *, entity_weight: float) -> None:
    """Open the gates alike for every text; the entity head reads the bag more than the state.

    Args:
        model: Its `gates` and `entity_share` are changed.
        entity_weight: Length of the entity part beside the semantic part's; above 1 the semantic
            gates are the narrower ones.
    """
    weights = torch.tensor([1.0, entity_weight])
    semantic, entity = (0.88 * weights / weights.max()).logit()
    bias = model.gates.bias
    if model.entity_share is not None:
        model.entity_share.fill_(0.1)
    model.gates.weight.zero_()
    bias[: model.config.semantic_dim] = semantic
    bias[model.config.semantic_dim :] = entity


@torch.no_grad()
def fit_anchors(model: NexusModel, batches: Sequence[TextBatch]) -> None:
    """Start spectral coordinates as principal components, small enough for a linear tanh.

    Args:
        model: Its `anchor_in` and `anchors` are changed.
        batches: Ids and masks, some thousand texts together.
    """
    pooled = torch.cat([model.pool(ids, mask.float())[0] for ids, mask in batches])
    mean = pooled.mean(0)
    values, axes = torch.linalg.eigh(torch.cov((pooled - mean).T.double()))
    components = axes.flip(1)[:, : model.config.hash_bits].float()  # [d, 64]
    deviation = values.flip(0)[0].sqrt().float()
    # anchors(anchor_in(x)) = components.T @ (x - mean) / (2 * deviation)
    inner = model.anchor_in.weight
    torch.nn.init.orthogonal_(inner)
    weight = components.T @ torch.linalg.pinv(inner) / (2 * deviation)
    model.anchors.weight.copy_(weight)
    model.anchors.bias.copy_(-(weight @ (inner @ mean)))


@contextmanager
def without_idle_blocks(model: NexusModel) -> Iterator[None]:
    """Leave out blocks that add nothing, as before the first step: a large network's take long."""
    blocks, last = model.blocks, ("attention.out.weight", "down.weight")
    if not any(value.any() for name, value in blocks.named_parameters() if name.endswith(last)):
        model.blocks = torch.nn.ModuleList()
    try:
        yield
    finally:
        model.blocks = blocks
