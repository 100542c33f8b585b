"""`nexus-vdb info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import as_json, examples, print_json, show, store_option

if TYPE_CHECKING:
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
        "calibration": info.meta.get("calibration"),
        "details": dict(info.details),
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in {**facts, **facts["details"]}.items():
        if name != "details":
            table.add_row(name.replace("_", " "), _text(value))
    show(table)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
