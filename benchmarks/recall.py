"""How near "auto" comes to the recall it aims at, on queries that nobody calibrated with.

    python benchmarks/recall.py faiss://runs/quora --queries EVAL/quora-small/queries.jsonl
    python benchmarks/recall.py runs/million --count 1000000
    python benchmarks/recall.py runs/million --count 200000 --codes

The last one is of the codes alone, without a store: the share of the exact top 10 that stands in
the best so many of all by the model's bits, by a rotation fitted on a tenth, and by as many
principal components as there are bits, which is what any code of them could reach.

A folder is one of `embed_texts.py`: texts, vectors and held-out queries, made by the model that is
named. A store is filled from it once, kept beside it, and given its hash and calibration as by an
ingest.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

from nexus_vdb.calibration import calibrate, queries_as_asked
from nexus_vdb.collection import Collection
from nexus_vdb.connectors.faiss import FaissStore
from nexus_vdb.hashing import BITS, ItqHash, asymmetric_scores, pack
from nexus_vdb.interfaces import Encoder, Store
from nexus_vdb.ranking import TIE
from nexus_vdb.search import expected_recall, make_plan, stored_hash, vector_queries
from nexus_vdb.tables import table_of
from nexus_vdb.testing.samples import sample_id
from nexus_vdb.tuning import tune
from nexus_vdb.types import Floats, Hit, QueryBatch, Records, SearchPlan, StoreSchema

K = 10
TARGETS = (0.9, 0.95, 0.98, 0.99)
BLOCK = 8192
SHARES = (0.005, 0.01, 0.025, 0.05)


def fill(folder: Path, count: int, encoder: Encoder) -> Store:
    """The store of the first texts of a folder; made if it is not there."""
    schema = StoreSchema(encoder.dim, (256, encoder.dim), encoder.fingerprint, encoder.name)
    store = FaissStore.open(f"faiss://{folder.absolute() / 'stores' / str(count)}", schema)
    vectors = np.memmap(folder / "vectors.f16", np.float16, "r").reshape(-1, encoder.dim)
    codes = np.fromfile(folder / "codes.u64", "<u8", count)
    if count > len(codes):
        raise click.ClickException(f"only {len(codes):,} texts are embedded")
    texts = pq.read_table(folder / "texts.parquet", columns=["text"])["text"]

    def records(rows: range) -> Records:
        some, ids = slice(rows.start, rows.stop), [sample_id(row) for row in rows]
        return Records(
            ids=ids,
            document_ids=[str(row) for row in rows],
            ordinals=np.zeros(len(rows), np.int32),
            texts=texts[some].to_pylist(),
            metadata=[{}] * len(rows),
            content_hashes=ids,
            vectors=vectors[some].astype(np.float32),
            codes=codes[some],
        )

    if store.count() < count:
        blocks = (range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
        store.upsert_tables(table_of(records(rows)) for rows in blocks)
    return store


def tuned(store: Store, encoder: Encoder, *, again: bool) -> None:
    """Give a store its hash and calibration where it has none; say how long that took."""
    started = time.perf_counter()
    tune(store, encoder)
    if again:
        calibrate(store, queries_as_asked(store.info(), encoder))
    meta = store.info().meta
    print(f"tuned in {time.perf_counter() - started:.1f} s; hash {meta.get('hash')}:", end=" ")
    print(json.dumps(meta.get("hash_choice")))
    for point in (meta.get("calibration") or {}).get("points", []):
        print("   ", json.dumps(point))


def report(store: Store, queries: QueryBatch) -> None:
    """Print a line for each target."""
    info = store.info()
    cuts = info.schema.cuts
    right = store.search(queries, SearchPlan(K, "exact", cuts))
    print(f"{info.count:,} records, {len(queries)} queries, hash {info.meta.get('hash')}")
    print("target  measured  expected  candidates  probes  ms/query")
    for target in TARGETS:
        plan = make_plan(info, k=K, target_recall=target)
        store.search(queries, plan)
        started = time.perf_counter()
        found = store.search(queries, plan)
        spent = 1000 * (time.perf_counter() - started) / len(queries)
        expected = expected_recall(info, plan) or float("nan")
        print(
            f"{target:6}  {recall(found, right):8.4f}  {expected:8.4f}  {plan.candidates!s:>10}"
            f"  {plan.probes:6}  {spent:8.2f}"
        )


def report_codes(folder: Path, count: int, asked: int) -> None:
    """Print a line for each way to rank by 64 numbers."""
    vectors = np.memmap(folder / "vectors.f16", np.float16, "r").reshape(-1, 768)[:count]
    units, queries = vectors.astype(np.float32), np.load(folder / "queries.npz")
    asking, logits = queries["vectors"][:asked], queries["hash_logits"][:asked]
    sample = units[np.random.default_rng(0).choice(len(units), len(units) // 10, replace=False)]
    itq = ItqHash.fit(sample)
    _, axes = np.linalg.eigh(sample.T @ sample)
    axes = axes[:, -BITS:]
    codes = np.fromfile(folder / "codes.u64", "<u8", len(units))
    scores = {
        "the model's bits": asymmetric_scores(logits, codes),
        "rotation fitted on a tenth (ITQ)": asymmetric_scores(
            itq.logits(asking), pack(itq.logits(units))
        ),
        "64 floats (PCA)": (asking @ axes) @ (units @ axes).T,
    }
    exact = best_ten(asking @ units.T)
    print(f"{len(units):,} texts, {len(asking)} queries; best {SHARES} of all")
    for name, found in scores.items():
        right = np.take_along_axis(found, exact, 1)
        pairs = zip(found, right, strict=True)
        depths = np.array([(mine >= least[:, None]).sum(1) for mine, least in pairs])
        print(name, *(f"{(depths <= share * len(units)).mean():.3f}" for share in SHARES))


def best_ten(scores: Floats) -> np.ndarray[Any, Any]:
    """Columns of the ten highest of each row."""
    return np.argpartition(-scores, K, axis=1)[:, :K]


def recall(found: list[list[Hit]], right: list[list[Hit]]) -> float:
    """Share of the exact hits that were found; of equal scores it does not matter which."""
    shares = [
        sum(hit.score >= exact[-1].score - TIE for hit in hits) / len(exact)
        for hits, exact in zip(found, right, strict=True)
        if exact
    ]
    return float(np.mean(shares))


@click.command()
@click.argument("place")
@click.option("--queries", type=click.Path(path_type=Path), help="JSONL with a field text.")
@click.option("--asked", default=1000, help="Queries at most.")
@click.option("--count", default=1_000_000, help="Texts of a folder.")
@click.option("--again", is_flag=True, help="Measure the calibration anew.")
@click.option("--codes", is_flag=True, help="What the codes of a folder hold, without a store.")
@click.option("--model")
def main(
    *,
    place: str,
    queries: Path | None,
    asked: int,
    count: int,
    again: bool,
    codes: bool,
    model: str | None,
) -> None:
    """Compare target and measured recall of a store, or of a folder of embedded texts."""
    if codes:
        report_codes(Path(place), count, asked)
        return
    if "://" in place:
        if queries is None:
            raise click.UsageError("a store needs --queries")
        collection = Collection(place, model=model)
        lines = queries.read_text(encoding="utf-8").splitlines()[:asked]
        tuned(collection.store, collection.encoder, again=again)
        batch = collection.embed([json.loads(line)["text"] for line in lines])
        report(collection.store, batch)
        return
    encoder = Collection("memory://", model=model).encoder
    store = fill(Path(place), count, encoder)
    tuned(store, encoder, again=again)
    made = np.load(Path(place) / "queries.npz")
    itq = stored_hash(store.info())
    batch = vector_queries(made["vectors"][:asked], itq)
    if itq is None:
        logits = made["hash_logits"][:asked]
        batch = QueryBatch(batch.vectors, logits, batch.codes)
    report(store, batch)


if __name__ == "__main__":
    main()
