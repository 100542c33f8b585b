"""`nexus-vdb info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import (
    as_json,
    examples,
    note,
    print_json,
    progress_bar,
    show,
    store_option,
)
from nexus_vdb.errors import StoreCorrupt, StoreError

if TYPE_CHECKING:
    from rich.table import Table

    from nexus_vdb.types import StoreInfo

__all__ = ["command"]


@click.command(
    "info",
    epilog=examples(
        "nexus-vdb info --store faiss://./index",
        "nexus-vdb info --store faiss://./index --check",
    ),
)
@store_option
@click.option("--check", is_flag=True, help="Read every file, and name those that are damaged.")
@as_json
def command(*, url: str, check: bool, as_json: bool) -> int:
    """Say what is in a store, which model made it, and whether it is whole.

    With --check the exit code is 1 if anything is damaged.
    """
    damage = _check(url) if check else []
    facts: dict[str, Any] = {"url": url}
    try:
        facts = _facts(_info(url))
    except StoreError:
        if not damage:
            raise
    if as_json:
        print_json(facts | ({"damage": [str(one) for one in damage]} if check else {}))
    else:
        if len(facts) > 1:
            _show(facts)
        if check:
            _show_damage(damage)
    return 1 if damage else 0


def _check(url: str) -> list[StoreCorrupt]:
    from nexus_vdb.registry import check_store

    with progress_bar("bytes", lines=True) as update:
        return check_store(url, lambda done, total: update(done, total, "checked"))


def _show_damage(damage: list[StoreCorrupt]) -> None:
    for error in damage:
        click.echo(str(error))
    for hint in dict.fromkeys(error.hint for error in damage):
        note(hint)
    if not damage:
        click.echo("checked: all is as it was written")


def _info(url: str) -> StoreInfo:
    from nexus_vdb.registry import open_store

    store = open_store(url)
    try:
        return store.info()
    finally:
        store.close()


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
