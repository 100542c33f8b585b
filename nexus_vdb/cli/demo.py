"""`nexus-vdb demo`."""

from __future__ import annotations

from pathlib import Path

import click

from nexus_vdb.cli.common import examples, model_option, note, progress_bar
from nexus_vdb.cli.search import show_hits

__all__ = ["command"]


@click.command("demo", epilog=examples("nexus-vdb demo", "nexus-vdb demo --folder ./demo"))
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("nexus-demo"),
    show_default=True,
    help="Where corpus and store are put.",
)
@model_option
def command(*, folder: Path, model: str | None) -> None:
    """See it work, offline, on the documentation of this Python.

    Takes about a minute the first time, seconds after that.
    """
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.demo import QUESTIONS, write_corpus
    from nexus_vdb.pipelines.ingest import IngestSettings, ingest

    folder.mkdir(parents=True, exist_ok=True)
    corpus, url = folder / "corpus.jsonl", f"faiss://{folder / 'index'}"
    total = write_corpus(corpus)
    note(f"{total:,} documentation strings of this Python in {corpus}")
    with Collection(url, model=model) as collection:
        with progress_bar("embedding") as update:
            report = ingest(
                collection,
                IngestSettings(sources=[str(corpus)]),
                progress=lambda so_far: update(so_far.embedded + so_far.skipped, total, ""),
            )
        note(
            f"{report.embedded:,} embedded, {report.skipped:,} unchanged, "
            f"{report.seconds:.1f} s, in {url}"
        )
        for question in QUESTIONS:
            click.secho(f"\n{question}?", bold=True)
            show_hits(collection.search(question, k=3))
    _what_next(url)


def _what_next(url: str) -> None:
    click.echo(
        f"\nAsk it yourself:    nexus-vdb search "
        f'"send an email through a server" --store {url}\n'
        f"""Only functions:     … --where '{{"kind": "function"}}'\n"""
        f"Your own files:     nexus-vdb ingest FILES --store faiss://./index"
    )
