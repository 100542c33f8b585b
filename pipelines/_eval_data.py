"""Test sets: a folder in BEIR's format, or a table of sentence pairs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nexus_vdb.errors import SourceError

__all__ = ["SentencePairs", "TestSet", "read_sentence_pairs", "read_test_set"]

_STS_HEADER = ["score", "s1", "s2"]


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


@dataclass(frozen=True, slots=True)
class SentencePairs:
    """Pairs of sentences that people graded by likeness, as columns of one length.

    Attributes:
        scores: Their grades; only the order counts.
        first: One sentence of each pair.
        second: The other.
    """

    scores: list[float]
    first: list[str]
    second: list[str]


def read_sentence_pairs(path: Path) -> SentencePairs:
    """Read a table of three tab-separated columns under the header `score s1 s2`.

    Raises:
        SourceError: the file cannot be read, or is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8: {error.reason}") from error
    # No quoting: sentences quote as they like.
    rows = [line.split("\t") for line in text.rstrip("\n").split("\n")]
    if rows[0] != _STS_HEADER:
        raise SourceError(
            f"{path} has no header of {', '.join(_STS_HEADER)}, parted by tabs",
            hint="name a table of sentence pairs, or a folder in BEIR's format",
        )
    found = SentencePairs([], [], [])
    for number, row in enumerate(rows[1:], 2):
        try:
            score, first, second = row
            grade = float(score)
        except ValueError as error:
            raise SourceError(f"{path}, line {number}: no score and two sentences") from error
        if not (math.isfinite(grade) and first.strip() and second.strip()):
            raise SourceError(f"{path}, line {number}: no score and two sentences")
        found.scores.append(grade)
        found.first.append(first)
        found.second.append(second)
    if len(set(found.scores)) < 2:
        raise SourceError(f"{path}: an order needs pairs of at least two different scores")
    return found


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
