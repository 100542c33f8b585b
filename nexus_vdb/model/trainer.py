"""The training loop: batches, gradients, updates, a running mean, checkpoints and a log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nexus_vdb.errors import ConfigError, ModelError
from nexus_vdb.model.batches import PairBatches
from nexus_vdb.model.checkpoints import latest_checkpoint, restore, save
from nexus_vdb.model.gradients import Ranks, backward
from nexus_vdb.model.network import NexusModel
from nexus_vdb.model.objective import Objective
from nexus_vdb.model.optimizer import make_optimizer
from nexus_vdb.model.schedule import LossWeights, Schedule

__all__ = ["train"]

Report = Callable[[int, dict[str, float]], None]
Validate = Callable[[NexusModel], dict[str, float]]
Fit = Callable[[NexusModel], None]


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
    fit: Fit = lambda model: None,
    until: float = math.inf,
) -> int:
    """Train to `schedule.steps`, from the latest checkpoint in `folder` if there is one.

    Under `torchrun` every process calls this with the same arguments; the first writes.

    Args:
        model: Trained in place.
        batches: Where the pairs come from.
        schedule: Steps, batch size, learning rate.
        weights: Of the losses.
        folder: Holds checkpoints and `metrics.jsonl`.
        device: "cpu" or "cuda".
        report: Called with each step's losses, for progress.
        validate: Called at the start and at each checkpoint; its figures go to the log.
        fit: Called before each checkpoint that the schedule asks for, to fit what no gradient does.
        until: `time.time()` at which to stop early, with a checkpoint.

    Returns:
        Steps done.

    Raises:
        ModelError: loss or gradient is not finite; the last good checkpoint is kept.
        ConfigError: the checkpoint is of another network, or the batch cannot be shared out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(model, batches, schedule, weights=weights, folder=folder, device=device)
    start = run.resume()
    with run.log() as log:
        log({"step": start} | run.validated(validate))
        if not schedule.steps:
            run.save(0)
        for step in range(start, schedule.steps):
            began = time.time()
            values = run.update(step)
            seconds = time.time() - began
            log({"step": step + 1, "lr": schedule.rate(step), "seconds": seconds} | values)
            report(step + 1, values)
            last = step + 1 == schedule.steps
            due = last or (step + 1) % schedule.checkpoint_every == 0
            if due:  # and not wherever time runs out: the run is the same in one piece or several
                run.fit(fit)
            ending = last or run.agreed(time.time() > until)
            if due or ending:
                run.save(step + 1)
                log({"step": step + 1} | run.validated(validate))
            if ending:
                return step + 1
    return start


class _Run:
    """What a run consists of, on one of its processes."""

    def __init__(
        self,
        model: NexusModel,
        batches: PairBatches,
        schedule: Schedule,
        *,
        weights: LossWeights,
        folder: Path,
        device: str,
    ) -> None:
        self._ranks = Ranks()
        if schedule.batch % self._ranks.count:
            raise ConfigError(
                f"Invalid batch={schedule.batch}; valid: multiples of the "
                f"{self._ranks.count} processes"
            )
        torch.manual_seed(schedule.seed + self._ranks.number)
        self._model = model.to(device).train()
        self._network = torch.compile(model, dynamic=True) if schedule.compile else model
        self._objective = Objective(weights, schedule, model.config.matryoshka_dims).to(device)
        self._trained = nn.ModuleDict({"model": model, "objective": self._objective})
        self._optimizer = make_optimizer(model, self._objective, schedule)
        self._ema = _copies(model) if schedule.ema else {}
        self._batches, self._schedule = batches, schedule
        self._folder, self._device = folder, device

    def resume(self) -> int:
        """Load the latest checkpoint; returns its step."""
        config = self._model.config.model_dump_json()
        step = restore(self._folder, self._trained, self._optimizer, ema=self._ema, config=config)
        if step and self._ranks.number:
            torch.manual_seed(hash((self._schedule.seed, step, self._ranks.number)))
        return step

    def update(self, step: int) -> dict[str, float]:
        """One update of the weights; returns the losses."""
        schedule = self._schedule
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.rate(step) * group["share"]
        self._optimizer.zero_grad()
        sums: dict[str, float] = {}
        for micro in range(schedule.accumulate):
            number = step * schedule.accumulate + micro
            values = backward(
                self._network,
                self._objective,
                self._batches.at(number, schedule, device=self._device),
                chunk=schedule.chunk,
                scale=1 / schedule.accumulate,
                ranks=self._ranks,
            )
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / schedule.accumulate
        self._check("loss", sums["loss"], step)
        self._ranks.add_up(self._model)  # the objective's are whole on every process
        norm = nn.utils.clip_grad_norm_(self._trained.parameters(), schedule.clip)
        # Before the update: the weights would be lost, and might be kept as a checkpoint.
        self._check("gradient", float(norm), step)
        self._optimizer.step()
        for name, mean in self._ema.items():
            mean.lerp_(self._model.get_parameter(name).detach().float(), 1 - schedule.ema)
        return sums

    def _check(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        last = latest_checkpoint(self._folder)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise ModelError(
            f"the {what} is {value} at step {step}", hint=f"{kept}; lower the learning rate"
        )

    def save(self, step: int) -> None:
        """Write a checkpoint, if this is the process that writes."""
        if self._ranks.number == 0:
            config = self._model.config.model_dump_json()
            save(self._folder, step, self._trained, self._optimizer, ema=self._ema, config=config)
        self._ranks.wait()

    def fit(self, fit: Fit) -> None:
        """Change the weights that are exported, on the process that writes."""
        if self._ranks.number == 0:
            with self._exported():
                fit(self._model)
                self._ema = _copies(self._model) if self._ema else {}
        self._ranks.share(self._model)

    def validated(self, validate: Validate) -> dict[str, float]:
        """The figures of the weights that are exported."""
        if self._ranks.number:
            return {}
        with self._exported():
            return validate(self._model)

    @contextmanager
    def _exported(self) -> Iterator[None]:
        """The running mean in the network, where there is one."""
        trained = _copies(self._model) if self._ema else {}
        _load(self._model, self._ema)
        yield
        _load(self._model, trained)

    def agreed(self, ending: bool) -> bool:
        """Whether the first process says so, for clocks differ."""
        flag = torch.tensor([float(ending)], device=self._device)
        return bool(self._ranks.gather(flag)[0])

    @contextmanager
    def log(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Appends lines to `metrics.jsonl`, if this is the process that writes."""
        if self._ranks.number:
            yield lambda row: None
            return
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1) as file:
            yield lambda row: print(json.dumps(row), file=file)  # noqa: T201 - into the log


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().float().clone() for name, value in model.named_parameters()}


@torch.no_grad()
def _load(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        model.get_parameter(name).copy_(value)
