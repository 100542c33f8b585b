"""`nexus-vdb eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nexus_vdb.cli.common import (
    as_json,
    examples,
    model_option,
    note,
    print_json,
    progress_bar,
    show,
)

__all__ = ["command"]


@click.command(
    "eval",
    epilog=examples(
        "nexus-vdb eval datasets/scifact",
        "nexus-vdb eval datasets/scifact --store faiss://./scifact --json",
    ),
)
@click.argument("folder", metavar="BEIR_DIR", type=click.Path(path_type=Path))
@model_option
@click.option("--store", "url", metavar="URL", help="Search this store instead of embedding anew.")
@click.option("--split", default="test", show_default=True, help="Judgements: qrels/SPLIT.tsv.")
@as_json
def command(*, folder: Path, model: str | None, url: str | None, split: str, as_json: bool) -> None:
    """Measure a model on a BEIR test set.

    The folder has corpus.jsonl, queries.jsonl and qrels/test.tsv. Without --store the corpus is
    embedded into memory first. With one, the store is taken as it is: fill it from the same
    corpus.jsonl by `ingest --id-field _id`.
    """
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.evaluate import evaluate, fill, read_test_set

    test = read_test_set(folder, split=split)
    with Collection(url or "memory://", model=model) as collection:
        if url is None:
            with progress_bar("documents") as update:
                report = fill(
                    collection, test, progress=lambda so_far: update(so_far.read, None, "")
                )
            if report.quarantined:
                note(f"{report.quarantined:,} rows of the corpus are no documents; left out")
        with progress_bar("queries") as update:
            found = evaluate(collection, test, progress=lambda done, total: update(done, total, ""))
    if as_json:
        print_json(found)
    else:
        _show(found, folder.name)


def _show(found: dict[str, Any], name: str) -> None:
    from rich.table import Table

    measures = ("ndcg@10", "recall@100", "mrr@10")
    title = f"{name}: {found['queries']:,} queries, {found['records']:,} records, {found['model']}"
    table = Table("search", *measures, title=title)
    for dim, scores in found["cuts"].items():
        table.add_row(f"exact, {dim} dimensions", *(f"{scores[name]:.4f}" for name in measures))
    before = found["prefilter"]
    if before:
        label = f"hash, {before['candidates']:,} candidates ({before['share']:.1%})"
        table.add_row(label, *(f"{before[m]:.4f}" if m in before else "-" for m in measures))
    show(table)
    if before:
        share = before["recall_of_exact"]
        click.echo(f"the hash keeps {share:.1%} of the exact top 10")
