"""How well a bundle searches whole documents, in plain numpy: figures of one test set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_vdb.encoder import OnnxEncoder
from nexus_vdb.hashing import asymmetric_scores
from nexus_vdb.metrics import ndcg
from nexus_vdb.pipelines.evaluate import TestSet, read_test_set
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.types import Floats, QueryBatch

__all__ = ["SHARES", "measure"]

TOP = 10
SHARES = (0.01, 0.025, 0.05)
_BLOCK = 256  # queries compared with all documents at once

Rows = npt.NDArray[np.int64]


def measure(encoder: OnnxEncoder, folder: Path) -> dict[str, float]:
    """Figures of one BEIR folder.

    A document is one text, its title before it, cut where the encoder cuts. One that is the query
    itself, id and text, is left out.

    Returns:
        `ndcg@10` of the exact order, by width and by head (`768`, `512`, `256`, `semantic`,
        `entity`); `hash_0.01` and so on: the share of the exact top 10 at full width that stands
        in so large a share of the documents, the best by the model's asymmetric hash score.
    """
    test = read_test_set(folder)
    ids, texts = _corpus(test.corpus)
    documents, document_heads = encoder.encode_heads(texts)
    queries, query_heads = encoder.encode_heads(list(test.queries.values()))
    own = _own_rows(test, ids, texts)
    figures = {}
    for dim in encoder.cuts:
        pair = (cut_vectors(one.vectors, dim) for one in (queries, documents))
        figures[str(dim)] = _ndcg(test, ids, _best(*pair, own))
    for head, vectors in document_heads.items():
        figures[head] = _ndcg(test, ids, _best(query_heads[head], vectors, own))
    return figures | _hash_recalls(queries, documents)


def _corpus(path: Path) -> tuple[list[str], list[str]]:
    with path.open(encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    texts = [f"{row.get('title') or ''}\n{row['text']}".strip() for row in rows]
    return [str(row["_id"]) for row in rows], texts


def _own_rows(test: TestSet, ids: list[str], texts: list[str]) -> list[int]:
    """The row that is the query itself, -1 where there is none."""
    row_of = {id_: row for row, id_ in enumerate(ids)}
    rows = (row_of.get(query, -1) for query in test.queries)
    asked = test.queries.values()
    return [
        row if row >= 0 and texts[row] == text.strip() else -1
        for row, text in zip(rows, asked, strict=True)
    ]


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)


def _top(scores: Floats, k: int) -> Rows:
    """Rows of the k best of each line, in no order."""
    if k >= scores.shape[1]:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(-scores, k - 1, axis=1)[:, :k]


def _best(queries: Floats, documents: Floats, own: list[int]) -> Rows:
    """The best rows of each query, best first, without its own."""
    found = []
    for block in _blocks(len(queries)):
        scores = queries[block] @ documents.T
        for line, row in enumerate(own[block]):
            if row >= 0:
                scores[line, row] = -2
        rows = _top(scores, TOP)
        order = np.argsort(-np.take_along_axis(scores, rows, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(rows, order, 1))
    return np.concatenate(found)


def _ndcg(test: TestSet, ids: list[str], rows: Rows) -> float:
    runs = {
        query: [ids[row] for row in line] for query, line in zip(test.queries, rows, strict=True)
    }
    return ndcg(test.qrels, runs, k=TOP)


def _hash_recalls(queries: QueryBatch, documents: QueryBatch) -> dict[str, float]:
    """By share, how much of the exact top 10 the hash lets through."""
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    for block in _blocks(len(queries)):
        exact = _top(queries.vectors[block] @ documents.vectors.T, TOP)
        scores = asymmetric_scores(queries.hash_logits[block], documents.codes)
        for share in SHARES:
            depth = math.ceil(share * len(documents))
            kept = np.zeros(scores.shape, bool)
            np.put_along_axis(kept, _top(scores, depth), True, axis=1)
            found[share] += np.take_along_axis(kept, exact, 1).mean(axis=1).tolist()
    return {f"hash_{share:g}": float(np.mean(shares)) for share, shares in found.items()}
