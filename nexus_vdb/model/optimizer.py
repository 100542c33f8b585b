"""Optimizers: AdamW, or Muon for the matrices of the blocks and AdamW for all else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nexus_vdb.errors import ConfigError
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.network import NexusModel
from nexus_vdb.model.schedule import Schedule

__all__ = ["Optimizer", "make_optimizer"]

_WIDTH, _BLOCKS = 256, 4  # of the network that learning rates are given for
_BIGRAMS = 8.0  # times the learning rate: a pair is seldom seen, and its vector starts at zero


class Optimizer:
    """One or several of torch's optimizers, each with parameters of its own, as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for part in self._parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Change the weights by their gradients."""
        for part in self._parts:
            part.step()

    def state(self) -> dict[int, dict[str, Any]]:
        """What they remember of each parameter, numbered from part to part."""
        return {
            first + index: values
            for first, _, part in self._numbered()
            for index, values in part.state_dict()["state"].items()
        }

    def load_state(self, state: dict[int, dict[str, Any]]) -> None:
        """Take up what `state` gave."""
        for first, end, part in self._numbered():
            own = {index - first: state[index] for index in state if first <= index < end}
            layout = part.state_dict()["param_groups"]
            part.load_state_dict({"state": own, "param_groups": layout})

    def _numbered(self) -> Iterator[tuple[int, int, torch.optim.Optimizer]]:
        first = 0
        for part in self._parts:
            end = first + sum(len(group["params"]) for group in part.param_groups)
            yield first, end, part
            first = end


def make_optimizer(model: NexusModel, objective: nn.Module, schedule: Schedule) -> Optimizer:
    """As the schedule says; weight decay on matrices, not on tables, norms and biases.

    Muon (Jordan et al. 2024) makes what changes in a matrix orthogonal, scaled to the size of
    AdamW's (Liu et al. 2025, arXiv:2502.16982), so that both go by one learning rate.

    Raises:
        ConfigError: this torch has no Muon.
    """
    kinds = _kinds(model, objective)
    share, parts = _matrix_share(model.config), []
    if schedule.optimizer == "muon" and kinds["blocks"]:
        parts.append(_muon([{"params": kinds.pop("blocks"), "share": share}], schedule))
    matrices = kinds.get("blocks", []) + kinds["matrices"]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay, "share": share},
        {"params": kinds["others"], "weight_decay": 0.0, "share": 1.0},
        {"params": kinds["bigrams"], "weight_decay": 0.0, "share": _BIGRAMS},
    ]
    rate = schedule.learning_rate
    parts.append(torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True))
    return Optimizer(*parts)


def _kinds(model: NexusModel, objective: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What is trained: matrices of the blocks, other matrices, vectors of pairs, all else."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds: dict[str, list[nn.Parameter]] = {
        name: [] for name in ("blocks", "matrices", "bigrams", "others")
    }
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if not parameter.requires_grad:
            continue
        part = name.partition(".")[0]
        if part == "bigrams":
            kinds[part].append(parameter)
        elif parameter.ndim < 2 or id(parameter) in tables:
            kinds["others"].append(parameter)
        else:
            kinds["blocks" if part == "blocks" else "matrices"].append(parameter)
    return kinds


def _muon(groups: list[dict[str, Any]], schedule: Schedule) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"torch {torch.__version__} has no Muon",
            hint='take torch 2.9 or later, or optimizer = "adamw"',
        )
    made: torch.optim.Optimizer = torch.optim.Muon(
        groups,
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return made


def _matrix_share(config: NexusConfig) -> float:
    """Of the learning rate, for matrices: less in a network larger than the shipped one.

    AdamW changes each weight alike, so what a matrix puts out changes with its width (Yang et al.
    2022), and all blocks add up.
    """
    return min(1.0, _WIDTH / config.d_model * math.sqrt(_BLOCKS / max(1, config.n_layers)))
