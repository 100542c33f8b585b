"""What a whole ingest costs beside the encoder alone, on the same chunks, in turn.

    python benchmarks/ingest_rate.py CORPUS --id-field _id --rounds 3

Both work on the same texts with the same encoder, in turn, and each ingest is compared with the
mean of what came before and after it, for the machine's speed drifts; the median ratio counts.
"Alone" is one call of `encode` for each 2,048 chunks, without reading, chunking, hashing of
documents or writing. Of a large corpus it takes a part, evenly spread.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from nexus_vdb.chunking import Chunker
from nexus_vdb.collection import Collection
from nexus_vdb.corpus import FieldMap, open_corpus
from nexus_vdb.encoder import load_encoder
from nexus_vdb.interfaces import Encoder
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.stages import slices

CALL, MOST = 2048, 100_000  # chunks of a call, and of all calls alone


def chunk_texts(corpus: str, id_field: str, encoder: Encoder) -> list[str]:
    """The texts that an ingest would embed; rows that are no documents are left out of both."""

    def refuse(*, file: str, row: int, offset: int, reason: str, raw: bytes) -> None:
        click.echo(f"{file}:{row}: {reason}", err=True)

    source = open_corpus([corpus], FieldMap(id=id_field))
    chunker = Chunker(encoder)
    batches = source.read(batch_size=512, on_bad_row=refuse)
    return [chunker.embedding_text(c) for batch in batches for c in chunker.chunk_all(batch)]


def encoder_alone(encoder: Encoder, texts: list[str]) -> float:
    """Seconds to embed the texts."""
    part = texts[:: max(1, len(texts) // MOST)]
    started = time.perf_counter()
    for some in slices(part, CALL):
        encoder.encode(some)
    return (time.perf_counter() - started) * len(texts) / len(part)


def whole_ingest(encoder: Encoder, corpus: str, id_field: str) -> float:
    """Seconds to read, chunk, embed and store the corpus."""
    with TemporaryDirectory() as folder:
        url = f"faiss://{Path(folder) / 'index'}"
        settings = IngestSettings(sources=[corpus], store=url, id_field=id_field, quarantine=None)
        started = time.perf_counter()
        with Collection(url, encoder=encoder) as collection:
            ingest(collection, settings)
        return time.perf_counter() - started


@click.command()
@click.argument("corpus")
@click.option("--id-field", default="id")
@click.option("--rounds", default=3)
@click.option("--model")
@click.option("--json", "as_json", is_flag=True)
def main(*, corpus: str, id_field: str, rounds: int, model: str | None, as_json: bool) -> None:
    """Print seconds of both and their ratio, round by round."""
    encoder = load_encoder(model)
    texts = chunk_texts(corpus, id_field, encoder)
    encoder.encode(texts[:CALL])
    ratios, before = [], encoder_alone(encoder, texts)
    for number in range(rounds):
        whole = whole_ingest(encoder, corpus, id_field)
        after = encoder_alone(encoder, texts)
        alone, before = (before + after) / 2, after
        ratios.append(alone / whole)
        print(
            f"round {number + 1}: encoder {alone:.1f} s, ingest {whole:.1f} s, "
            f"{len(texts) / alone:.0f} and {len(texts) / whole:.0f} chunks/s, "
            f"ratio {ratios[-1]:.3f}"
        )
    ratio = statistics.median(ratios)
    print(f"{len(texts):,} chunks; ingest runs at {ratio:.1%} of the encoder")
    if as_json:
        print(json.dumps({"chunks": len(texts), "alone": alone, "whole": whole, "ratio": ratio}))


if __name__ == "__main__":
    main()
