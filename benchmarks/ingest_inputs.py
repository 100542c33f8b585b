"""Corpora for `benchmarks/ingest.py`, each made by a process of its own.

    python benchmarks/ingest_inputs.py rows shared/data/train OUT.parquet --count 100000
    python benchmarks/ingest_inputs.py vectors shared/data/train OUT.parquet --count 100000
    python benchmarks/ingest_inputs.py document shared/data/train OUT.jsonl --megabytes 50
    python benchmarks/ingest_inputs.py chunk OUT.jsonl
    python benchmarks/ingest_inputs.py model

The last two make nothing: they cut the document into chunks, and load the model and embed once, to
be measured from outside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from nexus_vdb.chunking import Chunker
from nexus_vdb.encoder import load_encoder
from nexus_vdb.stages import slices
from nexus_vdb.types import Document

SHORT = 120
"""Characters of a short text: a title, or as many whole words of something longer."""

BATCH = 10_000
DIM = 768


def columns(folder: Path, pattern: str, names: tuple[str, ...]) -> Iterator[str]:
    """Texts of some columns of some files, one column after the other."""
    for name in names:
        for path in sorted(folder.glob(pattern)):
            for batch in pq.ParquetFile(path).iter_batches(columns=[name]):
                yield from batch.column(0).to_pylist()


def short_texts(folder: Path, count: int) -> Iterator[tuple[int, str]]:
    """Numbered texts of a few words each."""
    texts = columns(folder, "pairs-*.parquet", ("a", "b"))
    short = (text if len(text) <= SHORT else text[:SHORT].rpartition(" ")[0] for text in texts)
    yield from islice(enumerate(text for text in short if text.strip()), count)


def batches(folder: Path, count: int) -> Iterator[dict[str, list[str]]]:
    """The short texts as columns."""
    numbered = short_texts(folder, count)
    while some := list(islice(numbered, BATCH)):
        yield {"id": [f"t{number}" for number, _ in some], "text": [text for _, text in some]}


@click.group()
def main() -> None:
    """Make a corpus, or do one thing to be measured."""


@main.command()
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", default=10_000)
def rows(train: Path, out: Path, count: int) -> None:
    """Short real texts, as Parquet or JSONL by the name of the file."""
    if out.suffix == ".jsonl":
        with out.open("w", encoding="utf-8") as file:
            for some in batches(train, count):
                for id_, text in zip(some["id"], some["text"], strict=True):
                    file.write(json.dumps({"id": id_, "text": text}, ensure_ascii=False) + "\n")
        return
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for some in batches(train, count):
            writer.write_table(pa.table(some, schema=schema))


@main.command()
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", default=10_000)
def vectors(train: Path, out: Path, count: int) -> None:
    """The same as Parquet, each with its vector by the shipped model."""
    encoder = load_encoder()
    kind = pa.list_(pa.float32(), DIM)
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", kind)])
    with pq.ParquetWriter(out, schema, compression="none", use_dictionary=False) as writer:
        for some in batches(train, count):
            made = encoder.encode(some["text"]).vectors
            column = pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), DIM)
            writer.write_table(pa.table({**some, "vector": column}, schema=schema))


@main.command()
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--megabytes", default=50.0)
def document(train: Path, out: Path, megabytes: float) -> None:
    """One document of that much text: the passages one after the other, and again."""
    parts, size = [], 0
    while size < megabytes * 1e6:
        for text in columns(train, "passages-*.parquet", ("text",)):
            parts.append(text)
            size += len(text.encode()) + 2
            if size >= megabytes * 1e6:
                break
    row = {"id": "long", "text": "\n\n".join(parts)}
    out.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")


@main.command()
@click.argument("corpus", type=click.Path(path_type=Path))
def chunk(corpus: Path) -> None:
    """Cut the one document of a file into chunks, and check them."""
    encoder = load_encoder()
    row = json.loads(corpus.read_bytes())
    started = time.perf_counter()
    chunks = Chunker(encoder).chunk(Document(row["id"], row["text"]))
    seconds = time.perf_counter() - started
    if any(row["text"][one.start : one.end] != one.text for one in chunks):
        raise click.ClickException("a chunk is no slice of its document")
    texts = [one.text for one in chunks]
    most = max(max(encoder.count_tokens(some)) for some in slices(texts, BATCH))
    counts = {"seconds": round(seconds, 2), "chunks": len(chunks), "most_tokens": most}
    click.echo(json.dumps(counts | {"megabytes": round(len(row["text"].encode()) / 1e6, 1)}))


@main.command()
def model() -> None:
    """Load the model and embed one batch of short texts: its own share of the memory."""
    load_encoder().encode(["a title of eight or nine words stands here"] * 512)
    click.echo("{}")


if __name__ == "__main__":
    main()
