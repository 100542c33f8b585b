"""Training objectives. Rows of `a` and `b` are unit vectors `[B, d]` of texts that pair up."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = [
    "cut",
    "hash_loss",
    "info_nce",
    "relational_loss",
    "spectral_contrastive_loss",
    "vector_loss",
]


def cut(vectors: Tensor, dim: int) -> Tensor:
    """The first `dim` columns as unit rows: a Matryoshka prefix (Kusupati et al. 2022)."""
    return F.normalize(vectors[..., :dim], dim=-1)


def info_nce(a: Tensor, b: Tensor, duplicates: Tensor, *, temperature: Tensor) -> Tensor:
    """Contrast with the batch's other rows, both ways (van den Oord et al. 2018).

    Args:
        a: Unit rows `[B, d]`.
        b: Unit rows `[B, d]`, or `[B + H, d]` with H hard negatives behind the partners.
        duplicates: bool like `a @ b.T`; true where a non-partner is no negative.
        temperature: Divisor of the cosines.
    """
    logits = (a @ b.T / temperature).masked_fill(duplicates, -1e4)
    target = torch.arange(len(a), device=a.device)
    forth = F.cross_entropy(logits, target)
    return (forth + F.cross_entropy(logits[:, : len(a)].T, target)) / 2


def relational_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL of the student's in-batch similarity distribution from the teacher's.

    Args:
        student: Similarities `[Q, D]` of text i with text j. The diagonal is left out: there each
            text meets itself, and would outshout all others.
        teacher: The teacher's, of the same texts.
        temperature: Divisor of both.
    """
    self_pairs = torch.eye(*student.shape, dtype=torch.bool, device=student.device)
    return F.kl_div(
        F.log_softmax((student / temperature).masked_fill(self_pairs, -1e4), dim=-1),
        F.log_softmax((teacher / temperature).masked_fill(self_pairs, -1e4), dim=-1),
        log_target=True,
        reduction="batchmean",
    )


def vector_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine to the teacher's vector, rows `[B, d]`."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()


def spectral_contrastive_loss(a: Tensor, b: Tensor) -> Tensor:
    """HaoChen et al. 2021: its minimum spans the leading eigenfunctions of the graph of pairs.

    Args:
        a: Spectral coordinates `[B, k]`, not unit.
        b: Those of the partners.
    """
    positive = (a * b).sum(-1).mean()
    cross = (a @ b.T).pow(2)
    others = 1 - torch.eye(len(a), device=a.device)
    return -2 * positive + (cross * others).sum() / others.sum()


def hash_loss(
    query_logits: Tensor, document_logits: Tensor, cosine: Tensor, *, temperature: float
) -> Tensor:
    """Make ⟨query logits, sign(document logits)⟩ rank as cosine does, with balanced, unlike bits.

    Args:
        query_logits: `[Q, 64]`; text i is also document i.
        document_logits: `[D, 64]`; gradients pass their signs straight (Bengio et al. 2013).
        cosine: `[Q, D]`, what the ranking follows; no gradient goes there.
        temperature: Of the cosines.
    """
    soft = torch.tanh(document_logits)
    bits = soft + (torch.sign(document_logits) - soft).detach()
    query = F.normalize(query_logits, dim=-1)
    score = query @ bits.T / bits.shape[-1] ** 0.5
    ranking = relational_loss(score, cosine.detach(), temperature=temperature)
    balance = bits.mean(0).pow(2).mean()
    centred = bits - bits.mean(0)
    correlation = centred.T @ centred / len(bits)
    unlike = (correlation - torch.diag(torch.diagonal(correlation))).pow(2).mean()
    return ranking + balance + unlike
