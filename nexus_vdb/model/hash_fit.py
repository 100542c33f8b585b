"""The residual of the hash, fitted last: to what a trained network makes of some thousand texts.

During training the embedding moves on while the residual follows it, a hundred texts at a time.
Afterwards both are fixed, and batches of a thousand cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nexus_vdb.hashing import ItqHash
from nexus_vdb.model.batches import TextBatch
from nexus_vdb.model.losses import hash_loss
from nexus_vdb.model.network import NexusModel
from nexus_vdb.model.precision import autocast

__all__ = ["fit_hash", "itq_residual"]

FIT_FROM = 4096
"""Texts that are enough to fit 64 directions of 768; with fewer they stay as trained."""

_STEPS, _BATCH, _ASKED = 300, 1024, 512
_RATE, _TEMPERATURE = 2e-3, 0.02
_RIDGE = 1e-5  # of the variance of all coordinates together

Affine = tuple[Tensor, Tensor]
"""Weight `[64, d]` and bias `[64]`."""


@torch.no_grad()
def fit_hash(model: NexusModel, batches: Iterable[TextBatch], *, seed: int = 0) -> None:
    """Fit the residual so that the hash ranks as the embedding does, and centre each bit.

    Begins at ITQ of the embedding less what the spectral coordinates say of it, and at the
    spectral coordinates alone; `losses.hash_loss` improves both, and texts kept back choose. The
    threshold of each bit is then its median, so that no bit is wasted.

    Args:
        model: Its `hash_residual` is changed; left in eval mode.
        batches: Ids and masks of texts as they will be stored and asked.
        seed: Of the order in which they are looked at.
    """
    model.eval()
    with autocast("cpu"):
        outputs = [(out.embedding, out.spectral) for out in (model(*batch) for batch in batches)]
    embedding, spectral = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
    residual = model.hash_residual
    if model.config.hash_residual and len(embedding) >= FIT_FROM:
        weight, bias = _fitted(embedding, spectral, seed)
        residual.weight.copy_(weight)
        residual.bias.copy_(bias)
    residual.bias.sub_((spectral + residual(embedding)).median(0).values)


def itq_residual(embedding: Tensor, spectral: Tensor) -> Affine:
    """What makes spectral coordinates plus residual the logits of ITQ, each of unit deviation.

    Args:
        embedding: Unit rows `[n, d]`.
        spectral: `[n, 64]`; what is linear in the embedding is taken off.
    """
    itq = ItqHash.fit(embedding.numpy())
    scale = torch.from_numpy(1 / itq.logits(embedding.numpy()).std(0))
    weight = torch.from_numpy(itq.projection) * scale
    bias = -torch.from_numpy(itq.mean) @ weight
    mean, level = embedding.mean(0), spectral.mean(0)
    centred = (embedding - mean).double()
    covariance = centred.T @ centred
    # A ridge, for the vectors of few or simple texts do not span the space.
    ridge = _RIDGE * covariance.trace() * torch.eye(len(covariance), dtype=torch.float64)
    said = torch.linalg.solve(covariance + ridge, centred.T @ (spectral - level).double()).float()
    return (weight - said).T, bias - level + mean @ said


def _fitted(embedding: Tensor, spectral: Tensor, seed: int) -> Affine:
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(embedding), generator=random)
    held, rows = order[:_BATCH], order[_BATCH:]
    weight, bias = itq_residual(embedding[rows], spectral[rows])
    starts = (weight, bias), (torch.zeros_like(weight), torch.zeros_like(bias))
    found = [_improved(embedding[rows], spectral[rows], start, random) for start in starts]
    return min(found, key=lambda one: float(_loss(embedding[held], spectral[held], one)))


@torch.enable_grad()
def _improved(
    embedding: Tensor, spectral: Tensor, start: Affine, random: torch.Generator
) -> Affine:
    weight, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.Adam([weight, bias], lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _STEPS)
    for _ in range(_STEPS):
        rows = torch.randint(len(embedding), (_BATCH,), generator=random)
        optimizer.zero_grad()
        torch.autograd.backward(_loss(embedding[rows], spectral[rows], (weight, bias)))
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def _loss(embedding: Tensor, spectral: Tensor, affine: Affine) -> Tensor:
    weight, bias = affine
    logits = spectral + embedding @ weight.T + bias
    cosine = embedding[:_ASKED] @ embedding.T
    return hash_loss(logits[:_ASKED], logits, cosine, temperature=_TEMPERATURE)
