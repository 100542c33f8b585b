"""The fusion and the hash, fitted to what the heads make of some thousand texts.

At the start for something to learn from, and anew at each checkpoint: what gradients make of them
suits the pairs that they saw, and less so other texts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from nexus_vdb.model.batches import TextBatch
from nexus_vdb.model.hash_fit import itq_residual
from nexus_vdb.model.network import NexusModel
from nexus_vdb.model.precision import autocast

__all__ = ["fit_fusion"]

_COMMON = 3 / 16  # of the bag's axes that come last in the fused vector


@torch.no_grad()
def fit_fusion(model: NexusModel, batches: Iterable[TextBatch]) -> None:
    """Fit the fusion as principal components, the hash as ITQ of what comes out.

    Prefixes of a PCA keep inner products best in the least-squares sense. The leading components of
    the bag come last all the same: they are of words that many texts share, and a narrow vector
    finds more by those that few do.

    Args:
        model: Its `fuse` and `hash_residual` are changed.
        batches: Ids and masks, some thousand texts together.
    """
    training, device = model.training, model.fuse.weight.device
    model.eval()
    spectral, concat = [], []
    for ids, mask in batches:
        with autocast(device.type):
            parts = model.heads(ids.to(device), mask.to(device).float())
        spectral.append(parts[2].float().cpu())
        concat.append(parts[4].double().cpu())
    model.train(training)
    joined = torch.cat(concat)
    axes = _fused_axes(joined.T @ joined, model)
    model.fuse.weight.copy_(axes.T)
    if model.config.hash_residual:
        embedding = torch.nn.functional.normalize(joined @ axes, dim=-1).float()
        weight, bias = itq_residual(embedding, torch.cat(spectral))
        model.hash_residual.weight.copy_(weight)
        model.hash_residual.bias.copy_(bias)


def _fused_axes(moments: torch.Tensor, model: NexusModel) -> torch.Tensor:
    """Orthonormal columns `[concat, embedding_dim]` of second moments `[concat, concat]`."""
    config = model.config
    names = slice(config.semantic_dim, config.semantic_dim + config.bag_dim)
    last = int(config.bag_dim * _COMMON) if model.bag is not None else 0
    common = moments.new_zeros(len(moments), last)
    common[names] = _principal(moments[names, names])[:, :last]
    shared = common @ common.T
    without = torch.eye(len(moments)).to(moments) - shared
    # Below zero: also behind axes that a small sample leaves without any length.
    first = _principal(without @ moments @ without - shared)[:, : config.embedding_dim - last]
    return torch.cat([first, common], 1)


def _principal(moments: torch.Tensor) -> torch.Tensor:
    """Eigenvectors as columns, those of the greatest values first."""
    axes: torch.Tensor = torch.linalg.eigh(moments).eigenvectors
    return axes.flip(1)
