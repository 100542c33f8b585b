"""What Qdrant's engine does with the hash, beside its own ways, on one folder of real vectors.

    python benchmarks/embed_texts.py runs/million TEXTS.parquet…        once
    python benchmarks/qdrant.py runs/million --count 50000

Three stores of the same records, each in a process of its own, one query at a time:

    hash    `qdrant-edge://` as it is made: hash → 256 → 768
    graph   `qdrant-edge://…?hnsw=16`: HNSW over the whole vector, half precision, on disk
    binary  the engine's binary quantization of the whole vector (96 bytes) in RAM, with rescoring

Prints a Markdown table. Seconds are processor time of all threads, which other work on the machine
disturbs little, and so is the time of a query where all of them come in one batch; latencies are
wall time, one query at a time, after a first pass. Recall is against the exact top 10. "Recode" is
the time to give every record a new code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import qdrant_edge as engine

from nexus_vdb.connectors.qdrant_edge import QdrantEdgeStore
from nexus_vdb.hashing import ItqHash, pack
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import QueryBatch, Records, SearchPlan, StoreSchema

K, DIM, CUTS = 10, 768, (256, 768)
FITTED, PART = 20_000, 2000
SHARES = (0.005, 0.01, 0.03, 0.1)
VISITED = (32, 64, 128, 256)
OVERSAMPLED = (2.0, 4.0, 8.0, 20.0)
STORES = ("hash", "graph", "binary")

Found = Sequence[Sequence[str]]
Search = Callable[[slice], Found]


class Corpus:
    """The first rows of a folder, and its queries, with codes of an ITQ hash."""

    def __init__(self, folder: Path, count: int, queries: int) -> None:
        self.count = count
        self._texts = pq.ParquetFile(folder / "texts.parquet")
        self._vectors = np.memmap(folder / "vectors.f16", dtype="<f2", mode="r").reshape(-1, DIM)
        asked = np.load(folder / "queries.npz")["vectors"][:queries]
        self.itq = ItqHash.fit(cut_vectors(self._vectors[:FITTED], DIM))
        unit = cut_vectors(asked, DIM)
        logits = self.itq.logits(unit)
        self.queries = QueryBatch(unit, logits, pack(logits))

    def parts(self) -> Iterator[Records]:
        """The records, some at a time."""
        start = 0
        for batch in self._texts.iter_batches(PART):
            texts = batch.column("text").to_pylist()[: self.count - start]
            if not texts:
                return
            vectors = cut_vectors(self._vectors[start : start + len(texts)], DIM)
            ids = [row_id(row) for row in range(start, start + len(texts))]
            yield Records(
                ids=ids,
                document_ids=ids,
                ordinals=np.zeros(len(texts), np.int32),
                texts=texts,
                metadata=[{"row": row} for row in range(start, start + len(texts))],
                content_hashes=[f"{row:032x}" for row in range(start, start + len(texts))],
                vectors=vectors,
                codes=pack(self.itq.logits(vectors)),
            )
            start += len(texts)

    def right(self) -> Found:
        """Ids of the exact top k of each query."""
        scores = np.full((len(self.queries), K), -2, np.float32)
        rows = np.zeros((len(self.queries), K), np.int64)
        for start in range(0, self.count, 8192):
            block = cut_vectors(self._vectors[start : min(start + 8192, self.count)], DIM)
            ids = np.broadcast_to(np.arange(start, start + len(block)), (len(rows), len(block)))
            both = np.concatenate([scores, self.queries.vectors @ block.T], axis=1)
            every = np.concatenate([rows, ids], axis=1)
            best = np.argpartition(-both, K, axis=1)[:, :K]
            scores, rows = (np.take_along_axis(one, best, 1) for one in (both, every))
        return [[row_id(row) for row in best] for best in rows.tolist()]


def row_id(row: int) -> str:
    """A UUID for a row."""
    return str(uuid.UUID(int=row + 1))


def some(queries: QueryBatch, rows: slice) -> QueryBatch:
    """Part of the queries."""
    return QueryBatch(queries.vectors[rows], queries.hash_logits[rows], queries.codes[rows])


def run_store(corpus: Corpus, folder: Path, *, graph: bool) -> dict[str, Any]:
    """`qdrant-edge://`, by the hash or by a graph."""
    url = f"qdrant-edge://{folder}" + ("?hnsw=16" if graph else "")
    store = QdrantEdgeStore.open(url, StoreSchema(DIM, CUTS))

    def fill() -> None:
        for records in corpus.parts():
            store.upsert(records)

    def searching(candidates: int) -> Search:
        plan = SearchPlan(K, candidates, CUTS)
        return lambda rows: [
            [hit.id for hit in hits] for hits in store.search(some(corpus.queries, rows), plan)
        ]

    # Tidying up on the way is left to the end, so that both can be told apart.
    setattr(sys.modules[QdrantEdgeStore.__module__], "_OPTIMIZE_AFTER", sys.maxsize)  # noqa: B010
    report = {"upload": used(fill), "index": used(store.optimize)}
    if graph:
        points = {f"ef {ef}": searching(ef) for ef in VISITED}
    else:
        depths = {f"{share:.1%}": max(1, round(share * corpus.count)) for share in SHARES}
        points = {f"C {name}": searching(depth) for name, depth in depths.items()}
    report |= measure(corpus, folder, points)
    if not graph:
        turned = ItqHash(corpus.itq.mean, -corpus.itq.projection)
        report["recode"] = used(lambda: store.recode(lambda rows: pack(turned.logits(rows))))
    store.close()
    return report


def run_binary(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """The engine's own binary quantization of the whole vector."""
    bits = engine.BinaryQuantizationConfig(
        memory=engine.Memory.Pinned,
        query_encoding=engine.BinaryQuantizationQueryEncoding.Scalar8Bits,
    )
    vector = engine.EdgeVectorParams(
        size=DIM,
        distance=engine.Distance.Cosine,
        datatype=engine.VectorStorageDatatype.Float16,
        memory=engine.Memory.Cold,
        quantization_config=bits,
    )
    graph = engine.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
    config = engine.EdgeConfig(
        vectors={"d768": vector}, hnsw_config=graph, payload_memory=engine.Memory.Cold
    )
    shard = engine.EdgeShard.create(str(folder), config)

    def fill() -> None:
        for part in corpus.parts():
            rows = zip(part.ids, part.vectors.tolist(), part.texts, part.metadata, strict=True)
            points = [
                engine.Point(
                    id_, {"d768": row}, {"document_id": id_, "text": text, "metadata": one}
                )
                for id_, row, text, one in rows
            ]
            shard.update(engine.UpdateOperation.upsert_points(points))
            shard.flush()

    def searching(oversampling: float) -> Search:
        deeper = engine.QuantizationSearchParams(rescore=True, oversampling=oversampling)
        params = engine.SearchParams(quantization=deeper)

        def search(rows: slice) -> Found:
            requests = [
                engine.QueryRequest(
                    limit=K,
                    query=engine.Query.Nearest(vector, using="d768"),
                    params=params,
                    with_payload=["document_id", "text", "metadata"],
                )
                for vector in corpus.queries.vectors[rows].tolist()
            ]
            answers = shard.query_batch(engine.QueryBatchRequest(requests))
            return [[str(hit.id) for hit in hits] for hits in answers]

        return search

    report: dict[str, Any] = {"upload": used(fill), "index": used(shard.optimize)}
    points = {f"oversampling {one:g}": searching(one) for one in OVERSAMPLED}
    report |= measure(corpus, folder, points)
    shard.close()
    return report


def used(work: Callable[[], object]) -> float:
    """Processor seconds of a piece of work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(corpus: Corpus, folder: Path, points: dict[str, Search]) -> dict[str, Any]:
    """Recall and times at each point, and bytes a vector on disk and in memory."""
    right, count = corpus.right(), len(corpus.queries)
    rows = []
    for name, search in points.items():
        search(slice(None))
        started = time.process_time()
        found = search(slice(None))
        spent = time.process_time() - started
        times = []
        for one in range(count):
            started = time.perf_counter()
            search(slice(one, one + 1))
            times.append(1000 * (time.perf_counter() - started))
        hits = sum(len(set(mine) & set(true)) for mine, true in zip(found, right, strict=True))
        rows.append(
            {
                "name": name,
                "recall": hits / (K * count),
                "p50": float(np.median(times)),
                "p99": float(np.quantile(times, 0.99)),
                "cpu": 1000 * spent / count,
            }
        )
    disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    return {"points": rows, "disk": disk / corpus.count}


def table(reports: dict[str, dict[str, Any]], count: int) -> str:
    """The reports as Markdown."""
    lines = [
        "| records | search | upload s | index s | recode s | disk B/vector | setting | recall@10 "
        "| p50 ms | p99 ms | CPU ms a query |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        recode = f"{report['recode']:.1f}" if "recode" in report else ""
        build = f"{report['upload']:.1f} | {report['index']:.1f} | {recode} | {report['disk']:,.0f}"
        for point in report["points"]:
            times = " | ".join(f"{point[key]:.2f}" for key in ("p50", "p99", "cpu"))
            what = f"{point['name']} | {point['recall']:.3f} | {times}"
            lines.append(f"| {count:,} | {name} | {build} | {what} |")
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--count", default=50_000, show_default=True, help="Records.")
@click.option("--queries", default=300, show_default=True, help="Held-out queries.")
@click.option("--work", type=click.Path(path_type=Path), help="Where the stores are made.")
@click.option("--only", type=click.Choice(STORES), hidden=True)
def main(folder: Path, count: int, queries: int, work: Path | None, only: str | None) -> None:
    """Build and ask each store on the vectors of FOLDER; see `embed_texts.py`."""
    if only is None:
        reports = {}
        for name in STORES:
            with tempfile.TemporaryDirectory(dir=work) as place:
                words = [sys.executable, __file__, str(folder), "--only", name, "--work", place]
                words += ["--count", str(count), "--queries", str(queries)]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
                reports[name] = json.loads(done.stdout)
        click.echo(table(reports, count))
        return
    corpus = Corpus(folder, count, queries)
    target = (work or Path()) / only
    if only == "binary":
        report = run_binary(corpus, target)
    else:
        report = run_store(corpus, target, graph=only == "graph")
    shutil.rmtree(target)
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
