"""`nexus-vdb search`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import (
    as_json,
    examples,
    model_option,
    parse_where,
    print_json,
    show,
    store_option,
)
from nexus_vdb.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nexus_vdb.hits import Hits
    from nexus_vdb.types import Hit

__all__ = ["command", "show_hits"]

_SNIPPET = 160  # characters, where there is no terminal to say how many fit


def _candidates(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    if value in ("auto", "exact"):
        return value
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"Invalid candidates={value}; valid: a number, auto, exact")
    return int(value)


@click.command(
    "search",
    epilog=examples(
        'nexus-vdb search "which drugs lower blood pressure" --store faiss://./index',
        'nexus-vdb search statins -k 3 --store URL --where \'{"year": {"$gte": 2020}}\'',
        "nexus-vdb search statins --store URL --group-by document --group-size 2",
        "nexus-vdb search statins --store URL --offset 10          # the second page",
        "nexus-vdb search statins --store URL --min-score 0.5",
        'nexus-vdb search "error code E-1047" --store URL --hybrid # by its words as well',
        "nexus-vdb search --like doc-17 --store URL                # more like this document",
    ),
)
@click.argument("text", nargs=-1)
@store_option
@click.option("-k", default=10, show_default=True, help="How many hits, or documents.")
@click.option("--where", metavar="JSON", help="Filter on metadata.")
@click.option("--like", metavar="ID", help="More like this stored document, instead of TEXT.")
@click.option(
    "--offset",
    type=click.IntRange(min=0),
    help="Leave out so many hits first; with 0, k, 2k … pages fit together.",
)
@click.option(
    "--min-score",
    type=click.FloatRange(-1, 1),
    help="Leave out hits with a lower cosine.",
)
@click.option(
    "--group-by",
    type=click.Choice(["document"]),
    help="Count documents, each by its best chunk.",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Best chunks of each document, with --group-by.",
)
@click.option(
    "--hybrid",
    is_flag=True,
    help="Fuse with a search by words (BM25): better for names, codes and rare terms.",
)
@click.option(
    "--candidates",
    callback=_candidates,
    metavar="N|auto|exact",
    default="auto",
    show_default=True,
    help="Records that the hash lets through to the comparison by cosine.",
)
@click.option("--dim", type=int, metavar="768|512|256", help="Width at which vectors are compared.")
@model_option
@as_json
def command(
    *,
    text: tuple[str, ...],
    url: str,
    k: int,
    where: str | None,
    like: str | None,
    offset: int | None,
    min_score: float | None,
    group_by: str | None,
    group_size: int,
    hybrid: bool,
    candidates: Any,
    dim: int | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Find the chunks that answer TEXT best."""
    from nexus_vdb.collection import Collection
    from nexus_vdb.filters import parse_filter

    _check_query(text, like, hybrid=hybrid)
    conditions = parse_where(where)
    parse_filter(conditions)  # before a model is loaded
    started = time.perf_counter()
    with Collection(url, model=model) as collection:
        if like is None and collection.info().schema.fingerprint:
            _ = collection.encoder
        loaded = time.perf_counter()
        ask = (
            partial(collection.search, " ".join(text), hybrid=hybrid)
            if like is None
            else partial(collection.search_like, like)
        )
        hits = ask(
            k=k,
            where=conditions,
            offset=offset,
            score_threshold=min_score,
            group_by=group_by,
            group_size=group_size,
            candidates=candidates,
            dim=dim,
        )
    if as_json:
        _print(hits, load=1000 * (loaded - started))
    else:
        show_hits(hits)


def _check_query(text: tuple[str, ...], like: str | None, *, hybrid: bool) -> None:
    if not text and like is None:
        raise ConfigError("no TEXT to search for", hint="nexus-vdb search TEXT, or --like ID")
    if text and like is not None:
        raise ConfigError("give TEXT or --like, and not both")
    if like is not None and hybrid:
        raise ConfigError("--hybrid needs the words of a TEXT; --like has none")


def _print(hits: Hits, *, load: float) -> None:
    timings = {"load": load, **hits.timings_ms}
    print_json(
        {
            "hits": [asdict(hit) for hit in hits],
            "candidates": hits.candidates,
            "expected_recall": hits.expected_recall,
            "timings_ms": {name: round(value, 2) for name, value in timings.items()},
        }
    )


def show_hits(hits: Sequence[Hit]) -> None:
    """Score, document and the beginning of the chunk, a line each; tabs where output is piped."""
    from rich.text import Text

    for hit in hits:
        snippet = " ".join(hit.text.split())
        if not sys.stdout.isatty():
            click.echo(f"{hit.score:.3f}\t{hit.document_id}\t{snippet[:_SNIPPET]}")
            continue
        line = Text.assemble(
            (f"{hit.score:.3f}", "bold green"), "  ", (hit.document_id, "bold"), "  ", snippet
        )
        show(line, one_line=True)
    if not hits:
        click.echo("nothing found", err=True)
