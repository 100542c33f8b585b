"""`nexus-vdb train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nexus_vdb.cli.common import examples, note
from nexus_vdb.cli.training import log_bar, training_options, training_settings

__all__ = ["command"]


@click.command(
    "train",
    epilog=examples(
        "nexus-vdb train --config configs/train.toml",
        "nexus-vdb train --network configs/nexus_emb_edge.json --tokenizer tokenizer.model \\",
        "    --pairs pairs.jsonl --out runs/mine --steps 1000",
    ),
)
@training_options
def command(*, config: Path | None, **options: Any) -> None:
    """Train a network on pairs of texts, by contrast.

    The same command again goes on from the run folder's last checkpoint. Losses and held-out
    measures of each step are in its metrics.jsonl.
    """
    from nexus_vdb.pipelines.train import run_training

    click.echo(run_training(training_settings(config, options), say=note, bar=log_bar))
