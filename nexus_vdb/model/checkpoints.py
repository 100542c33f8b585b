"""Checkpoints: safetensors with everything that a resumed run needs to go on bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nexus_vdb.errors import ConfigError, ModelError
from nexus_vdb.model.config import NexusConfig
from nexus_vdb.model.optimizer import Optimizer

__all__ = ["latest_checkpoint", "restore", "save"]

_KEPT = 2  # the newest, and the one before it should the newest be of no use


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return max(folder.glob("step-*.safetensors"), default=None)


def save(
    folder: Path,
    step: int,
    trained: nn.Module,
    optimizer: Optimizer,
    *,
    ema: dict[str, Tensor],
    config: str,
) -> Path:
    """Write a checkpoint as a whole or not at all; the two newest stay.

    Args:
        folder: The run's.
        step: Updates done.
        trained: Module whose state is kept.
        optimizer: Its state is kept as well.
        ema: Running mean of the weights, by name; empty for none.
        config: JSON of the network, which a resumed run must have as well.
    """
    tensors = {f"weights.{name}": value for name, value in trained.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    for index, state in optimizer.state().items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["rng"] = torch.get_rng_state()
    path = folder / f"step-{step:07d}.safetensors"
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata={"step": str(step), "config": config})
    except Exception as error:  # safetensors raises types of its own
        partial.unlink(missing_ok=True)
        raise ModelError(
            f"cannot write the checkpoint {path}: {error}", hint="see that the disk has room"
        ) from error
    partial.replace(path)
    for old in sorted(folder.glob("step-*.safetensors"))[:-_KEPT]:
        old.unlink()
    return path


def restore(
    folder: Path,
    trained: nn.Module,
    optimizer: Optimizer,
    *,
    ema: dict[str, Tensor],
    config: str,
) -> int:
    """Load the latest checkpoint into all of these; returns its step, 0 where there is none.

    Raises:
        ConfigError: it is a checkpoint of another network.
        ModelError: it cannot be read.
    """
    path = latest_checkpoint(folder)
    if path is None:
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {"config": "", "step": "0"} | (file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises types of its own
        raise ModelError(
            f"cannot read the checkpoint {path}: {error}",
            hint="delete it: the run goes on from the one before it",
        ) from error
    if not _same_network(metadata["config"], config):
        raise ConfigError(
            f"{path} is a checkpoint of another network", hint="give another --out folder"
        )
    trained.load_state_dict(_under("weights.", tensors))
    for name, value in _under("ema.", tensors).items():
        if name in ema:
            ema[name].copy_(value)
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state(states)
    torch.set_rng_state(tensors["rng"])
    return int(metadata["step"])


def _same_network(one: str, other: str) -> bool:
    """Whether two JSON texts say the same of a network; a key not there has its default."""
    try:
        configs = [NexusConfig.model_validate_json(text) for text in (one, other)]
    except ValidationError:
        return False
    return configs[0] == configs[1]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
