from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import nexus_vdb as nx
from nexus_vdb.encoder import load_encoder
from nexus_vdb.pipelines.evaluate import (
    HeadRecorder,
    evaluate,
    evaluate_heads,
    evaluate_pairs,
    fill,
    read_sentence_pairs,
    read_test_set,
)
from nexus_vdb.testing.encoder import FakeEncoder
from nexus_vdb.types import Floats, QueryBatch

WORDS = ["apple", "banana", "cherry", "damson", "elder", "fig"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six documents of a word or two each; the third is long enough for several chunks."""
    texts = [word if word != "cherry" else " ".join([word] * 450) for word in WORDS]
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


class TwoHeads(FakeEncoder):
    """Fused vectors of one seed; one head is as good, the other looks at the first word alone."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def encode_heads(self, texts: Sequence[str]) -> tuple[QueryBatch, dict[str, Floats]]:
        self.runs += len(texts)
        first = [text.split()[0] for text in texts]
        heads = {"all": FakeEncoder(512, seed=3), "first": FakeEncoder(256, seed=4)}
        made = [heads["all"].encode(texts).vectors, heads["first"].encode(first).vectors]
        return self.encode(texts), dict(zip(heads, made, strict=True))


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


def test_shares_of_the_records_as_candidates(folder: Path) -> None:
    with nx.open("memory://", encoder=FakeEncoder()) as collection:
        fill(collection, read_test_set(folder))
        found = evaluate(collection, read_test_set(folder), shares=[0.01, 1.0])
        with pytest.raises(nx.ConfigError, match=r"Invalid shares=\[0.0\]"):
            evaluate(collection, read_test_set(folder), shares=[0.0])
    least, all_ = found["shares"]
    # Never fewer than the hits that are asked for: ten, and the query itself.
    assert (least["candidates"], least["share"]) == (11, 0.125)
    assert all_["ndcg@10"] == found["ndcg@10"]
    assert all_["mrr@10"] == found["mrr@10"]
    assert all_["recall_of_exact"] == 1
    assert found["hash"] == "model"


def test_each_head_is_searched_alone(folder: Path) -> None:
    encoder, test = TwoHeads(), read_test_set(folder)
    recorder = HeadRecorder(encoder)
    with nx.open("memory://", encoder=recorder) as collection:
        fill(collection, test)
        fused = evaluate(collection, test)
    embedded = encoder.runs
    found = evaluate_heads(recorder, test)
    assert encoder.runs == embedded  # nothing was embedded twice
    assert found["all"] == {name: fused[name] for name in found["all"]}
    # By its first word q2 is about cherry alone, and d4 begins as no other document does.
    assert found["first"]["ndcg@10"] < found["all"]["ndcg@10"]
    with pytest.raises(nx.ConfigError, match="fake-768-0 makes one vector a text"):
        HeadRecorder(FakeEncoder())


STS = "score\ts1\ts2\n5\tapple fig\tfig apple\n2.5\tapple fig\tapple elder\n0\tfig\tbanana\n"


def test_sentence_pairs(tmp_path: Path) -> None:
    path = tmp_path / "sts.tsv"
    path.write_text(STS, encoding="utf-8")
    pairs = read_sentence_pairs(path)
    assert pairs.scores == [5, 2.5, 0]
    assert pairs.second == ["fig apple", "apple elder", "banana"]
    found = evaluate_pairs(FakeEncoder(), pairs)
    assert found["spearman"] == pytest.approx(100)
    assert found["cuts"] == pytest.approx({"768": 100, "512": 100, "256": 100})
    assert (found["heads"], found["pairs"], found["model"]) == ({}, 3, "fake-768-0")
    assert set(evaluate_pairs(TwoHeads(), pairs)["heads"]) == {"all", "first"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\n1\t2\n", "has no header of score, s1, s2"),
        (STS + "1\talone\n", "line 5: no score and two sentences"),
        (STS + "much\ta\tb\n", "line 5: no score and two sentences"),
        (STS + "nan\ta\tb\n", "line 5: no score and two sentences"),
        (STS + "1\ta\t \n", "line 5: no score and two sentences"),
        ("score\ts1\ts2\n1\ta\tb\n", "at least two different scores"),
    ],
)
def test_a_table_that_has_no_sentence_pairs(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "sts.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(nx.SourceError, match=message):
        read_sentence_pairs(path)


def test_the_shipped_model_orders_likeness() -> None:
    texts = ["the king is dead", "the monarch has died", "install a package"]
    queries, heads = load_encoder().encode_heads(texts)
    assert {name: vectors.shape for name, vectors in heads.items()} == {
        "semantic": (3, 512),
        "entity": (3, 256),
    }
    encoder = load_encoder()
    np.testing.assert_array_equal(queries.vectors, encoder.encode(texts).vectors)
    np.testing.assert_array_equal(queries.vectors, encoder.encode_head(texts, "embedding"))
    for name, vectors in heads.items():
        np.testing.assert_array_equal(vectors, encoder.encode_head(texts, name))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    semantic = heads["semantic"]
    assert semantic[0] @ semantic[1] > semantic[0] @ semantic[2] + 0.2
    with pytest.raises(nx.ConfigError, match="Invalid head=hash; valid: embedding, semantic"):
        encoder.encode_head(texts, "hash")


def test_pictures(folder: Path) -> None:
    from nexus_vdb.pipelines._eval_plot import draw

    with nx.open("memory://", encoder=FakeEncoder()) as collection:
        fill(collection, read_test_set(folder))
        found = evaluate(collection, read_test_set(folder), shares=[0.1, 1.0])
    draw(found, folder / "wide.png", title="both panels")
    draw(found | {"shares": []}, folder / "narrow.png", title="one panel")
    sizes = []
    for name in ("wide.png", "narrow.png"):
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(content[16:20], "big"))
    assert sizes == [1300, 650]
    with pytest.raises(nx.ConfigError, match="cannot write"):
        draw(found, folder / "none" / "x.png", title="")
