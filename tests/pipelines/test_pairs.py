"""The pairs job and its command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nexus_vdb.cli import run
from nexus_vdb.model.data import read_pairs


def _corpus(path: Path, count: int = 20) -> Path:
    rows = [
        {
            "id": str(number),
            "title": f"Of plant {number}",
            "text": f"Plant {number} grows in the shade of old trees. "
            f"Its leaves are {number} fingers long and bitter. "
            f"Nobody has ever seen plant {number} in flower.",
            "source": "herbal" if number % 2 else "garden",
        }
        for number in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_titles_and_sentences_of_a_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = _corpus(tmp_path / "corpus.jsonl"), tmp_path / "pairs.parquet"
    assert run(["pairs", str(corpus), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "texts": 20,
        "titles": 20,
        "names": 0,
        "sentences": 40,
        "questions": 0,
        "without": 0,
        "written": 60,
        "out": str(out),
    }
    pairs = list(read_pairs([out]))
    assert len(pairs) == 60
    for pair in pairs:  # both sides are of one plant, and of its source
        (number,) = re.findall(r"\d+", pair.a)
        assert number in re.findall(r"\d+", pair.b)
        assert pair.source in ("herbal", "garden")
    titles = [row for row, pair in enumerate(pairs) if pair.a.startswith("Of plant")]
    assert titles != sorted(titles, key=lambda row: int(pairs[row].a.split()[-1]))


def test_questions_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out = _corpus(tmp_path / "corpus.jsonl"), tmp_path / "pairs.parquet"
    options = ["--title-field", "", "--sentences", "0", "--questions", "3"]
    assert run(["pairs", str(corpus), *options, "--out", str(out)]) == 0
    pairs = list(read_pairs([out]))
    made = f"0 by title, 0 by name, 0 by sentence, {len(pairs)} questions; 0 "
    assert capsys.readouterr().out.startswith(f"{len(pairs)} pairs of 20 texts: {made}")
    assert len(pairs) >= 20
    for pair in pairs:
        assert any(thing in pair.a and thing in pair.b for thing in ("old trees", "flower"))


def test_names_of_a_glossary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        {"called": ["fern", "bracken"], "text": "A plant without flowers."},
        {"called": "moss", "text": "No list."},
        {"called": ["reed", 7, None], "text": ""},
        {"called": ["rush", "Juncus"]},
    ]
    glossary, out = tmp_path / "glossary.jsonl", tmp_path / "pairs.parquet"
    glossary.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    options = ["--names-field", "called", "--out", str(out), "--json"]
    assert run(["pairs", str(glossary), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["texts"], told["without"], told["titles"]) == (4, 2, 0)
    sides = {frozenset((pair.a, pair.b)) for pair in read_pairs([out])}
    assert sides == {
        frozenset(pair)
        for pair in (
            ("fern", "A plant without flowers."),
            ("bracken", "A plant without flowers."),
            ("fern", "bracken"),
            ("rush", "Juncus"),
        )
    }


def test_the_same_seed_gives_the_same_sample(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path / "corpus.jsonl")
    made = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        out = tmp_path / f"{name}.parquet"
        options = ["--max-pairs", "25", "--seed", seed, "--out", str(out)]
        assert run(["pairs", str(corpus), *options]) == 0
        made.append(pq.read_table(out).to_pylist())
    assert len(made[0]) == 25
    assert made[0] == made[1] != made[2]


def test_lines_of_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "lines.txt"
    text.write_text(
        "One long line of prose that has a first sentence. And here it has a second one as well.\n"
        "Too short.\n",
        encoding="utf-8",
    )
    out = tmp_path / "pairs.parquet"
    assert run(["pairs", str(text), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(
        "2 pairs of 2 texts: 0 by title, 0 by name, 2 by sentence, 0 "
    )


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"body": "x"}], [], "no field 'text' in a row with the fields body"),
        ([{"text": "x"}, {"text": None}, {}], [], "3 texts gave no pairs"),
        ([], [], "0 texts gave no pairs"),
        ([{"text": "x"}], ["--sentences", "-1"], "sentences"),
    ],
)
def test_what_cannot_be_made_pairs_of(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, str | None]],
    options: list[str],
    said: str,
) -> None:
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "pairs.parquet"
    corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert run(["pairs", str(corpus), "--out", str(out), *options]) != 0
    assert said in capsys.readouterr().err
    assert not out.exists()
