"""The export job: a checkpoint → a bundle that ONNX Runtime alone can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import Field
from torch import Tensor

from nexus_vdb.errors import ModelError, SourceError
from nexus_vdb.model.batches import text_batches
from nexus_vdb.model.bundle import load_checkpoint, write_config
from nexus_vdb.model.checkpoints import latest_checkpoint
from nexus_vdb.model.data import TokenTable, expand, read_texts
from nexus_vdb.model.export import (
    export_onnx,
    halve,
    parity,
    quantize,
    run_onnx,
    run_torch,
)
from nexus_vdb.model.hash_fit import FIT_FROM, fit_hash
from nexus_vdb.model.network import NexusModel, count_parameters
from nexus_vdb.model.tokenizer import load_tokenizer
from nexus_vdb.pipelines._train_inputs import Bar, Say, Update, no_bar
from nexus_vdb.settings import Settings

__all__ = ["ExportReport", "ExportSettings", "Precision", "run_export"]

_PARITY = 1e-4
_SHORT, _CALIBRATION = 12, 8  # tokens of a short text; batches of each length


class Precision(str, Enum):
    """How the weights of a bundle are kept."""

    INT8 = "int8"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class ExportSettings(Settings):
    """What a bundle is made of."""

    checkpoint: Path
    tokenizer: Path
    out: Path
    sample: list[str]
    sample_size: int = Field(16_384, ge=64)
    precision: Precision = Precision.INT8
    max_tokens: int = Field(512, ge=8)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What came out.

    Attributes:
        bundle: The folder.
        step: Training step of the checkpoint.
        parameters: Numbers in the network.
        megabytes: Size of `model.onnx`.
        parity: Largest difference between torch and ONNX in float32, over all outputs.
        differences: Largest difference between torch and the bundle, by output.
        cosine: Mean cosine between the float32 vectors and the bundle's.
    """

    bundle: Path
    step: int
    parameters: int
    megabytes: float
    parity: float
    differences: dict[str, float]
    cosine: float


def run_export(
    settings: ExportSettings, *, say: Say = lambda line: None, bar: Bar = no_bar
) -> ExportReport:
    """Write the bundle.

    Args:
        settings: What of.
        say: Told what happens, line by line.
        bar: Opens a progress bar, for the sample has to go through the whole network.

    Raises:
        ModelError: there is no checkpoint, or ONNX and torch differ by more than 1e-4.
        SourceError: the sample has too few texts.
    """
    checkpoint = _checkpoint(settings.checkpoint)
    model, step = load_checkpoint(checkpoint)
    parameters = count_parameters(model)
    table = _sample(settings, max_tokens=min(256, model.config.max_seq_len))
    few = "" if len(table) >= FIT_FROM else f": only its thresholds, for fewer than {FIT_FROM:,}"
    say(f"fitting the hash to {len(table):,} texts{few}")
    with bar("texts") as update:
        fit_hash(model, _by_length(table, update))
    parts = np.array_split(np.arange(len(table)), len(table) // 32)[:_CALIBRATION]
    batches = [table.padded(rows) for rows in parts]
    max_tokens = min(settings.max_tokens, model.config.max_seq_len)
    write_config(model, settings.out, max_tokens=max_tokens, tokenizer=settings.tokenizer)
    say(f"writing {settings.precision.value} ONNX")
    exact = run_torch(model, *batches[0])
    difference = _write_model(model, settings, batches)
    _write_card(settings.out, model, step)
    size = (settings.out / "model.onnx").stat().st_size / 1e6
    made = run_onnx(settings.out / "model.onnx", *batches[0])
    cosine = float((made["embedding"] * exact["embedding"]).sum(1).mean())
    differences = parity(exact, made)
    return ExportReport(settings.out, step, parameters, size, difference, differences, cosine)


def _checkpoint(path: Path) -> Path:
    found = latest_checkpoint(path) if path.is_dir() else path
    if found is None:
        raise ModelError(f"no checkpoint in {path}", hint="train one: nexus-vdb distill --help")
    return found


def _sample(settings: ExportSettings, *, max_tokens: int) -> TokenTable:
    """The corpus sample that the hash is fitted to."""
    texts = list(islice(read_texts(expand(settings.sample)), settings.sample_size))
    if len(texts) < 64:
        raise SourceError(f"{len(texts)} texts to fit the hash to; 64 are the least")
    tokenizer = load_tokenizer(settings.tokenizer)
    return TokenTable.build(texts, tokenizer, max_tokens=max_tokens)


def _by_length(table: TokenTable, update: Update) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for ids, mask in text_batches(table, np.argsort(table.lengths, kind="stable")):
        yield ids, mask
        done += len(ids)
        update(done, len(table), "")


def _write_model(
    model: NexusModel, settings: ExportSettings, batches: list[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Write `model.onnx`; returns the float32 parity."""
    batch = batches[0]
    target = settings.out / "model.onnx"
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "float32.onnx"
        export_onnx(model, plain)
        difference = max(parity(run_torch(model, *batch), run_onnx(plain, *batch)).values())
        if difference > _PARITY:
            raise ModelError(f"ONNX and torch differ by {difference:.1e}, more than {_PARITY}")
        if settings.precision is Precision.FLOAT32:
            target.write_bytes(plain.read_bytes())
        elif settings.precision is Precision.FLOAT16:
            halve(plain, target)
        else:
            tables = Path(folder) / "tables.onnx"
            export_onnx(model, tables, int8_tables=True)
            # Beginnings as well: what people ask is shorter than what they search.
            short = [(ids[:, :_SHORT], mask[:, :_SHORT]) for ids, mask in batches]
            quantize(tables, target, [*short, *batches])
    return difference


def _write_card(folder: Path, model: NexusModel, step: int) -> None:
    """Start a card with the facts known here; one that is there was written by people and stays."""
    path = folder / "card.md"
    if not path.exists():
        facts = "\n".join(f"- {key}: {value}" for key, value in model.config.model_dump().items())
        path.write_text(
            f"# {folder.name}\n\nA NEXUS-EMB model of training step {step}.\n\n{facts}\n\n"
            "Data, licence and measures: to be written by whoever trained it.\n",
            encoding="utf-8",
        )
