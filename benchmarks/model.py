"""What each part of the model is worth: trained without it, or with it, on the same data and steps.

    nexus-vdb tokenizer --config configs/tokenizer.toml
    python benchmarks/model.py run runs/ablation --tokenizer runs/edge/tokenizer.model \
        --set EVAL/scifact --set EVAL/cranfield --set EVAL/quora-small
    python benchmarks/model.py report runs/ablation

By default the network is that of `small.json`, beside this file, with few and short texts, for two
cores without bf16. With an accelerator, give the network of `configs/` and larger numbers.

A run that was killed goes on where it stopped. Teacher vectors that another run of the same pairs
has kept are used by `--teacher-cache runs/edge/teacher`. On a machine with other work to do set
OMP_NUM_THREADS=1: threads that wait for one another take five times the processor time.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from model_eval import measure
from model_report import page

from nexus_vdb.cli.common import progress_bar
from nexus_vdb.encoder import load_encoder
from nexus_vdb.model.config import NexusConfig, load_config
from nexus_vdb.pipelines.export import ExportSettings, run_export
from nexus_vdb.pipelines.train import TrainSettings, run_training
from nexus_vdb.settings import load_settings

RESULTS = "ablation.json"
LAST_STEPS = 100  # whose mean loss is told
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Variant:
    """The full model but for some settings: that of `small.json`, which has no vectors of pairs.

    Attributes:
        label: For people.
        network: Keys of the network's JSON.
        settings: Keys of the training settings.
    """

    label: str
    network: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


_NO_TEACHER_LOSSES = {"vector": 0.0, "relational": 0.0, "fused_relational": 0.0}

VARIANTS = {
    "full": Variant("the full model"),
    "other-order": Variant("the same, pairs in another order", {}, {"schedule": {"seed": 1}}),
    "no-entity-bag": Variant("without the entity bag", {"entity_bag": False}, {"freeze": []}),
    "no-nsa": Variant("without NSA", {"nsa": False}, {"losses": {"spectral": 0.0}}),
    "no-hash-residual": Variant("without the residual in the hash", {"hash_residual": False}),
    "no-matryoshka": Variant(
        "without the Matryoshka loss", {}, {"schedule": {"matryoshka": False}}
    ),
    "no-last-fit": Variant("without the fit after the last step", {}, {"fit_fusion": False}),
    "no-distillation": Variant("without distillation", {}, {"losses": _NO_TEACHER_LOSSES}),
    "no-teacher": Variant("without a teacher at all", {}, {"teachers": []}),
    "bigrams": Variant("with vectors for 48,000 pairs of pieces", {"bigrams": 48_000}),
    "muon": Variant("with Muon for the blocks", {}, {"schedule": {"optimizer": "muon"}}),
}


def settings_of(
    name: str, folder: Path, *, config: Path, network: Path, given: dict[str, Any]
) -> TrainSettings:
    """The training settings of a variant; its network's JSON is written into the folder."""
    variant = VARIANTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    sizes = load_config(network).model_dump(mode="json") | variant.network
    (folder / "network.json").write_text(json.dumps(sizes, indent=2))
    settings = load_settings(TrainSettings, config, given | {"out": folder})
    values = settings.model_dump() | {"network": folder / "network.json"}
    for key, value in variant.settings.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return TrainSettings.model_validate(values)


def linked(cache: Path | None, folder: Path) -> Path:
    """A folder of teacher vectors that finds what is in another one, and leaves that as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for kept in cache.iterdir() if cache else ():
        link = folder / kept.name
        if not link.exists():
            link.symlink_to(kept.resolve())
    return folder


def run_variant(
    settings: TrainSettings, sample: tuple[str, ...], sets: tuple[Path, ...]
) -> dict[str, Any]:
    """Train, export, measure; returns what the report needs."""
    bundle = settings.out / "bundle"
    before = _cpu_seconds()
    checkpoint = run_training(settings, say=click.echo, bar=progress_bar)
    trained = _cpu_seconds()
    export = ExportSettings(
        checkpoint=checkpoint,
        tokenizer=settings.tokenizer,
        out=bundle,
        sample=list(sample),
        precision="float32",
        max_tokens=settings.text.max_tokens,
    )
    report = run_export(export, say=click.echo)
    encoder = load_encoder(str(bundle))
    rows = [json.loads(row) for row in (settings.out / "metrics.jsonl").read_text().splitlines()]
    vector_losses = [row["vector"] for row in rows if "vector" in row][-LAST_STEPS:]
    result = {
        "parameters": report.parameters,
        "sets": {folder.name: measure(encoder, folder) for folder in sets},
        "held_out": next(row for row in reversed(rows) if "mrr_768" in row),
        "vector_loss": float(np.mean(vector_losses)) if vector_losses else None,
        "step_seconds": float(np.median([row["seconds"] for row in rows if "seconds" in row])),
        "cpu_seconds": {
            "training": round(trained - before),  # of this process, and so of what a kill left
            "measuring": round(_cpu_seconds() - trained),
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    shutil.rmtree(bundle)
    for path in settings.out.glob("step-*.safetensors"):
        path.unlink()
    return result


def _sizes(network: NexusConfig, settings: TrainSettings) -> dict[str, Any]:
    """What the page says of network and texts."""
    return {
        "layers": network.n_layers,
        "width": network.d_model,
        "max_pairs": settings.max_pairs,
        "batch": settings.schedule.batch,
        "tokens": settings.text.max_tokens,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def load(work: Path) -> dict[str, Any]:
    """What has been measured so far: `how`, and `variants` by name."""
    path = work / RESULTS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def keep(work: Path, results: dict[str, Any]) -> None:
    """Write as a whole or not at all."""
    partial = work / f"{RESULTS}.partial"
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(work / RESULTS)


@click.group()
def main() -> None:
    """Train the model without each of its parts, and compare."""


@main.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True)
@click.option("--teacher-cache", type=click.Path(path_type=Path), help="Read only.")
@click.option("--set", "sets", multiple=True, type=click.Path(path_type=Path), required=True)
@click.option("--config", type=click.Path(path_type=Path), default="configs/distill.toml")
@click.option("--network", type=click.Path(path_type=Path), default=HERE / "small.json")
@click.option("--pairs", multiple=True, help="Instead of the config's.")
@click.option("--max-pairs", default=13_500, show_default=True)
@click.option("--holdout", default=500, show_default=True)
@click.option(
    "--max-tokens", default=96, show_default=True, help="Of a text, trained and searched."
)
@click.option("--max-chars", default=300, show_default=True, help="Of side b.")
@click.option("--sample", multiple=True, help="Texts to fit the hash to.  [the config's pairs]")
@click.option("--steps", default=200, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)))
def run(
    work: Path,
    *,
    tokenizer: Path,
    teacher_cache: Path | None,
    sets: tuple[Path, ...],
    config: Path,
    network: Path,
    sample: tuple[str, ...],
    only: tuple[str, ...],
    steps: int,
    **changes: Any,
) -> None:
    """Train and measure what is not measured yet."""
    given: dict[str, Any] = {
        "tokenizer": tokenizer,
        "pairs": list(changes["pairs"]) or None,
        "max_pairs": changes["max_pairs"],
        "holdout": changes["holdout"],
        "teacher_cache": linked(teacher_cache, work / "teacher"),
        "text": {"max_tokens": changes["max_tokens"], "max_chars_b": changes["max_chars"]},
        "schedule": {
            "steps": steps,
            "batch": changes["batch"],
            "warmup": max(1, steps // 15),
            "checkpoint_every": steps,
        },
    }
    results = load(work)
    how = {"given": given, "sets": [folder.name for folder in sets], "config": config.name}
    how |= _sizes(load_config(network), load_settings(TrainSettings, config, given))
    how = json.loads(json.dumps(how, default=str))
    if results.setdefault("how", how) != how:
        raise click.ClickException(f"{work} was begun with other settings: {results['how']}")
    variants = results.setdefault("variants", {})
    for name in only or VARIANTS:
        if name in variants:
            continue
        click.echo(f"--- {VARIANTS[name].label}")
        settings = settings_of(name, work / name, config=config, network=network, given=given)
        variants[name] = run_variant(settings, sample or tuple(settings.pairs), sets)
        keep(work, results)
        click.echo(json.dumps(variants[name]["sets"]))


@main.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "model.md")
def report(work: Path, out: Path) -> None:
    """Write the page."""
    labels = {name: variant.label for name, variant in VARIANTS.items()}
    out.write_text(page(load(work), labels), encoding="utf-8")
    click.echo(out)


if __name__ == "__main__":
    main()
