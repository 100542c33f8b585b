"""The training loop: batches, objective, schedule, checkpoints that resume bit for bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nexus_vdb.errors import ConfigError, ModelError
from nexus_vdb.model import losses
from nexus_vdb.model.data import TokenTable, lexical_cosines
from nexus_vdb.model.network import NexusModel, NexusOutput

__all__ = ["LossWeights", "PairBatches", "Schedule", "latest_checkpoint", "train"]

_BUCKET = 64  # batches sorted by length together: little padding, yet mixed neighbours

Report = Callable[[int, dict[str, float]], None]
Validate = Callable[[NexusModel], dict[str, float]]


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
    """Optimizer and learning rate."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(1000, ge=1)
    batch: int = Field(128, ge=2)
    learning_rate: float = Field(1.5e-3, gt=0)
    warmup: int = Field(50, ge=0)
    decay: Literal["linear", "cosine", "wsd"] = "linear"
    weight_decay: float = 0.01
    clip: float = 1.0
    temperature: float = Field(0.05, gt=0)
    relational_temperature: float = Field(0.05, gt=0)
    lexical_share: float = Field(0.3, ge=0)
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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B pairs; the texts of side b follow those of side a wherever both stand in one tensor."""

    a: tuple[Tensor, Tensor]  # ids, mask [B, Ta]
    b: tuple[Tensor, Tensor]  # ids, mask [B, Tb]
    duplicates: Tensor  # bool [B, B]
    lexical: Tensor  # cosines of the exact bags [2B, 2B]
    teacher: Tensor | None  # [2B, semantic dim]
    topics: Tensor | None  # int64 [2B], -1 where unknown


@dataclass(frozen=True, slots=True, eq=False)
class PairBatches:
    """Batches as a function of the step alone, so that a resumed run sees the same ones.

    Attributes:
        a: Tokens of the first texts.
        b: Tokens of their partners.
        keys: int64 `[n, 2]`, equal for equal texts: those are no negatives of one another.
        idf: float32 `[vocab]`, what the entity head's target weighs pieces by.
        teacher: float32 `[2, n, semantic dim]` targets of both sides, or None.
        topics: int64 `[2, n]` labels, or None.
    """

    a: TokenTable
    b: TokenTable
    keys: npt.NDArray[np.int64]
    idf: npt.NDArray[np.float32]
    teacher: npt.NDArray[np.float16] | None = None
    topics: npt.NDArray[np.int64] | None = None

    def rows(self, step: int, schedule: Schedule) -> npt.NDArray[np.int64]:
        """Which pairs make the batch of a step."""
        per_epoch = len(self.a) // schedule.batch
        if not per_epoch:
            raise ConfigError(f"batch={schedule.batch} is more than the {len(self.a)} pairs given")
        epoch, place = divmod(step, per_epoch)
        random = np.random.default_rng((schedule.seed, epoch))
        order = random.permutation(len(self.a))[: per_epoch * schedule.batch]
        lengths = self.a.lengths + self.b.lengths
        span = _BUCKET * schedule.batch
        buckets = [order[i : i + span] for i in range(0, len(order), span)]
        order = np.concatenate([rows[np.argsort(lengths[rows])] for rows in buckets])
        batches = order.reshape(per_epoch, schedule.batch)
        return np.asarray(batches[random.permutation(per_epoch)[place]])

    def at(self, step: int, schedule: Schedule, *, device: str = "cpu") -> Batch:
        """The batch of a step."""
        rows = self.rows(step, schedule)
        same = self.keys[rows][:, None, :] == self.keys[rows][None, :, :]
        duplicates = same.any(-1) & ~np.eye(len(rows), dtype=bool)

        def ids(table: TokenTable) -> tuple[Tensor, Tensor]:
            tokens, mask = table.padded(rows)
            return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)

        def both(values: npt.NDArray[Any] | None) -> Tensor | None:
            if values is None:
                return None
            return torch.from_numpy(np.concatenate(values[:, rows])).to(device)

        return Batch(
            ids(self.a),
            ids(self.b),
            torch.from_numpy(duplicates).to(device),
            torch.from_numpy(self._lexical(rows)).to(device),
            both(self.teacher),
            both(self.topics),
        )

    def _lexical(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        texts = [table[row] for table in (self.a, self.b) for row in rows]
        return lexical_cosines(texts, self.idf)


class Objective(nn.Module):
    """The sum of the losses; its own parameter is the learned temperature."""

    def __init__(self, weights: LossWeights, schedule: Schedule) -> None:
        super().__init__()
        self.weights = weights
        self.schedule = schedule
        self.log_temperature = nn.Parameter(torch.tensor(math.log(schedule.temperature)))

    def forward(self, model: NexusModel, batch: Batch) -> dict[str, Tensor]:
        """Each loss by name, unweighted."""
        # Losses stay in float32: bf16 keeps three digits of a cosine, and a temperature magnifies.
        with torch.autocast(batch.a[0].device.type, dtype=torch.bfloat16):
            a, b = model(*batch.a), model(*batch.b)
        dims = model.config.matryoshka_dims
        parts = self._pair_losses(a, b, batch, dims=dims)
        if batch.teacher is not None:
            parts |= self._teacher_losses(a, b, batch, dims=dims)
        if batch.topics is not None:
            logits = torch.cat([a.topic_logits, b.topic_logits]).float()
            parts["topic"] = nn.functional.cross_entropy(logits, batch.topics, ignore_index=-1)
        return parts

    def _pair_losses(
        self, a: NexusOutput, b: NexusOutput, batch: Batch, *, dims: tuple[int, ...]
    ) -> dict[str, Tensor]:
        temperature = self.log_temperature.exp().clamp(0.01, 0.2)
        contrastive = [
            losses.info_nce(
                losses.cut(a.embedding, dim),
                losses.cut(b.embedding, dim),
                batch.duplicates,
                temperature=temperature,
            )
            for dim in dims
        ]
        entity = torch.cat([a.entity, b.entity])
        return {
            "contrastive": torch.stack(contrastive).mean(),
            "lexical": self._relational(entity, batch.lexical),
            "spectral": losses.spectral_contrastive_loss(a.spectral, b.spectral),
            "hash": losses.hash_loss(
                a.hash_logits,
                torch.cat([a.hash_logits, b.hash_logits]),
                a.embedding @ torch.cat([a.embedding, b.embedding]).T,
                temperature=self.schedule.relational_temperature,
            ),
        }

    def _teacher_losses(
        self, a: NexusOutput, b: NexusOutput, batch: Batch, *, dims: tuple[int, ...]
    ) -> dict[str, Tensor]:
        assert batch.teacher is not None
        teacher = losses.cut(batch.teacher.float(), batch.teacher.shape[-1])
        likeness = teacher @ teacher.T
        semantic = torch.cat([a.semantic, b.semantic])
        fused = torch.cat([a.embedding, b.embedding])
        share = self.schedule.lexical_share
        hybrid = (likeness + share * batch.lexical) / (1 + share)
        fused_losses = [self._relational(losses.cut(fused, dim), hybrid) for dim in dims]
        return {
            "vector": losses.vector_loss(semantic, teacher),
            "relational": self._relational(semantic, likeness),
            "fused_relational": torch.stack(fused_losses).mean(),
        }

    def _relational(self, vectors: Tensor, likeness: Tensor) -> Tensor:
        temperature = self.schedule.relational_temperature
        return losses.relational_loss(vectors @ vectors.T, likeness, temperature=temperature)


def train(
    model: NexusModel,
    batches: PairBatches,
    schedule: Schedule,
    *,
    weights: LossWeights,
    folder: Path,
    device: str = "cpu",
    report: Report = lambda step, parts: None,
    validate: Validate = lambda model: {},
    until: float = math.inf,
) -> int:
    """Train to `schedule.steps`, from the latest checkpoint in `folder` if there is one.

    Args:
        model: Trained in place.
        batches: Where the pairs come from.
        schedule: Steps, batch size, learning rate.
        weights: Of the losses.
        folder: Holds checkpoints and `metrics.jsonl`.
        device: "cpu" or "cuda".
        report: Called with each step's losses, for progress.
        validate: Called at the start and at each checkpoint; its figures go to the log.
        until: `time.time()` at which to stop early, with a checkpoint.

    Returns:
        Steps done.

    Raises:
        ModelError: the loss is not finite; the last good checkpoint is kept.
        ConfigError: the checkpoint is of another network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(schedule.seed)
    objective = Objective(weights, schedule).to(device)
    model.to(device).train()
    trained = nn.ModuleDict({"model": model, "objective": objective})
    optimizer = _optimizer(trained, schedule)
    start = _resume(trained, optimizer, folder)
    factors = weights.model_dump()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"step": start} | validate(model)) + "\n")
        for step in range(start, schedule.steps):
            began = time.time()
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            parts = objective(model, batches.at(step, schedule, device=device))
            loss = sum((factors[name] * value for name, value in parts.items()), torch.tensor(0.0))
            if not torch.isfinite(loss):
                raise ModelError(
                    f"the loss is {loss.item()} at step {step}",
                    hint=f"the last good checkpoint is in {folder}; lower the learning rate",
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), schedule.clip)
            optimizer.step()
            values = {"loss": loss.item()} | {name: part.item() for name, part in parts.items()}
            row = {"step": step + 1, "lr": schedule.rate(step), "seconds": time.time() - began}
            log.write(json.dumps(row | values) + "\n")
            report(step + 1, values)
            ending = step + 1 == schedule.steps or time.time() > until
            if ending or (step + 1) % schedule.checkpoint_every == 0:
                _save(trained, optimizer, folder, step + 1)
                log.write(json.dumps({"step": step + 1} | validate(model)) + "\n")
                log.flush()
            if ending:
                return step + 1
    return start


def _optimizer(trained: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices of the blocks and heads, not on tables, norms and biases."""
    tables = {id(m.weight) for m in trained.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in trained.parameters() if p.ndim > 1 and id(p) not in tables]
    others = [p for p in trained.parameters() if p.ndim < 2 or id(p) in tables]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return max(folder.glob("step-*.safetensors"), default=None)


def _save(trained: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, step: int) -> None:
    """Write everything a resumed run needs; the two newest checkpoints stay."""
    tensors = {f"weights.{name}": value for name, value in trained.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["rng"] = torch.get_rng_state()
    path = folder / f"step-{step:07d}.safetensors"
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step), "config": _config_json(trained)})
    partial.replace(path)
    for old in sorted(folder.glob("step-*.safetensors"))[:-2]:
        old.unlink()


def _config_json(trained: nn.Module) -> str:
    model = trained.get_submodule("model")
    assert isinstance(model, NexusModel)
    return model.config.model_dump_json()


def _resume(trained: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Load the latest checkpoint; 0 where there is none."""
    path = latest_checkpoint(folder)
    if path is None:
        return 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata["config"] != _config_json(trained):
        raise ConfigError(
            f"{path} is a checkpoint of another network", hint="give another --out folder"
        )
    trained.load_state_dict(
        {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
    )
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
    layout = optimizer.state_dict()
    optimizer.load_state_dict({"state": states, "param_groups": layout["param_groups"]})
    torch.set_rng_state(tensors["rng"])
    return int(metadata["step"])
