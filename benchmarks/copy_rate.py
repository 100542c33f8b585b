"""Records a second that `nexus-vdb copy` moves between stores, of real records.

    python benchmarks/embed_texts.py runs/million PAIRS.parquet… --count 1000000
    python benchmarks/copy_rate.py runs/million --count 200000

Each pair is copied into a new store and compared afterwards; time is that of the copy alone. CPU
seconds are told beside the clock: on a machine that others use, only these can be compared.
"""

from __future__ import annotations

import json
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import pyarrow.parquet as pq

from nexus_vdb.chunking import chunk_id
from nexus_vdb.collection import Collection
from nexus_vdb.pipelines._checksum import checksum
from nexus_vdb.pipelines.copy import copy
from nexus_vdb.registry import open_store
from nexus_vdb.types import Records, StoreSchema

BLOCK = 16_384
PAIRS = (("faiss", "parquet"), ("parquet", "faiss"), ("faiss", "qdrant-edge"))
FEW = 20_000  # an engine that takes some thousand records a second is given no more


def fill(folder: Path, url: str, count: int) -> int:
    """Make a store of the first records of a folder that `embed_texts.py` made."""
    vectors = np.memmap(folder / "vectors.f16", dtype="<f2", mode="r").reshape(-1, 768)
    codes = np.fromfile(folder / "codes.u64", dtype="<u8")
    store = open_store(url, StoreSchema(model="nexus-emb-edge", fingerprint="f" * 64))
    start, count = 0, min(count, len(codes), len(vectors))
    for batch in pq.ParquetFile(folder / "texts.parquet").iter_batches(BLOCK):
        texts = batch.column("text").to_pylist()[: count - start]
        rows = slice(start, start + len(texts))
        ids = [str(number) for number in range(rows.start, rows.stop)]
        if not texts:
            break
        records = Records(
            ids=[chunk_id(id_, 0) for id_ in ids],
            document_ids=ids,
            ordinals=np.zeros(len(ids), dtype=np.int32),
            texts=texts,
            metadata=[{"number": int(id_), "tags": ["a", "b"]} for id_ in ids],
            content_hashes=[sha256(text.encode()).hexdigest()[:32] for text in texts],
            vectors=vectors[rows].astype(np.float32),
            codes=codes[rows],
        )
        store.upsert(records)
        start = rows.stop
    store.set_meta("hash", "model")
    store.close()
    return start


def measured(source_url: str, target_url: str) -> dict[str, float | int | str | bool]:
    """Copy into a store that is not there yet, then compare."""
    with Collection(source_url) as source, Collection(target_url) as target:
        wall, cpu = time.perf_counter(), time.process_time()
        report = copy(source, target)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        shared = checksum(source.store).shared(checksum(target.store))
    return {
        "from": source_url.partition(":")[0],
        "to": target_url.partition(":")[0],
        "records": report.copied,
        "per_second": round(report.copied / wall),
        "per_cpu_second": round(report.copied / cpu),
        "same": shared is not None,
    }


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--count", default=200_000, show_default=True)
def main(folder: Path, count: int) -> None:
    """Print one line of JSON for each pair of stores."""
    with TemporaryDirectory() as name:
        stores = {("faiss", many): f"faiss://{name}/source-{many}" for many in (count, FEW)}
        for (_, many), url in stores.items():
            fill(folder, url, many)
        for number, (one, other) in enumerate(PAIRS):
            many = FEW if "edge" in other else count
            target = f"{other}://{name}/target-{number}"
            print(json.dumps(measured(stores[one, many], target)), flush=True)
            stores[other, many] = target


if __name__ == "__main__":
    main()
