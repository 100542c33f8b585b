"""`nexus-vdb ingest`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nexus_vdb.cli.common import (
    STORES,
    as_json,
    command_line,
    config_option,
    examples,
    model_option,
    print_json,
    stopping,
)
from nexus_vdb.cli.watching import Watch, watching
from nexus_vdb.errors import ConfigError, NexusError
from nexus_vdb.logs import log_event
from nexus_vdb.reports import IngestReport

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings

__all__ = ["command"]

_log = logging.getLogger("nexus_vdb.ingest")

_INTERRUPTED = 130


@click.command(
    "ingest",
    epilog=examples(
        "nexus-vdb ingest corpus.jsonl --store faiss://./index",
        'nexus-vdb ingest "papers/*.parquet" --id-field doi --text-field abstract \\',
        "    --store qdrant://localhost:6333/papers",
        "nexus-vdb ingest corpus/ --store faiss://./index --delete-missing --dry-run",
        "nexus-vdb ingest --replay quarantine.jsonl --store faiss://./index",
        "nexus-vdb ingest corpus/ --store qdrant://localhost:6333/docs --engine ray --workers 8",
    ),
)
@click.argument("sources", nargs=-1, metavar="SOURCE…")
@click.option("--store", metavar="URL", help=f"{STORES}.")
@click.option("--id-field", metavar="NAME", help="Field with the document's id.  [id]")
@click.option("--text-field", metavar="NAME", help="Field with its text.  [text]")
@click.option("--title-field", metavar="NAME", help="Field with its title, if any.  [title]")
@click.option("--vector-field", metavar="NAME", help="Take ready-made vectors from this field.")
@model_option
@click.option("--chunk-tokens", type=int, metavar="N", help="Longest chunk.  [as stored; 192]")
@click.option(
    "--chunk-overlap", type=int, metavar="N", help="Tokens shared by neighbours.  [as stored; 24]"
)
@click.option("--cuts", metavar="LIST", help="Vector widths that a new store keeps.  [256,768]")
@click.option("--delete-missing", is_flag=True, default=None, help="Delete what the corpus lacks.")
@click.option("--max-delete", metavar="SHARE", help="…but no more than this.  [10%]")
@click.option(
    "--dry-run", is_flag=True, default=None, help="Say what would be done; write nothing."
)
@click.option(
    "--on-error",
    type=click.Choice(["quarantine", "fail"]),
    help="Set bad rows aside, or stop at the first.  [quarantine]",
)
@click.option("--quarantine", type=click.Path(path_type=Path), help="Where to.  [quarantine.jsonl]")
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    help="Read this file of bad rows, mended, instead of SOURCE; what goes in leaves it.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    help="Embed in this process, or over a Ray cluster, which faiss:// has to share a folder with; "
    'pip install "nexus-vdb[ray]".  [local]',
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Of --engine ray: each takes a GPU where the cluster has any, else a core.  [all]",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="A running cluster, or auto.  [RAY_ADDRESS; without it Ray is started for this run]",
)
@config_option
@as_json
@click.option("--log-json", is_flag=True, default=None, help="Log JSON lines to standard error.")
@click.option(
    "--metrics-port", type=int, metavar="PORT", help="Serve counters for Prometheus meanwhile."
)
@click.option("--metrics-host", metavar="HOST", help="…to whom.  [127.0.0.1: this machine only]")
def command(*, config: Path | None, as_json: bool, **options: Any) -> int:
    """Bring a store up to date with Parquet or JSONL files.

    SOURCE is a file, a folder, a quoted glob or a URL (s3://…). Only new and changed documents are
    embedded, so the same command again is quick, and goes on where it was interrupted. All fields
    but id and text become metadata that searches can filter by.
    """
    from nexus_vdb.pipelines.ingest import IngestSettings
    from nexus_vdb.settings import load_settings

    if options["replay"] and options["sources"]:
        raise ConfigError("a replay reads no other source", hint="drop SOURCE, or --replay")
    options["sources"] = list(options["sources"]) or None
    options["cuts"] = options["cuts"] and _numbers(options["cuts"])
    settings = load_settings(IngestSettings, config, options)
    _require(settings)
    report = IngestReport()
    with watching(settings, report, quiet=as_json) as watch:
        try:
            _run(settings, report, watch)
        except (Exception, KeyboardInterrupt) as error:
            if not settings.log_json:
                raise
            return _log_error(error)
        if as_json:
            print_json(asdict(report) | {"store": settings.store})
        code = _conclude(report, settings, watch)
    if not as_json:
        click.echo(_summary(report))
    return code


def _run(settings: IngestSettings, report: IngestReport, watch: Watch) -> None:
    from nexus_vdb.collection import Collection
    from nexus_vdb.pipelines.ingest import ingest

    with (
        Collection(settings.store, model=settings.model) as collection,
        stopping(watch.signalled) as stop,
    ):
        ingest(collection, settings, report=report, progress=watch.progress, stop=stop)


def _log_error(error: BaseException) -> int:
    interrupted = isinstance(error, KeyboardInterrupt)
    fields = {"error": type(error).__name__, "hint": getattr(error, "hint", "")}
    text = "interrupted" if interrupted else str(error)
    log_event(_log, "error", text, fields=fields, level=logging.ERROR)
    return _INTERRUPTED if interrupted else getattr(error, "exit_code", NexusError.exit_code)


def _require(settings: IngestSettings) -> None:
    if not settings.store:
        raise ConfigError("no store is named", hint="--store faiss://./index")
    if not settings.sources and not settings.replay:
        raise ConfigError("no source is named", hint="nexus-vdb ingest corpus.jsonl --store URL")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"Invalid cuts={text}; valid: widths such as 256,768") from None


def _summary(report: IngestReport) -> str:
    rate = report.read / report.seconds if report.seconds else 0
    verb = "would be " if report.dry_run else ""
    return (
        f"{report.read:,} documents read: {report.embedded:,} {verb}embedded "
        f"({report.chunks:,} chunks), {report.skipped:,} unchanged, "
        f"{report.deleted:,} {verb}deleted, {report.quarantined:,} bad rows; "
        f"{report.seconds:.1f} s, {rate:,.0f} documents/s"
    )


def _conclude(report: IngestReport, settings: IngestSettings, watch: Watch) -> int:
    if report.quarantined and not report.dry_run:
        aside = settings.replay or settings.quarantine
        state = "are still" if settings.replay else "were set aside"
        watch.say(f"bad rows {state} in {aside}, with the reason of each")
    if report.refusal:
        watch.say(report.refusal)
    if report.interrupted:
        watch.say(f"interrupted; the same command again goes on from here: {command_line()}")
        return _INTERRUPTED
    return 1 if report.quarantined or report.refusal else 0
