"""`nexus-vdb info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import as_json, examples, print_json, show, store_option

if TYPE_CHECKING:
    from rich.table import Table

    from nexus_vdb.types import StoreInfo

__all__ = ["command"]


@click.command(
    "info",
    epilog=examples(
        "nexus-vdb info --store faiss://./index",
    ),
)
@store_option
@as_json
def command(*, url: str, as_json: bool) -> None:
    """Say what is in a store, and which model made it."""
    from nexus_vdb.registry import open_store

    store = open_store(url)
    try:
        facts = _facts(store.info())
    finally:
        store.close()
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def _facts(info: StoreInfo) -> dict[str, Any]:
    schema = info.schema
    return {
        "url": info.url,
        "count": info.count,
        "model": schema.model or None,
        "fingerprint": schema.fingerprint or None,
        "dim": schema.dim,
        "cuts": list(schema.cuts),
        "hash": info.meta.get("hash"),
        "hash_choice": info.meta.get("hash_choice"),
        "calibration": info.meta.get("calibration"),
        "details": dict(info.details),
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in {**facts, **facts["details"], "hash": _hash(facts)}.items():
        if name not in ("details", "hash_choice", "calibration"):
            table.add_row(name.replace("_", " "), _text(value))
    show(table)
    if facts["calibration"] and "points" in facts["calibration"]:
        calibration = facts["calibration"]
        n, queries = calibration["n"], calibration["queries"]
        show(f"\nrecall@10 of {queries:,} queries, measured at {n:,} records:")
        show(_points(calibration))


def _hash(facts: dict[str, Any]) -> str | None:
    """Which hash is in use, since when, and what it was compared with."""
    choice = facts["hash_choice"] or {}
    since = choice.get("since")
    words = [str(facts["hash"]), *([f"since {since}"] if since else [])]
    if "needed" in choice:
        needed = choice["needed"]
        words.append(
            f"(on {choice['at']} {needed['before']:,} candidates of {choice['sample']:,} held 98 % "
            f"with the codes then in use, {needed['fitted']:,} with a rotation fitted on them)"
        )
    return " ".join(words) if facts["hash"] else None


def _points(calibration: dict[str, Any]) -> Table:
    """What searches of this store found of the exact top 10."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("candidates", "lists probed", "recall", "±"):
        table.add_column(name, justify="right")
    for point in calibration["points"]:
        table.add_row(
            f"{point['candidates']:,}",
            f"{point['probes']:.0%}",
            f"{point['recall']:.3f}",
            f"{point['error']:.3f}",
        )
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
