"""`nexus-vdb dedupe`."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import as_json, examples, note, print_json, progress_bar, store_option
from nexus_vdb.errors import ConfigError

if TYPE_CHECKING:
    from nexus_vdb.pipelines.dedupe import DedupeReport

__all__ = ["command"]

_SHOWN = 20  # groups, and documents of each, for people


@click.command(
    "dedupe",
    epilog=examples(
        "nexus-vdb dedupe --store faiss://./index",
        "nexus-vdb dedupe --store faiss://./index --csv > duplicates.csv",
        "nexus-vdb dedupe --store faiss://./index --min-score 0.99 --delete --dry-run",
        "nexus-vdb dedupe --store faiss://./index --radius 7         # slower, finds more",
    ),
)
@store_option
@click.option(
    "--radius",
    type=click.IntRange(0, 15),
    help="Bits in which codes may differ; by default 3, and all are compared in small stores.",
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Least cosine with the first document of a group.",
)
@click.option("--delete", is_flag=True, help="Keep the first document of each group only.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--dry-run", is_flag=True, help="With --delete: only count.")
@click.option("--csv", "as_csv", is_flag=True, help="Print group, document and score as CSV.")
@as_json
def command(
    *,
    url: str,
    radius: int | None,
    min_score: float,
    delete: bool,
    yes: bool,
    dry_run: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Find documents that say nearly the same, and delete all but one of each group if asked to."""
    if as_csv and as_json:
        raise ConfigError("give --csv or --json, and not both")
    if delete and (as_csv or as_json) and not (yes or dry_run):
        raise ConfigError(
            "--delete asks first", hint="with --json or --csv add --yes, or --dry-run"
        )
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.dedupe import dedupe, delete_duplicates

    with Collection(url) as collection:
        with progress_bar("dedupe") as show:
            report = dedupe(
                collection,
                radius=radius,
                min_score=min_score,
                progress=lambda step, done, total: show(done, total, step),
            )
        if not as_json:
            _print_csv(report) if as_csv else _print(report)
        count = len(report.duplicates)
        gone = delete and not dry_run and count and (yes or _agreed(count))
        deleted = delete_duplicates(collection, report) if gone else 0
    if as_json:
        print_json(_facts(report, deleted=deleted, dry_run=dry_run))
    elif delete:
        note(f"{count:,} documents would be deleted" if dry_run else f"{deleted:,} deleted")


def _agreed(count: int) -> bool:
    return click.confirm(f"delete {count:,} documents?", err=True)


def _facts(report: DedupeReport, *, deleted: int, dry_run: bool) -> dict[str, Any]:
    return {
        "documents": report.documents,
        "duplicates": len(report.duplicates),
        "groups": [
            {
                "first": group.first,
                "others": [{"id": id_, "score": round(score, 4)} for id_, score in group.others],
            }
            for group in report.groups
        ],
        "radius": report.radius,
        "deleted": deleted,
        "dry_run": dry_run,
        "seconds": report.seconds,
    }


def _print_csv(report: DedupeReport) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("group", "document", "score"))
    for group in report.groups:
        rows.writerow((group.first, group.first, 1))
        rows.writerows((group.first, id_, round(score, 4)) for id_, score in group.others)
    click.echo(text.getvalue(), nl=False)


def _print(report: DedupeReport) -> None:
    for group in report.groups[:_SHOWN]:
        click.echo(group.first)
        for id_, score in group.others[:_SHOWN]:
            click.echo(f"  {score:.3f}  {id_}")
        if len(group.others) > _SHOWN:
            click.echo(f"  … {len(group.others) - _SHOWN:,} more")
    if len(report.groups) > _SHOWN:
        click.echo(f"… {len(report.groups) - _SHOWN:,} more groups: --csv or --json has all")
    click.echo(
        f"{report.documents:,} documents: {len(report.duplicates):,} repeat another, "
        f"in {len(report.groups):,} groups"
    )
