"""`nexus-vdb verify`."""

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
    from nexus_vdb.reports import VerifyReport

__all__ = ["command"]

_INTERRUPTED = 130
_KINDS = {
    "missing": "documents are missing",
    "stale": "documents have changed since",
    "incomplete": "documents are incomplete",
    "wrong_fingerprint": "documents were embedded by another model, or with other settings",
    "extra": "records are not in the corpus",
    "bad_vectors": "vectors are not finite, or not of length 1",
    "differing": "vectors or codes are not what the model makes",
}


@click.command(
    "verify",
    epilog=examples(
        "nexus-vdb verify corpus.jsonl --store faiss://./index",
        "nexus-vdb verify corpus.jsonl --store faiss://./index --sample 10% --deep 100",
        "nexus-vdb verify corpus.jsonl --store faiss://./index --fix",
    ),
)
@click.argument("sources", nargs=-1, metavar="SOURCE…")
@click.option("--store", metavar="URL", help=f"{STORES}.")
@click.option("--id-field", metavar="NAME", help="Field with the document's id.")
@click.option("--text-field", metavar="NAME", help="Field with its text.")
@click.option("--title-field", metavar="NAME", help="Field with its title, if any.")
@click.option("--vector-field", metavar="NAME", help="Field with ready-made vectors.")
@model_option
@click.option("--chunk-tokens", type=int, metavar="N", help="Longest chunk.")
@click.option("--chunk-overlap", type=int, metavar="N", help="Tokens shared by neighbours.")
@click.option("--sample", metavar="N|SHARE", help="Look at so many documents only: 500, or 10%.")
@click.option("--seed", type=int, metavar="N", help="Which ones.  [0]")
@click.option("--deep", type=int, metavar="N", help="Embed so many records again.  [0]")
@click.option("--fix", is_flag=True, default=None, help="Mend what is found.")
@click.option("--max-delete", type=float, metavar="SHARE", help="Let --fix delete so much.  [0.1]")
@config_option
@as_json
def command(*, config: Path | None, as_json: bool, **options: Any) -> int:
    """Compare a store with the corpus it was made of.

    The corpus is read again; the settings are those of the ingest, which the store keeps, unless
    others are given. Told are documents that are missing, changed, incomplete or embedded by
    another model, records that the corpus does not have, and vectors that cannot be right.
    """
    from nexus_vdb.pipelines.verify import VerifySettings, open_verified, verify
    from nexus_vdb.settings import load_settings

    options["sources"] = list(options["sources"]) or None
    settings = load_settings(VerifySettings, config, options)
    _require(settings)
    with (
        open_verified(settings) as collection,
        stopping() as stop,
        progress_bar("documents") as update,
    ):
        report = verify(
            collection,
            settings,
            progress=lambda so_far: update(so_far.read, so_far.total, f"{so_far.faults:,} faults"),
            stop=stop,
        )
    if as_json:
        print_json(asdict(report) | {"store": settings.store})
    else:
        click.echo(_summary(report))
    return _conclude(report)


def _require(settings: Any) -> None:
    if not settings.store:
        raise ConfigError("no store is named", hint="--store faiss://./index")
    if not settings.sources:
        raise ConfigError("no source is named", hint="nexus-vdb verify corpus.jsonl --store URL")


def _summary(report: VerifyReport) -> str:
    seen = f"{report.checked:,} of {report.read:,} documents compared ({report.share:.1%})"
    lines = [f"{seen}, {report.records:,} vectors looked at; {report.seconds:.1f} s"]
    if report.embedded_again:
        lines.append(
            f"{report.embedded_again:,} records embedded again, least cosine {report.least_cosine}"
        )
    for kind, meaning in _KINDS.items():
        if count := getattr(report, kind):
            named = ", ".join(report.examples[kind][:3])
            lines.append(f"{count:,} {meaning}: {named}{' …' if count > 3 else ''}")
    if report.quarantined:
        lines.append(f"{report.quarantined:,} rows of the corpus are no documents")
    if not report.faults and not report.interrupted:
        lines.append("nothing is amiss")
    if report.repaired or report.deleted:
        lines.append(
            f"mended: {report.repaired:,} documents ingested again, "
            f"{report.deleted:,} records deleted"
        )
    return "\n".join(lines)


def _conclude(report: VerifyReport) -> int:
    if report.refusal:
        note(report.refusal)
    if report.interrupted:
        note("interrupted; the same command again begins anew")
        return _INTERRUPTED
    return 1 if report.quarantined or not report.sound else 0
