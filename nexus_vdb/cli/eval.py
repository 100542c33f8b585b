"""`nexus-vdb eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.evaluate import TestSet

__all__ = ["command"]

_MEASURES = ("ndcg@10", "recall@100", "mrr@10")
_PLOTTED_SHARES = (0.01, 0.025, 0.05, 0.1)


def _shares(text: str | None) -> tuple[float, ...]:
    """Percentages parted by commas, as shares of 1."""
    try:
        return tuple(float(part) / 100 for part in text.split(",")) if text else ()
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: give percentages such as 1,2.5,5,10", param_hint="--shares"
        ) from None


@click.command(
    "eval",
    epilog=examples(
        "nexus-vdb eval datasets/scifact",
        "nexus-vdb eval datasets/scifact --chunk-tokens 512",
        "nexus-vdb eval datasets/scifact --store faiss://./scifact --json",
        "nexus-vdb eval datasets/scifact --heads --shares 1,2.5,5,10 --plot scifact.png",
        "nexus-vdb eval datasets/stsb-dev.tsv --model ./my-model",
    ),
)
@click.argument("place", metavar="BEIR_DIR|STS.tsv", type=click.Path(path_type=Path))
@model_option
@click.option("--store", "url", metavar="URL", help="Search this store instead of embedding anew.")
@click.option("--chunk-tokens", type=click.IntRange(8), metavar="N", help="Longest chunk.  [192]")
@click.option("--split", default="test", show_default=True, help="Judgements: qrels/SPLIT.tsv.")
@click.option("--heads", is_flag=True, help="Search with the semantic and entity heads as well.")
@click.option("--shares", metavar="1,2.5,5", help="Candidates of the hash, in % of the records.")
@click.option("--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw it.")
@as_json
def command(
    *,
    place: Path,
    model: str | None,
    url: str | None,
    chunk_tokens: int | None,
    split: str,
    heads: bool,
    shares: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure a model on a BEIR test set, or on a table of graded sentence pairs.

    The folder has corpus.jsonl, queries.jsonl and qrels/test.tsv. Without --store the corpus is
    embedded into a temporary one. With one, the store is taken as it is: fill it from the same
    corpus.jsonl by `ingest --id-field _id`.

    A file is a table of sentence pairs, parted by tabs under the header `score s1 s2`; printed is
    Spearman's correlation of cosine and score, times 100, at each width and of each head.
    """
    if plot is not None:
        from nexus_vdb.pipelines._eval_plot import draw  # now: without matplotlib nothing is run
    if place.is_file():
        if url or shares or chunk_tokens:
            raise click.UsageError(
                "sentence pairs are not searched: no --store, no --shares, no --chunk-tokens"
            )
        found = _measure_pairs(place, model)
    else:
        if url and chunk_tokens:
            raise click.UsageError("a --store has its chunks: give --chunk-tokens to its ingest")
        percents = _shares(shares) or (_PLOTTED_SHARES if plot else ())
        found = _measure(
            place,
            split,
            model=model,
            url=url,
            chunk_tokens=chunk_tokens,
            heads=heads,
            shares=percents,
        )
    if plot is not None:
        draw(found, plot, title=f"{place.name}, {found['model']}")
    if as_json:
        print_json(found)
    elif "spearman" in found:
        _show_pairs(found, place.name)
    else:
        _show(found, place.name)


def _measure_pairs(path: Path, model: str | None) -> dict[str, Any]:
    from nexus_vdb import encoder
    from nexus_vdb.pipelines.evaluate import evaluate_pairs, read_sentence_pairs

    return evaluate_pairs(encoder.load_encoder(model), read_sentence_pairs(path))


def _measure(
    folder: Path,
    split: str,
    *,
    model: str | None,
    url: str | None,
    chunk_tokens: int | None,
    heads: bool,
    shares: tuple[float, ...],
) -> dict[str, Any]:
    from nexus_vdb import encoder
    from nexus_vdb.chunking import CHUNK_TOKENS
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.evaluate import (
        HeadRecorder,
        evaluate,
        evaluate_heads,
        read_test_set,
        scratch,
    )

    test = read_test_set(folder, split=split)
    longest = CHUNK_TOKENS if chunk_tokens is None else chunk_tokens
    recorder = HeadRecorder(encoder.load_encoder(model)) if heads else None
    opened = (
        Collection(url, model=model, encoder=recorder)
        if url
        else scratch(recorder or encoder.load_encoder(model))
    )
    with opened as collection:
        if url is None:
            _fill(collection, test, longest)
        with progress_bar("queries") as update:
            found = evaluate(
                collection,
                test,
                shares=shares,
                progress=lambda done, total: update(done, total, ""),
            )
    if recorder is not None:
        with progress_bar("heads") as update:
            found["heads"] = evaluate_heads(
                recorder,
                test,
                chunk_tokens=longest,
                progress=lambda done, total: update(done, total, ""),
            )
    return found


def _fill(collection: Collection, test: TestSet, longest: int) -> None:
    from nexus_vdb.pipelines.evaluate import fill

    with progress_bar("documents") as update:
        report = fill(
            collection,
            test,
            chunk_tokens=longest,
            progress=lambda so_far: update(so_far.read, None, ""),
        )
    if report.quarantined:
        note(f"{report.quarantined:,} rows of the corpus are no documents; left out")


def _show(found: dict[str, Any], name: str) -> None:
    from rich.table import Table

    title = f"{name}: {found['queries']:,} queries, {found['records']:,} records, {found['model']}"
    table = Table("search", *_MEASURES, title=title)

    def add(label: str, scores: dict[str, float]) -> None:
        table.add_row(label, *(f"{scores[m]:.4f}" if m in scores else "-" for m in _MEASURES))

    for dim, scores in found["cuts"].items():
        add(f"exact, {dim} dimensions", scores)
    for head, scores in found.get("heads", {}).items():
        add(f"exact, {head} head alone", scores)
    depths = found["shares"] or ([found["prefilter"]] if found["prefilter"] else [])
    for depth in depths:
        add(f"hash, {depth['candidates']:,} candidates ({depth['share']:.1%})", depth)
    show(table)
    for depth in depths:
        click.echo(
            f"the hash keeps {depth['recall_of_exact']:.1%} of the exact top 10"
            f" in its best {depth['share']:.1%}"
        )


def _show_pairs(found: dict[str, Any], name: str) -> None:
    from rich.table import Table

    table = Table(
        "vectors", "Spearman x 100", title=f"{name}: {found['pairs']:,} pairs, {found['model']}"
    )
    for dim, value in found["cuts"].items():
        table.add_row(f"{dim} dimensions", f"{value:.2f}")
    for head, value in found["heads"].items():
        table.add_row(f"{head} head alone", f"{value:.2f}")
    show(table)
