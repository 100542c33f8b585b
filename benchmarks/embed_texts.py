"""Real texts embedded once with the shipped model, for the benchmarks that need very many vectors.

    python benchmarks/embed_texts.py runs/million PAIRS.parquet… PASSAGES.parquet --count 1000000

Every text column of the files is read, row by row; the first `--count` different texts are the
corpus, the `--queries` after them the queries; of a text longer than `--characters`, its first
words. The folder then holds

    texts.parquet   id, text
    vectors.f16     float16 [count, 768], unit rows
    codes.u64       uint64 [count]
    asked.parquet   text: the queries
    queries.npz     vectors float32 [q, 768], hash_logits float32 [q, 64]

A run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nexus_vdb.encoder import OnnxEncoder, load_encoder

BLOCK = 8192


def texts_of(
    files: tuple[Path, ...], columns: tuple[str, ...], characters: int | None
) -> Iterator[str]:
    """Different texts, a row of each file in turn, so that every prefix is a fair mixture."""
    seen: set[int] = set()
    for row in interleaved(files, columns):
        for text in row:
            if characters and len(text or "") > characters:
                text = text[:characters].rpartition(" ")[0]
            if text and text.strip() and (key := hash(text)) not in seen:
                seen.add(key)
                yield text


def interleaved(files: tuple[Path, ...], columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Rows of all files, each file at a pace by which all of them end together."""
    sizes = [pq.ParquetFile(file).metadata.num_rows for file in files]
    due = chain.from_iterable(
        ((row / size, place) for row in range(size)) for place, size in enumerate(sizes)
    )
    rows = [rows_of(file, columns) for file in files]
    for _, place in sorted(due):
        yield next(rows[place])


def rows_of(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The text columns that a file has."""
    parquet = pq.ParquetFile(file)
    names = [name for name in columns if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(1024, columns=names):
        yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def prepare(folder: Path, texts: Iterator[str], count: int, queries: int) -> None:
    """Write the texts of the corpus and of the queries."""
    corpus = list(islice(texts, count))
    asked = list(islice(texts, queries))
    if len(asked) < queries:
        raise click.ClickException(f"only {len(corpus) + len(asked):,} different texts")
    ids = [str(row) for row in range(count)]
    pq.write_table(pa.table({"id": ids, "text": corpus}), folder / "texts.parquet")
    pq.write_table(pa.table({"text": asked}), folder / "asked.parquet")


def embed(folder: Path, encoder: OnnxEncoder) -> None:
    """Append vectors and codes, block by block."""
    texts = pq.read_table(folder / "texts.parquet")["text"]
    vectors, codes = folder / "vectors.f16", folder / "codes.u64"
    done = codes.stat().st_size // 8 if codes.exists() else 0
    started, first = time.perf_counter(), done
    with vectors.open("ab") as wide, codes.open("ab") as narrow:
        wide.truncate(done * encoder.dim * 2)
        while done < len(texts):
            block = encoder.encode(texts.slice(done, BLOCK).to_pylist())
            wide.write(block.vectors.astype(np.float16).tobytes())
            wide.flush()
            narrow.write(block.codes.astype("<u8").tobytes())
            narrow.flush()
            done += len(block)
            rate = (done - first) / (time.perf_counter() - started)
            left = (len(texts) - done) / rate / 60
            print(f"{done:,} texts, {rate:.0f} a second, {left:.0f} minutes left", flush=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--columns", default="a,b,text")
@click.option("--count", default=1_000_000)
@click.option("--queries", default=1000)
@click.option("--characters", type=int, help="Cut longer texts behind a word.  [whole texts]")
@click.option("--model")
def main(
    folder: Path,
    files: tuple[Path, ...],
    columns: str,
    count: int,
    queries: int,
    characters: int | None,
    model: str | None,
) -> None:
    """Embed texts of Parquet files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(model)
    if not (folder / "asked.parquet").exists():
        texts = texts_of(files, tuple(columns.split(",")), characters)
        prepare(folder, texts, count, queries)
    asked = pq.read_table(folder / "asked.parquet")["text"].to_pylist()
    made = encoder.encode(asked)
    np.savez(folder / "queries.npz", vectors=made.vectors, hash_logits=made.hash_logits)
    embed(folder, encoder)


if __name__ == "__main__":
    main()
