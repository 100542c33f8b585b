"""`nexus-vdb copy`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nexus_vdb.cli.common import as_json, examples, note, print_json, progress_bar, stopping

if TYPE_CHECKING:
    from nexus_vdb.reports import CopyReport

__all__ = ["command"]

_INTERRUPTED = 130


@click.command(
    "copy",
    epilog=examples(
        "nexus-vdb copy faiss://./index qdrant://localhost:6333/docs --verify",
        "nexus-vdb copy faiss://./index parquet://./export",
    ),
)
@click.argument("source", metavar="FROM_URL")
@click.argument("target", metavar="TO_URL")
@click.option("--verify", is_flag=True, help="Compare both stores afterwards.")
@click.option("--overwrite", is_flag=True, help="Write also what the target has already.")
@as_json
def command(*, source: str, target: str, verify: bool, overwrite: bool, as_json: bool) -> int:
    """Copy a store to another backend, or to Parquet files that any tool reads.

    Nothing is embedded again. The target is made if it is missing; what it holds besides stays.
    What it has already is not written again, so a copy that was cut off goes on where it was.
    """
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.copy import copy

    with (
        Collection(source) as from_,
        Collection(target) as to,
        stopping() as stop,
        progress_bar("records") as update,
    ):
        report = copy(
            from_, to, verify=verify, overwrite=overwrite, progress=_shown(update), stop=stop
        )
        damage = from_.store.info().details.get("damage", [])
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(_summary(report))
    if report.interrupted:
        note("interrupted; the same command again goes on from here")
        return _INTERRUPTED
    for line in damage:
        note(line)
    if report.verified is False:
        note(
            f"{target} does not hold what {source} does: it has other records, or changed ones; "
            "--overwrite writes all of them again"
        )
        return 1
    return 1 if damage else 0


def _shown(update: Callable[[int, int | None, str], None]) -> Callable[[CopyReport], None]:
    started = time.perf_counter()

    def progress(report: CopyReport) -> None:
        rate = report.copied / max(time.perf_counter() - started, 1e-9)
        update(report.copied + report.skipped, report.total, f"{rate:,.0f} copied/s")

    return progress


def _summary(report: CopyReport) -> str:
    rate = report.copied / report.seconds if report.seconds else 0
    there = f", {report.skipped:,} were there already" if report.skipped else ""
    proof = f"vectors to {report.precision}, checksum {report.checksum}"
    same = f"; both stores hold the same ({proof})"
    return (
        f"{report.copied:,} records copied{there}; "
        f"{report.seconds:.1f} s, {rate:,.0f} records/s{same if report.verified else ''}"
    )
