"""What fusing in the words does: nDCG@10 and Recall@100 by meaning, by words, and by both.

    python benchmarks/hybrid.py runs/hybrid BEIR_DIR… [--json]

Each test set is ingested into a FAISS store in the folder, which is kept for the next time.
Searches are exact; a document counts by its best chunk, and one that is the query itself is left
out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click

from nexus_vdb.collection import Collection
from nexus_vdb.connectors.bm25 import word_index
from nexus_vdb.metrics import ndcg, recall
from nexus_vdb.pipelines.evaluate import TestSet, fill, read_test_set
from nexus_vdb.types import Hit

DEPTH = 200  # chunks, of which come a hundred documents


def scores_of(test: TestSet, found: list[list[Hit]]) -> tuple[float, float]:
    """nDCG@10 and Recall@100 of the hits of each query."""
    runs = {}
    for (query, text), hits in zip(test.queries.items(), found, strict=True):
        others = [
            hit for hit in hits if hit.document_id != query or hit.text.strip() != text.strip()
        ]
        runs[query] = list(dict.fromkeys(hit.document_id for hit in others))
    return ndcg(test.qrels, runs, k=10), recall(test.qrels, runs, k=100)


def measure(collection: Collection, test: TestSet) -> dict[str, dict[str, float]]:
    """Scores of each way to search, and milliseconds a query."""
    texts = list(test.queries.values())
    index = word_index(collection.store)
    ways: dict[str, Callable[[], list[list[Hit]]]] = {
        "meaning": lambda: [*collection.search_batch(texts, k=DEPTH, candidates="exact")],
        "words": lambda: index.search(collection.store, texts, DEPTH),
        "both": lambda: [*collection.search_batch(texts, k=DEPTH, candidates="exact", hybrid=True)],
    }
    found = {}
    for name, way in ways.items():
        started = time.perf_counter()
        quality, coverage = scores_of(test, way())
        spent = 1000 * (time.perf_counter() - started) / len(texts)
        found[name] = {
            "ndcg@10": round(quality, 4),
            "recall@100": round(coverage, 4),
            "ms": round(spent, 1),
        }
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("sets", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model")
@click.option("--json", "as_json", is_flag=True)
def main(folder: Path, sets: tuple[Path, ...], model: str | None, as_json: bool) -> None:
    """Measure test sets in BEIR's format."""
    results = {}
    for path in sets:
        test = read_test_set(path)
        with Collection(f"faiss://{folder / path.name}", model=model) as collection:
            fill(collection, test)
            results[path.name] = measure(collection, test)
    if as_json:
        print(json.dumps(results))
        return
    print(f"{'nDCG@10 / Recall@100':24}", *(f"{way:>16}" for way in ("meaning", "words", "both")))
    for name, ways in results.items():
        cells = (f"{way['ndcg@10']:.4f} / {way['recall@100']:.3f}" for way in ways.values())
        print(f"{name:24}", *(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
