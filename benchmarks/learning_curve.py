"""What a model learns while it is trained: the loss, and nDCG@10 after every checkpoint.

    python benchmarks/learning_curve.py runs/large EVAL/scifact --tokenizer T.model --until 120 &
    nexus-vdb distill --config benchmarks/large.toml

Waits for checkpoints of the run, of which two are kept, and measures each by torch, in bf16 where
the run has it; the network before its first step is a checkpoint of the run too after `--steps 0`.
The first `--documents` of the set are searched, judged ones before others, cut at `--tokens`: a
whole set takes a large model on a processor an hour. What has been measured is kept as JSON beside
the page, and not measured again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from model_eval import measure

from nexus_vdb.hashing import pack
from nexus_vdb.model.batches import text_batches
from nexus_vdb.model.bundle import load_checkpoint
from nexus_vdb.model.data import TokenTable
from nexus_vdb.model.network import NexusModel, count_parameters
from nexus_vdb.model.precision import autocast
from nexus_vdb.model.tokenizer import load_tokenizer
from nexus_vdb.pipelines.evaluate import read_test_set
from nexus_vdb.types import Floats, QueryBatch

HEADS = ("embedding", "semantic", "entity")
FIGURES = ("768", "512", "256", "semantic", "entity")
HASH = "hash_0.05"
WAIT = 5.0  # seconds between looks for a new checkpoint

Point = dict[str, Any]


class Torch:
    """The part of an encoder that measuring needs."""

    def __init__(self, model: NexusModel, tokenizer: Path, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        self._tokenizer = load_tokenizer(tokenizer)
        self.cuts = tuple(sorted(model.config.matryoshka_dims))

    @torch.no_grad()
    def encode_heads(self, texts: Sequence[str]) -> tuple[QueryBatch, dict[str, Floats]]:
        """As `OnnxEncoder.encode_heads`."""
        table = TokenTable.build(texts, self._tokenizer, max_tokens=self._tokens)
        order = np.argsort(table.lengths, kind="stable")
        back = np.argsort(order)
        with autocast("cpu"):
            outputs = [self._model(ids, mask) for ids, mask in text_batches(table, order)]
        found = {
            name: torch.cat([getattr(one, name) for one in outputs]).float().numpy()[back]
            for name in (*HEADS, "hash_logits")
        }
        logits = found.pop("hash_logits")
        return QueryBatch(found["embedding"], logits, pack(logits)), found


def part_of(folder: Path, out: Path, documents: int) -> None:
    """A test set with fewer documents: all that are judged, then the first of the others."""
    test = read_test_set(folder)
    judged = {id_ for right in test.qrels.values() for id_ in right}
    with test.corpus.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    rows.sort(key=lambda row: str(row["_id"]) not in judged)
    (out / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:documents]))
    for name in ("queries.jsonl", "qrels"):
        (out / name).symlink_to((folder / name).resolve())


def checkpoints(run: Path, points: list[Point], until: int) -> Iterator[Path]:
    """Those of a run that are not measured yet, as they come."""
    step = max((point["step"] for point in points), default=-1)
    while step < until:
        new = [path for path in sorted(run.glob("step-*.safetensors")) if _step(path) > step]
        if not new:
            time.sleep(WAIT)
            continue
        yield new[0]
        step = _step(new[0])


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


def log_of(run: Path) -> list[Point]:
    """What the run has written about its steps and its held-out pairs."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses_of(log: list[Point]) -> list[tuple[int, float]]:
    """Steps and their losses."""
    return [(one["step"], one["loss"]) for one in log if "loss" in one]


def picture(points: list[Point], log: list[Point], path: Path) -> None:
    """Loss above, nDCG below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 6), sharex=True)
    above.plot(*zip(*losses_of(log), strict=True), lw=0.8)
    above.set_ylabel("loss of a step")
    for name in FIGURES:
        steps = [(point["step"], point["figures"][name]) for point in points]
        below.plot(*zip(*steps, strict=True), marker="o", ms=4, label=name)
    below.set(ylabel="nDCG@10", xlabel="step")
    below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(FIGURES), fontsize=8)
    for panel in (above, below):
        panel.grid(visible=True, alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def page(kept: dict[str, Any], log: list[Point], picture: str) -> str:
    """A table of the checkpoints."""
    held_out = {one["step"]: one for one in log if "mrr_768" in one}
    losses, rows = losses_of(log), []
    for before, point in zip([{"step": 0}, *kept["points"]], kept["points"], strict=False):
        step = point["step"]
        since = [loss for at, loss in losses if before["step"] < at <= step]
        loss = f"{np.mean(since):.2f}" if since else ""
        pairs = [held_out[step][name] for name in ("mrr_768", "mrr_semantic")]
        found = [*(point["figures"][name] for name in (*FIGURES, HASH)), *pairs]
        rows.append(f"| {step} | {loss} | {' | '.join(f'{value:.3f}' for value in found)} |")
    return "\n".join(
        [
            f"# {kept['parameters'] / 1e6:.0f} million parameters, from nothing",
            "",
            f"Made by `python benchmarks/learning_curve.py` beside `{kept['command']}`, on a "
            f"machine with {kept['cores']} cores. nDCG@10 of {kept['set']}: {kept['documents']:,} "
            "documents of it, all that are judged and the first of the others, cut at "
            f"{kept['tokens']} tokens. The hash: the share of the exact top ten in its best 5 %. "
            "MRR is of the run's held-out pairs. The loss is the mean since the row before.",
            "",
            "| step | loss | nDCG@10 at 768 | 512 | 256 | semantic head | entity head | hash "
            "| MRR fused | semantic |",
            f"|{'---|' * 10}",
            *rows,
            "",
            f"![Loss and nDCG@10 by step]({picture})",
            "",
        ]
    )


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--until", type=int, required=True, help="The step to end at.")
@click.option("--documents", default=1000, show_default=True)
@click.option("--tokens", default=128, show_default=True)
@click.option("--command", default="nexus-vdb distill --config benchmarks/large.toml")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/large.md"))
def main(
    *,
    run: Path,
    folder: Path,
    tokenizer: Path,
    until: int,
    documents: int,
    tokens: int,
    command: str,
    out: Path,
) -> None:
    """Measure each checkpoint of a run as it comes, and write the page."""
    path = out.with_suffix(".json")
    kept: dict[str, Any] = {"points": [], "command": command, "cores": os.cpu_count()}
    kept |= {"set": folder.name, "documents": documents, "tokens": tokens}
    if path.exists():
        kept = json.loads(path.read_text())
    with TemporaryDirectory() as temporary:
        part_of(folder, Path(temporary), documents)
        for checkpoint in checkpoints(run, kept["points"], until):
            model, step = load_checkpoint(checkpoint)
            kept["parameters"] = count_parameters(model)
            figures = measure(Torch(model, tokenizer, tokens), Path(temporary))
            kept["points"].append({"step": step, "figures": figures})
            click.echo(json.dumps(kept["points"][-1]))
            path.write_text(json.dumps(kept, indent=1) + "\n")
    log = log_of(run)
    picture(kept["points"], log, out.with_suffix(".png"))
    out.write_text(page(kept, log, out.with_suffix(".png").name))


if __name__ == "__main__":
    main()
