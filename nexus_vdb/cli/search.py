"""`nexus-vdb search`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
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
    ),
)
@click.argument("text", nargs=-1, required=True)
@store_option
@click.option("-k", default=10, show_default=True, help="How many hits.")
@click.option("--where", metavar="JSON", help="Filter on metadata.")
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
    candidates: Any,
    dim: int | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Find the chunks that answer TEXT best."""
    from nexus_vdb.collection import Collection
    from nexus_vdb.filters import parse_filter

    conditions = parse_where(where)
    tree = parse_filter(conditions)
    times = [time.perf_counter()]
    with Collection(url, model=model) as collection:
        if collection.info().schema.fingerprint:
            _ = collection.encoder
        times.append(time.perf_counter())
        queries = collection.embed([" ".join(text)])
        times.append(time.perf_counter())
        plan = collection.plan(k=k, where=conditions, candidates=candidates, dim=dim)
        hits = collection.store.search(queries, plan, tree)[0]
        times.append(time.perf_counter())
    if not as_json:
        show_hits(hits)
        return
    spans = zip(("load", "embed", "search"), times, times[1:], strict=False)
    print_json(
        {
            "hits": [asdict(hit) for hit in hits],
            "candidates": plan.candidates,
            "timings_ms": {name: round(1000 * (end - start), 2) for name, start, end in spans},
        }
    )


def show_hits(hits: list[Hit]) -> None:
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
