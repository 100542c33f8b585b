"""The options of `nexus-vdb search`, as one types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nexus_vdb as nx
from nexus_vdb import cli
from nexus_vdb.testing.encoder import FakeEncoder

TEXTS = {
    "long": ". ".join(f"the cat sat and number {number} is here" for number in range(6)),
    "mat": "a cat on a mat",
    "dog": "a dog with part E1047",
    "pill": "statins lower cholesterol",
}


class Shell:
    def __init__(self, store: str, capture: pytest.CaptureFixture[str]) -> None:
        self.store = store
        self._capture = capture

    def run(self, *words: object) -> tuple[int, str, str]:
        code = cli.run(["search", *map(str, words), "--store", self.store])
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def json(self, *words: object) -> Any:
        return json.loads(self.run(*words, "--json")[1])

    def documents(self, *words: object) -> list[str]:
        return [hit["document_id"] for hit in self.json(*words)["hits"]]


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    url = f"faiss://{tmp_path}/index"
    with nx.open(url, encoder=FakeEncoder()) as collection:
        given = [nx.Document(id_, text, {"size": len(text)}) for id_, text in TEXTS.items()]
        collection.add(given, chunk_tokens=8, chunk_overlap=0)
    monkeypatch.setattr("nexus_vdb.encoder.load_encoder", lambda name=None: FakeEncoder())
    return Shell(url, capsys)


def test_documents_instead_of_chunks(shell: Shell) -> None:
    assert shell.documents("the cat sat and", "-k", 3) == ["long"] * 3
    found = shell.documents("the cat sat and", "-k", 3, "--group-by", "document")
    assert (found[0], len(set(found))) == ("long", 3)
    words = ("the cat sat and", "-k", 2, "--group-by", "document", "--group-size", 2)
    assert shell.documents(*words)[:2] == ["long", "long"]


def test_pages(shell: Shell) -> None:
    whole = shell.json("the cat", "-k", 6)["hits"]
    pages = [shell.json("the cat", "-k", 2, "--offset", start)["hits"] for start in (0, 2, 4)]
    assert pages[0] + pages[1] + pages[2] == whole
    code, out, err = shell.run("the cat", "--offset", 1000)
    assert (code, out, err) == (0, "", "nothing found\n")


def test_a_least_score(shell: Shell) -> None:
    scores = [hit["score"] for hit in shell.json("a cat on a mat")["hits"]]
    kept = shell.json("a cat on a mat", "--min-score", scores[1])["hits"]
    assert [hit["score"] for hit in kept] == [score for score in scores if score >= scores[1]]


def test_more_like_a_document(shell: Shell) -> None:
    found = shell.json("--like", "mat", "-k", 2)
    assert "mat" not in [hit["document_id"] for hit in found["hits"]]
    assert set(found["timings_ms"]) == {"load", "search"}
    code, _, err = shell.run("--like", "nobody")
    assert code == 2
    assert "has no document 'nobody'" in err
    assert "try: give an id that a search prints" in err


def test_words_as_well(shell: Shell) -> None:
    pytest.importorskip("bm25s")
    found = shell.json("cat E1047", "-k", 1, "--hybrid")
    assert found["hits"][0]["document_id"] == "dog"
    assert set(found["timings_ms"]) == {"load", "embed", "words", "search"}
    small = json.dumps({"size": {"$lt": 20}})
    assert shell.documents("cat E1047", "--hybrid", "--where", small, "-k", 9)[0] == "mat"


def test_json_says_how_it_was_found(shell: Shell) -> None:
    found = shell.json("cat")
    assert list(found) == ["hits", "candidates", "expected_recall", "timings_ms"]
    assert (found["candidates"], found["expected_recall"]) == ("exact", 1.0)
    assert shell.json("cat", "--candidates", 10)["candidates"] == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat", "--offset", "-1"], "-1 is not in the range x>=0"),
        (["cat", "--min-score", "2"], "2.0 is not in the range -1<=x<=1"),
        (["cat", "--min-score", "nan"], "Invalid score_threshold=nan; valid: -1 to 1"),
        (["cat", "--group-by", "year"], "'year' is not 'document'"),
        (["cat", "--group-size", "2"], "Invalid group_size=2 without group_by"),
        (["cat", "-k", "0"], "Invalid k=0; valid: 1 or more"),
        (["cat", "--like", "mat"], "give TEXT or --like, and not both"),
        (["--like", "mat", "--hybrid"], "--hybrid needs the words of a TEXT"),
        (["cat", "--hybrid", "--min-score", "0.5"], "score_threshold is a cosine"),
        ([], "no TEXT to search for"),
    ],
)
def test_wrong_values_are_told(shell: Shell, words: list[str], message: str) -> None:
    code, out, err = shell.run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
