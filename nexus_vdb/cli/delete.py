"""`nexus-vdb delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import as_json, examples, parse_where, print_json, store_option
from nexus_vdb.errors import ConfigError

if TYPE_CHECKING:
    from nexus_vdb.collection import Collection

__all__ = ["command"]


@click.command(
    "delete",
    epilog=examples(
        "nexus-vdb delete doc-17 doc-18 --store faiss://./index",
        """nexus-vdb delete --where '{"year": {"$lt": 1990}}' --dry-run --store faiss://./index""",
    ),
)
@click.argument("ids", nargs=-1, metavar="[DOCUMENT_ID…]")
@store_option
@click.option("--where", metavar="JSON", help="Delete what matches this filter on metadata.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@as_json
def command(
    *, ids: tuple[str, ...], url: str, where: str | None, dry_run: bool, as_json: bool
) -> None:
    """Delete documents by id, or all that match a filter."""
    from nexus_vdb.collection import Collection

    conditions = parse_where(where)
    if bool(ids) == (conditions is not None):
        raise ConfigError("give document ids or --where, and not both")
    with Collection(url) as collection:
        if dry_run:
            count = _count(collection, ids, conditions)
        else:
            count = collection.delete(list(ids) if ids else None, where=conditions)
    if as_json:
        print_json({"deleted": count, "dry_run": dry_run})
    else:
        click.echo(f"{count:,} chunks {'would be ' if dry_run else ''}deleted")


def _count(collection: Collection, ids: tuple[str, ...], where: dict[str, Any] | None) -> int:
    from nexus_vdb.filters import parse_filter

    return len(collection.get(ids)) if ids else collection.store.count(parse_filter(where))
