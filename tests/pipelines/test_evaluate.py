from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import nexus_vdb as nx
from nexus_vdb.pipelines.evaluate import evaluate, fill, read_test_set
from nexus_vdb.testing.encoder import FakeEncoder

WORDS = ["apple", "banana", "cherry", "damson", "elder", "fig"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six documents of a word or two each; the third is long enough for several chunks."""
    texts = [word if word != "cherry" else " ".join([word] * 700) for word in WORDS]
    texts[4] = "elder fig"
    corpus = [{"_id": f"d{row}", "title": "", "text": text} for row, text in enumerate(texts)]
    asked = {"q1": "apple", "q2": "cherry cherry banana", "d4": texts[4], "unjudged": "fig"}
    queries = [{"_id": key, "text": text} for key, text in asked.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "\n".join(map(json.dumps, rows)) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    judged = [("q1", "d0", 2), ("q2", "d1", 1), ("q2", "d5", 0), ("d4", "d4", 1), ("d4", "d5", 1)]
    (tmp_path / "qrels").mkdir()
    table = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("scheme", ["memory", "faiss"])
def test_figures(folder: Path, scheme: str) -> None:
    url = "memory://" if scheme == "memory" else f"faiss://{folder}/index"
    test = read_test_set(folder)
    assert set(test.queries) == {"q1", "q2", "d4"}
    with nx.open(url, encoder=FakeEncoder()) as collection:
        fill(collection, test)
        found = evaluate(collection, test)
    # q1 finds its document first. q2 finds d2 (its chunks count once) before d1. The query d4 is
    # the document d4, which it must not find though it is judged relevant; d5 is first.
    discount = 1 / math.log2(3)
    expected = {
        "ndcg@10": (1 + discount + 1 / (1 + discount)) / 3,
        "recall@100": (1 + 1 + 1 / 2) / 3,
        "mrr@10": (1 + 1 / 2 + 1) / 3,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert list(found["cuts"]) == ["768", "512", "256"]
    assert found["cuts"]["768"] == pytest.approx(expected)
    assert found["prefilter"]["ndcg@10"] == pytest.approx(expected["ndcg@10"])
    assert found["prefilter"]["recall_of_exact"] == 1
    assert (found["queries"], found["model"]) == (3, "fake-768-0")
    assert found["records"] == 8


def test_a_store_of_vectors_has_no_prefilter(folder: Path) -> None:
    collection = nx.open("memory://", encoder=FakeEncoder(32, (32,)))
    collection.add(WORDS, ids=WORDS, vectors=FakeEncoder(32).encode(WORDS).vectors)
    found = evaluate(collection, read_test_set(folder))
    assert found["prefilter"] is None
    assert found["ndcg@10"] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", None, "corpus.jsonl is missing"),
        ("queries.jsonl", None, "queries.jsonl cannot be read: No such file"),
        ("queries.jsonl", '{"text": "x"}', "queries.jsonl is no list of objects"),
        ("qrels/test.tsv", None, "test.tsv cannot be read"),
        ("qrels/test.tsv", "a\tb\tc\nq1\td0\tmuch", "test.tsv is no table of query, document"),
        ("qrels/test.tsv", "a\tb\tc\nq9\td0\t1", "no query of .* has a judgement"),
    ],
)
def test_a_folder_that_is_no_test_set(
    folder: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(nx.SourceError, match=message):
        read_test_set(folder)
