"""`nexus-vdb ingest`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import (
    STORES,
    as_json,
    config_option,
    examples,
    model_option,
    note,
    print_json,
    progress_bar,
    stopping,
)
from nexus_vdb.errors import ConfigError

if TYPE_CHECKING:
    from nexus_vdb.reports import IngestReport

__all__ = ["command"]

_INTERRUPTED = 130


@click.command(
    "ingest",
    epilog=examples(
        "nexus-vdb ingest corpus.jsonl --store faiss://./index",
        'nexus-vdb ingest "papers/*.parquet" --id-field doi --text-field abstract \\',
        "    --store qdrant://localhost:6333/papers",
        "nexus-vdb ingest corpus/ --store faiss://./index --delete-missing --dry-run",
    ),
)
@click.argument("sources", nargs=-1, metavar="SOURCE…")
@click.option("--store", metavar="URL", help=f"{STORES}.")
@click.option("--id-field", metavar="NAME", help="Field with the document's id.  [id]")
@click.option("--text-field", metavar="NAME", help="Field with its text.  [text]")
@click.option("--title-field", metavar="NAME", help="Field with its title, if any.  [title]")
@click.option("--vector-field", metavar="NAME", help="Take ready-made vectors from this field.")
@model_option
@click.option("--chunk-tokens", type=int, metavar="N", help="Longest chunk.  [256]")
@click.option("--chunk-overlap", type=int, metavar="N", help="Tokens shared by neighbours.  [32]")
@click.option("--cuts", metavar="LIST", help="Vector widths that a new store keeps.  [256,768]")
@click.option("--delete-missing", is_flag=True, default=None, help="Delete what the corpus lacks.")
@click.option("--max-delete", type=float, metavar="SHARE", help="…but no more than this.  [0.1]")
@click.option(
    "--dry-run", is_flag=True, default=None, help="Say what would be done; write nothing."
)
@click.option(
    "--on-error",
    type=click.Choice(["quarantine", "fail"]),
    help="Set bad rows aside, or stop at the first.  [quarantine]",
)
@click.option("--quarantine", type=click.Path(path_type=Path), help="Where to.  [quarantine.jsonl]")
@config_option
@as_json
def command(*, config: Path | None, as_json: bool, **options: Any) -> int:
    """Bring a store up to date with Parquet or JSONL files.

    SOURCE is a file, a folder, a quoted glob or a URL (s3://…). Only new and changed documents are
    embedded, so the same command again is quick, and goes on where it was interrupted. All fields
    but id and text become metadata that searches can filter by.
    """
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.ingest import IngestSettings, ingest
    from nexus_vdb.settings import load_settings

    options["sources"] = list(options["sources"]) or None
    options["cuts"] = options["cuts"] and _numbers(options["cuts"])
    settings = load_settings(IngestSettings, config, options)
    _require(settings)
    with (
        Collection(settings.store, model=settings.model) as collection,
        stopping() as stop,
        progress_bar("documents") as update,
    ):
        report = ingest(
            collection,
            settings,
            progress=lambda so_far: update(so_far.read, so_far.total, _counts(so_far)),
            stop=stop,
        )
    if as_json:
        print_json(asdict(report) | {"store": settings.store})
    else:
        click.echo(_summary(report))
    return _conclude(report, settings)


def _require(settings: Any) -> None:
    if not settings.store:
        raise ConfigError("no store is named", hint="--store faiss://./index")
    if not settings.sources:
        raise ConfigError("no source is named", hint="nexus-vdb ingest corpus.jsonl --store URL")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"Invalid cuts={text}; valid: widths such as 256,768") from None


def _counts(report: IngestReport) -> str:
    return (
        f"{report.embedded:,} embedded, {report.skipped:,} unchanged, "
        f"{report.quarantined:,} set aside"
    )


def _summary(report: IngestReport) -> str:
    rate = report.read / report.seconds if report.seconds else 0
    verb = "would be " if report.dry_run else ""
    return (
        f"{report.read:,} documents read: {report.embedded:,} {verb}embedded "
        f"({report.chunks:,} chunks), {report.skipped:,} unchanged, "
        f"{report.deleted:,} {verb}deleted, {report.quarantined:,} bad rows; "
        f"{report.seconds:.1f} s, {rate:,.0f} documents/s"
    )


def _conclude(report: IngestReport, settings: Any) -> int:
    if report.quarantined and not report.dry_run:
        note(f"bad rows were set aside in {settings.quarantine}, with the reason of each")
    if report.refusal:
        note(report.refusal)
    if report.interrupted:
        note("interrupted; the same command again goes on from here")
        return _INTERRUPTED
    return 1 if report.quarantined or report.refusal else 0
