"""`nexus-vdb export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nexus_vdb.cli.common import as_json, config_option, examples, note, print_json
from nexus_vdb.cli.training import log_bar

__all__ = ["command"]


@click.command(
    "export",
    epilog=examples(
        "nexus-vdb export --config configs/export.toml",
        "nexus-vdb export --checkpoint runs/mine --tokenizer tokenizer.model \\",
        "    --sample corpus.jsonl --out my-model",
        "nexus-vdb ingest corpus.jsonl --store faiss://./index --model ./my-model",
    ),
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A file, or a run folder.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Its tokenizer.model.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle folder to write.")
@click.option("--sample", multiple=True, metavar="FILE", help="Texts to fit the hash to.")
@click.option("--sample-size", type=int, metavar="N", help="Of them at most.  [16384]")
@click.option("--precision", type=click.Choice(["int8", "float16", "float32"]), help="[int8]")
@click.option("--max-tokens", type=int, metavar="N", help="Where a text is cut.  [512]")
@config_option
@as_json
def command(*, config: Path | None, as_json: bool, **options: Any) -> None:
    """Turn a checkpoint into a model bundle: ONNX, tokenizer, settings and card."""
    from nexus_vdb.pipelines.export import ExportSettings, run_export
    from nexus_vdb.settings import load_settings

    options["sample"] = list(options["sample"]) or None
    report = run_export(load_settings(ExportSettings, config, options), say=note, bar=log_bar)
    if as_json:
        print_json(asdict(report) | {"bundle": str(report.bundle)})
        return
    click.echo(
        f"{report.bundle}: {report.parameters:,} parameters of step {report.step:,}, "
        f"{report.megabytes:.1f} MB; ONNX differs from torch by {report.parity:.0e}, "
        f"cosine to float32 {report.cosine:.4f}"
    )
    by_output = (f"{name} {value:.0e}" for name, value in report.differences.items())
    click.echo(f"largest difference from torch: {', '.join(by_output)}")
