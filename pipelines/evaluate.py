"""The eval job: how well a model finds the documents that people judged relevant.

A test set is a folder in BEIR's format (Thakur et al. 2021, arXiv:2104.08663): `corpus.jsonl`,
`queries.jsonl` and `qrels/test.tsv`.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexus_vdb.collection import Collection
from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.metrics import mrr, ndcg, recall
from nexus_vdb.pipelines.ingest import IngestSettings, ingest
from nexus_vdb.reports import IngestReport
from nexus_vdb.search import choose_depth, has_hash
from nexus_vdb.stages import slices
from nexus_vdb.types import Hit, QueryBatch, SearchPlan

__all__ = ["TestSet", "evaluate", "fill", "read_test_set"]

Found = dict[str, list[Hit]]
"""Chunks by query id, best first."""

_DEPTH = 100
_TOP = 10
_BATCH = 512  # queries of one search: a store reads its vectors once for all of them


class TestSet:
    """Queries and judgements of a BEIR folder; the corpus stays in its file.

    Attributes:
        corpus: Path of the documents.
        queries: Text by query id, of the judged queries only.
        qrels: Grade by document id, by query id.
    """

    __test__ = False  # pytest, do not collect

    def __init__(
        self, corpus: Path, queries: dict[str, str], qrels: dict[str, dict[str, int]]
    ) -> None:
        self.corpus = corpus
        self.queries = queries
        self.qrels = qrels


def read_test_set(folder: Path, *, split: str = "test") -> TestSet:
    """Read queries and judgements.

    Raises:
        SourceError: a file is missing or not in the format.
    """
    corpus = folder / "corpus.jsonl"
    if not corpus.is_file():
        raise SourceError(
            f"{corpus} is missing", hint="a BEIR folder has corpus.jsonl, queries.jsonl, qrels/"
        )
    qrels = _qrels(folder / "qrels" / f"{split}.tsv")
    texts = dict(_query_texts(folder / "queries.jsonl"))
    queries = {query: texts[query] for query in qrels if texts.get(query, "").strip()}
    if not queries:
        raise SourceError(f"no query of {folder} has a judgement")
    return TestSet(corpus, queries, {query: qrels[query] for query in queries})


def fill(
    collection: Collection,
    test: TestSet,
    *,
    progress: Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Embed the corpus into a collection, as any ingest would; bad rows are only counted."""
    settings = IngestSettings(sources=[str(test.corpus)], id_field="_id", quarantine=None)
    return ingest(collection, settings, progress=progress)


def evaluate(
    collection: Collection,
    test: TestSet,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Search a filled collection with every judged query.

    A document counts once, by its best chunk; one that is the query itself, id and text, is left
    out.

    Returns:
        `ndcg@10`, `recall@100` and `mrr@10` of the exact order at full width; `cuts`: the same at
        each width that the store can search; `prefilter`: the same (of the best ten) behind the
        hash, its candidates, and the share of the exact top 10 chunks it finds. None where the
        store has no hash.
    """
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
        "prefilter": _prefilter(collection, test, runner, exact),
        "queries": len(test.queries),
        "records": collection.info().count,
        "model": collection.encoder.name,
        "seconds": round(time.perf_counter() - started, 3),
    }


class _Runner:
    def __init__(
        self, collection: Collection, test: TestSet, progress: Callable[[int, int], None] | None
    ) -> None:
        self._collection = collection
        self._progress = progress
        self._ids = list(test.queries)
        self._queries = collection.embed(list(test.queries.values()))

    def hits(self, plan: SearchPlan) -> Found:
        """Chunks by query, of as many documents as `plan.k` where there are that many."""
        wanted, found = plan.k, Found()
        rows = list(range(len(self._ids)))
        while rows:
            for some in slices(rows, _BATCH):
                answers = self._collection.store.search(_take(self._queries, some), plan)
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


def _prefilter(
    collection: Collection, test: TestSet, runner: _Runner, exact: Found
) -> dict[str, Any] | None:
    info = collection.info()
    if not has_hash(info):
        return None
    chosen, _ = choose_depth(info, k=_TOP)
    count = max(200, info.count * 3 // 100) if chosen == "exact" else chosen
    found = runner.hits(collection.plan(k=_TOP + 1, candidates=count))
    scores = _scores(test, found)
    return {
        "candidates": count,
        "share": round(count / max(info.count, 1), 4),
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


def _query_texts(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    row = json.loads(line)
                    yield str(row["_id"]), str(row["text"])
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is no list of objects with _id and text: {error}") from error


def _qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements with a grade above 0 decide which queries count; all grades are kept."""
    qrels: dict[str, dict[str, int]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for query, document, grade in list(csv.reader(lines, delimiter="\t"))[1:]:
                qrels.setdefault(query, {})[document] = int(grade)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is no table of query, document, grade: {error}") from error
    return {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
