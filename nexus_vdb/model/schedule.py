"""How a training run goes: weights of the losses, optimizer, learning rate, batches."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LossWeights", "Schedule"]


class LossWeights(BaseModel):
    """How much each objective counts; 0 leaves it out."""

    model_config = ConfigDict(extra="forbid")

    contrastive: float = 1.0
    vector: float = 4.0
    relational: float = 1.0
    lexical: float = 1.0
    fused_relational: float = 1.0
    spectral: float = 0.05
    hash: float = 0.5
    topic: float = 0.1


class Schedule(BaseModel):
    """Optimizer, learning rate and the shape of a step.

    Attributes:
        steps: Updates of the weights; 0 keeps what a run starts with.
        batch: Pairs that are contrasted with one another, over all devices together.
        accumulate: Batches whose gradients make one update.
        chunk: Pairs that go through the network at once; 0 for all. Fewer take less memory at the
            price of a second forward pass, and change nothing else (gradient caching).
        hard_negatives: Mined negatives drawn for each pair, where there are any.
        ema: Decay of the running mean of the weights, which is what is exported; 0 for none.
        optimizer: "adamw", or "muon" for the matrices of the blocks and AdamW for all else.
        learning_rate: At its highest, for a network of the shipped size; matrices of a wider or
            deeper one take a share of it.
        compile: Compile the network with `torch.compile`: pays on a GPU, and on a CPU with bf16 in
            long runs.
        learn_temperature: Whether the temperature of the contrastive loss is learned.
        matryoshka: Whether the narrower cuts have losses of their own.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(1000, ge=0)
    batch: int = Field(128, ge=2)
    accumulate: int = Field(1, ge=1)
    chunk: int = Field(0, ge=0)
    hard_negatives: int = Field(2, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)
    compile: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1.5e-3, gt=0)
    warmup: int = Field(50, ge=0)
    decay: Literal["linear", "cosine", "wsd"] = "linear"
    weight_decay: float = 0.01
    clip: float = 1.0
    temperature: float = Field(0.05, gt=0)
    learn_temperature: bool = True
    relational_temperature: float = Field(0.05, gt=0)
    lexical_share: float = Field(0.3, ge=0)
    matryoshka: bool = True
    seed: int = 0
    checkpoint_every: int = Field(250, ge=1)

    def rate(self, step: int) -> float:
        """Learning rate at a step, from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.decay == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        if self.decay == "wsd":  # warm-up, stable, decay over the last fifth
            return self.learning_rate * min(1.0, 5 * (1 - done))
        return self.learning_rate * (1 - done)
