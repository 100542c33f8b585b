"""`nexus-vdb distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nexus_vdb.cli.common import examples, note
from nexus_vdb.cli.training import log_bar, training_options, training_settings

__all__ = ["command"]


@click.command(
    "distill",
    epilog=examples(
        "nexus-vdb distill --config configs/distill.toml",
        "nexus-vdb distill --config configs/distill.toml --teacher ./all-mpnet-base-v2",
    ),
)
@click.option("--teacher", "teachers", multiple=True, metavar="NAME|PATH", help="May repeat.")
@training_options
def command(*, config: Path | None, **options: Any) -> None:
    """Train a network on pairs of texts, and to see them as a teacher does.

    A teacher is a sentence-transformers folder, or an installed package that carries one. Its
    vectors are kept in the run folder; the same command again goes on where this one ended.
    """
    from nexus_vdb.pipelines.distill import run_distillation

    click.echo(run_distillation(training_settings(config, options), say=note, bar=log_bar))
