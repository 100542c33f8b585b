"""The eval job: how well a model finds what people judged relevant, or grades likeness as they do.

A test set is a folder in BEIR's format (Thakur et al. 2021, arXiv:2104.08663): `corpus.jsonl`,
`queries.jsonl` and `qrels/test.tsv`; or a table of sentence pairs (`evaluate_pairs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nexus_vdb.chunking import CHUNK_OVERLAP, CHUNK_TOKENS
from nexus_vdb.collection import Collection
from nexus_vdb.errors import ConfigError
from nexus_vdb.interfaces import Encoder, SupportsHeads
from nexus_vdb.metrics import mrr, ndcg, recall, spearman
from nexus_vdb.pipelines._eval_data import (
    SentencePairs,
    TestSet,
    read_sentence_pairs,
    read_test_set,
)
from nexus_vdb.pipelines._eval_heads import HeadRecorder
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.ranking import cut_vectors
from nexus_vdb.reports import IngestReport
from nexus_vdb.search import choose_depth, has_hash
from nexus_vdb.stages import slices
from nexus_vdb.types import Floats, Hit, QueryBatch, SearchPlan

__all__ = [
    "HeadRecorder",
    "SentencePairs",
    "TestSet",
    "evaluate",
    "evaluate_heads",
    "evaluate_pairs",
    "fill",
    "read_sentence_pairs",
    "read_test_set",
    "scratch",
]

Found = dict[str, list[Hit]]
"""Chunks by query id, best first."""

_DEPTH = 100
_TOP = 10
_BATCH = 512  # queries of one search: a store reads its vectors once for all of them


@contextmanager
def scratch(encoder: Encoder) -> Iterator[Collection]:
    """A collection that is gone afterwards; of FAISS, which answers many queries at once."""
    with (
        TemporaryDirectory() as folder,
        Collection(f"faiss://{folder}/store", encoder=encoder) as collection,
    ):
        yield collection


def fill(
    collection: Collection,
    test: TestSet,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Embed the corpus into a collection, as any ingest would; bad rows are only counted."""
    settings = IngestSettings(
        sources=[str(test.corpus)],
        id_field="_id",
        quarantine=None,
        chunk_tokens=chunk_tokens,
        chunk_overlap=min(CHUNK_OVERLAP, chunk_tokens // 8),  # less than a short chunk
    )
    return ingest(collection, settings, progress=progress)


def evaluate(
    collection: Collection,
    test: TestSet,
    *,
    shares: Sequence[float] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Search a filled collection with every judged query.

    A document counts once, by its best chunk; one that is the query itself, id and text, is left
    out.

    Args:
        collection: Filled from the test set's corpus.
        test: What is asked, and what is right.
        shares: Of the records, as candidates of the hash: 0.01 for one in a hundred.
        progress: Told how many queries of how many are answered, search by search.

    Returns:
        `ndcg@10`, `recall@100` and `mrr@10` of the exact order at full width; `cuts`: the same at
        each width that the store can search; `prefilter`: the same (of the best ten) behind the
        hash, its candidates, and the share of the exact top 10 chunks it finds; `shares`: the same
        for each of the shares; `hash`: where the codes come from. None and nothing where the store
        has no hash.

    Raises:
        ConfigError: a share is not above 0 and at most 1.
    """
    if any(not 0 < share <= 1 for share in shares):
        raise ConfigError(f"Invalid shares={list(shares)}; valid: above 0, at most 1")
    started = time.perf_counter()
    runner = _Runner(collection, test, progress)
    full, *narrower = sorted(collection.encoder.cuts, reverse=True)
    exact = runner.hits(collection.plan(k=_DEPTH + 1, candidates="exact", dim=full))
    cuts = {str(full): _scores(test, exact)}
    for dim in narrower:
        try:
            plan = collection.plan(k=_DEPTH + 1, candidates="exact", dim=dim)
            cuts[str(dim)] = _scores(test, runner.hits(plan))
        except ConfigError:  # this store keeps no vectors of that width
            continue
    return {
        **cuts[str(full)],
        "cuts": cuts,
        **_behind_the_hash(runner, exact, shares),
        "queries": len(test.queries),
        "records": collection.info().count,
        "model": collection.encoder.name,
        "seconds": round(time.perf_counter() - started, 3),
    }


def evaluate_heads(
    recorder: HeadRecorder,
    test: TestSet,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """`ndcg@10`, `recall@100` and `mrr@10` of exact search by each head alone.

    The corpus is embedded where the recorder has not seen it yet.
    """
    found = {}
    for name in recorder.heads:
        with scratch(recorder.head(name)) as collection:
            fill(collection, test, chunk_tokens=chunk_tokens)
            runner = _Runner(collection, test, progress)
            plan = collection.plan(k=_DEPTH + 1, candidates="exact")
            found[name] = _scores(test, runner.hits(plan))
    return found


def evaluate_pairs(encoder: Encoder, pairs: SentencePairs) -> dict[str, Any]:
    """Spearman's correlation, times 100, of cosines with people's grades of likeness.

    Returns:
        `spearman` at full width; `cuts`: at each width of the encoder; `heads`: by each of its
        heads alone, where it has any.
    """
    started = time.perf_counter()
    texts = list(dict.fromkeys([*pairs.first, *pairs.second]))
    if isinstance(encoder, SupportsHeads):
        queries, heads = encoder.encode_heads(texts)
    else:
        queries, heads = encoder.encode(texts), {}
    row = {text: number for number, text in enumerate(texts)}
    first, second = ([row[text] for text in side] for side in (pairs.first, pairs.second))

    def figure(vectors: Floats) -> float:
        cosines = np.einsum("nd,nd->n", vectors[first], vectors[second])
        return 100 * spearman(cosines, pairs.scores)

    cuts = {
        str(dim): figure(cut_vectors(queries.vectors, dim))
        for dim in sorted(encoder.cuts, reverse=True)
    }
    return {
        "spearman": cuts[str(encoder.dim)],
        "cuts": cuts,
        "heads": {name: figure(vectors) for name, vectors in heads.items()},
        "pairs": len(pairs.scores),
        "model": encoder.name,
        "seconds": round(time.perf_counter() - started, 3),
    }


class _Runner:
    def __init__(
        self, collection: Collection, test: TestSet, progress: Callable[[int, int], None] | None
    ) -> None:
        self.test = test
        self.collection = collection
        self._progress = progress
        self._ids = list(test.queries)
        self._queries = collection.embed(list(test.queries.values()))

    def hits(self, plan: SearchPlan) -> Found:
        """Chunks by query, of as many documents as `plan.k` where there are that many."""
        wanted, found = plan.k, Found()
        rows = list(range(len(self._ids)))
        while rows:
            for some in slices(rows, _BATCH):
                answers = self.collection.store.search(_take(self._queries, some), plan)
                found.update(zip((self._ids[row] for row in some), answers, strict=True))
                if self._progress is not None:
                    self._progress(len(found), len(self._ids))
            rows = [row for row in rows if self._lacks(found[self._ids[row]], wanted, plan.k)]
            plan = replace(plan, k=2 * plan.k)
        return found

    @staticmethod
    def _lacks(hits: list[Hit], wanted: int, asked: int) -> bool:
        """Whether there are more hits to be had, and too few documents among these."""
        return len(hits) == asked and len(_documents(hits)) < wanted


def _behind_the_hash(runner: _Runner, exact: Found, shares: Sequence[float]) -> dict[str, Any]:
    info = runner.collection.info()
    if not has_hash(info):
        return {"hash": None, "prefilter": None, "shares": []}
    chosen, _ = choose_depth(info, k=_TOP)
    count = max(200, info.count * 3 // 100) if chosen == "exact" else chosen
    depths = [math.ceil(share * info.count) for share in shares]
    return {
        "hash": info.meta["hash"],
        "prefilter": _prefilter(runner, exact, count),
        "shares": [_prefilter(runner, exact, depth) for depth in depths],
    }


def _prefilter(runner: _Runner, exact: Found, count: int) -> dict[str, Any]:
    """Figures of a search of that many candidates, but no fewer than the hits it needs."""
    plan = runner.collection.plan(k=_TOP + 1, candidates=count)
    found = runner.hits(plan)
    scores = _scores(runner.test, found)
    return {
        "candidates": plan.candidates,
        "share": round(count / max(runner.collection.info().count, 1), 4),
        f"ndcg@{_TOP}": scores[f"ndcg@{_TOP}"],
        f"mrr@{_TOP}": scores[f"mrr@{_TOP}"],
        "recall_of_exact": _overlap(exact, found),
    }


def _overlap(exact: Found, found: Found) -> float:
    """Share of the exact top chunks that the other search has among its own."""
    shares = [
        len({hit.id for hit in hits[:_TOP]} & {hit.id for hit in found[query][:_TOP]})
        / len(hits[:_TOP])
        for query, hits in exact.items()
    ]
    return sum(shares) / len(shares)


def _scores(test: TestSet, found: Found) -> dict[str, float]:
    runs = {
        query: _documents([hit for hit in hits if not _is_query(hit, query, test.queries[query])])
        for query, hits in found.items()
    }
    return {
        f"ndcg@{_TOP}": ndcg(test.qrels, runs, k=_TOP),
        f"recall@{_DEPTH}": recall(test.qrels, runs, k=_DEPTH),
        f"mrr@{_TOP}": mrr(test.qrels, runs, k=_TOP),
    }


def _is_query(hit: Hit, query: str, text: str) -> bool:
    """Whether it is the query itself: its id alone can be a coincidence of two countings."""
    return hit.document_id == query and hit.text.strip() == text.strip()


def _documents(hits: list[Hit]) -> list[str]:
    """Documents by their best chunk, which is the first of theirs."""
    return list(dict.fromkeys(hit.document_id for hit in hits))


def _take(queries: QueryBatch, rows: Sequence[int]) -> QueryBatch:
    some = list(rows)
    return QueryBatch(queries.vectors[some], queries.hash_logits[some], queries.codes[some])
