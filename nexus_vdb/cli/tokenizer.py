"""`nexus-vdb tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nexus_vdb.cli.common import config_option, examples, note

__all__ = ["command"]


@click.command(
    "tokenizer",
    epilog=examples(
        "nexus-vdb tokenizer --config configs/tokenizer.toml",
        'nexus-vdb tokenizer "corpus/*.jsonl" --out tokenizer.model --vocab-size 16000',
    ),
)
@click.argument("texts", nargs=-1, metavar="FILE…")
@click.option("--out", type=click.Path(path_type=Path), help="The tokenizer.model to write.")
@click.option("--vocab-size", type=int, metavar="N", help="Pieces.  [48000]")
@click.option("--user-symbol", "user_symbols", multiple=True, help="Always a piece of its own.")
@click.option("--sample", type=int, metavar="N", help="Texts to draw at random.  [500000]")
@click.option("--threads", type=int, metavar="N", help="[2]")
@config_option
def command(*, config: Path | None, **options: Any) -> None:
    """Train a SentencePiece tokenizer on text, JSONL or Parquet files."""
    from nexus_vdb.pipelines.tokenizer import TokenizerSettings, run_tokenizer
    from nexus_vdb.settings import load_settings

    for several in ("texts", "user_symbols"):
        options[several] = list(options[several]) or None
    settings = load_settings(TokenizerSettings, config, options)
    note(f"training {settings.vocab_size:,} pieces; some minutes for a large corpus")
    click.echo(run_tokenizer(settings))
