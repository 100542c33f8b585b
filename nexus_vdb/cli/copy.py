"""`nexus-vdb copy`."""

from __future__ import annotations

from dataclasses import asdict

import click

from nexus_vdb.cli.common import as_json, examples, note, print_json, progress_bar

__all__ = ["command"]


@click.command(
    "copy",
    epilog=examples("nexus-vdb copy faiss://./index qdrant://localhost:6333/docs --verify"),
)
@click.argument("source", metavar="FROM_URL")
@click.argument("target", metavar="TO_URL")
@click.option("--verify", is_flag=True, help="Compare both stores afterwards.")
@as_json
def command(*, source: str, target: str, verify: bool, as_json: bool) -> int:
    """Copy a store to another backend.

    Nothing is embedded again. The target is made if it is missing; what it holds besides stays.
    """
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.copy import copy

    with (
        Collection(source) as from_,
        Collection(target) as to,
        progress_bar("records") as update,
    ):
        report = copy(
            from_,
            to,
            verify=verify,
            progress=lambda so_far: update(so_far.copied, so_far.total, ""),
        )
    if as_json:
        print_json(asdict(report))
    else:
        checked = ", both stores hold the same" if report.verified else ""
        click.echo(f"{report.copied:,} records copied in {report.seconds:.1f} s{checked}")
    if report.verified is False:
        note(f"{target} does not hold what {source} does: it had other records, or was changed")
        return 1
    return 0
