"""The sum of the losses, computed from what the network made of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nexus_vdb.model import losses
from nexus_vdb.model.batches import Batch
from nexus_vdb.model.network import NexusOutput
from nexus_vdb.model.schedule import LossWeights, Schedule

__all__ = ["Objective"]


class Objective(nn.Module):
    """Losses by name; its own parameter is the temperature.

    Args:
        weights: A loss of weight 0 is logged, and changes nothing.
        schedule: Temperatures and shares.
        dims: Matryoshka cuts, wide to narrow.
    """

    def __init__(self, weights: LossWeights, schedule: Schedule, dims: Sequence[int]) -> None:
        super().__init__()
        self._weights = weights.model_dump()
        self._schedule = schedule
        self._dims = tuple(dims) if schedule.matryoshka else (max(dims),)
        temperature = torch.tensor(math.log(schedule.temperature))
        self.log_temperature = nn.Parameter(temperature, requires_grad=schedule.learn_temperature)

    def forward(
        self, outputs: Sequence[NexusOutput], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each loss by name.

        Args:
            outputs: Of each side of the batch, in float32.
            batch: Where they come from.
        """
        a, b = outputs[:2]
        parts = self._pair_losses(a, b, outputs[2:], batch)
        if batch.teacher is not None:
            parts |= self._teacher_losses(a, b, batch)
        if batch.topics is not None:
            logits = torch.cat([a.topic_logits, b.topic_logits])
            parts["topic"] = nn.functional.cross_entropy(logits, batch.topics, ignore_index=-1)
        total = torch.zeros((), device=a.embedding.device)
        for name, value in parts.items():
            if self._weights[name]:
                total = total + self._weights[name] * value
        return total, parts

    def _pair_losses(
        self, a: NexusOutput, b: NexusOutput, negatives: Sequence[NexusOutput], batch: Batch
    ) -> dict[str, Tensor]:
        temperature = self.log_temperature.exp().clamp(0.01, 0.2)
        documents = torch.cat([b.embedding, *(one.embedding for one in negatives)])
        contrastive = [
            losses.info_nce(
                losses.cut(a.embedding, dim),
                losses.cut(documents, dim),
                batch.duplicates,
                temperature=temperature,
            )
            for dim in self._dims
        ]
        logits = torch.cat([a.hash_logits, b.hash_logits])
        return {
            "contrastive": torch.stack(contrastive).mean(),
            "lexical": self._relational(torch.cat([a.entity, b.entity]), batch.lexical),
            "spectral": losses.spectral_contrastive_loss(a.spectral, b.spectral),
            "hash": losses.hash_loss(
                a.hash_logits,
                logits,
                a.embedding @ torch.cat([a.embedding, b.embedding]).T,
                temperature=self._schedule.relational_temperature,
            ),
        }

    def _teacher_losses(self, a: NexusOutput, b: NexusOutput, batch: Batch) -> dict[str, Tensor]:
        assert batch.teacher is not None
        teacher = losses.cut(batch.teacher.float(), batch.teacher.shape[-1])
        likeness = teacher @ teacher.T
        semantic = torch.cat([a.semantic, b.semantic])
        fused = torch.cat([a.embedding, b.embedding])
        share = self._schedule.lexical_share
        hybrid = (likeness + share * batch.lexical) / (1 + share)
        fused_losses = [self._relational(losses.cut(fused, dim), hybrid) for dim in self._dims]
        return {
            "vector": losses.vector_loss(semantic, teacher),
            "relational": self._relational(semantic, likeness),
            "fused_relational": torch.stack(fused_losses).mean(),
        }

    def _relational(self, vectors: Tensor, likeness: Tensor) -> Tensor:
        temperature = self._schedule.relational_temperature
        return losses.relational_loss(vectors @ vectors.T, likeness, temperature=temperature)
