"""Training texts: fields, sampling, token tables, exact bags."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexus_vdb.errors import SourceError
from nexus_vdb.model.data import (
    Pair,
    TokenTable,
    cut_text,
    read_pairs,
    read_texts,
)
from nexus_vdb.model.lexicon import Lexicon
from nexus_vdb.model.tokenizer import load_tokenizer


def jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("names", [("a", "b"), ("text_a", "text_b"), ("anchor", "positive")])
def test_pairs_under_any_of_the_usual_names(tmp_path: Path, names: tuple[str, str]) -> None:
    row = {names[0]: "one", names[1]: "two", "topic": 3, "negatives": ["x", "y"]}
    found = list(read_pairs([jsonl(tmp_path / "p.jsonl", [row])]))
    assert found == [Pair("one", "two", topic=3, negatives=("x", "y"))]


def test_pairs_of_named_fields_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"q": ["one", "", None], "doc": ["two", "three", "four"]}), path)
    assert list(read_pairs([path], fields=("q", "doc"))) == [Pair("one", "two")]


def test_rows_without_a_partner_are_an_error_that_names_the_fields(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"title": "one", "body": "two"}])
    with pytest.raises(SourceError, match="body, title") as caught:
        list(read_pairs([path]))
    assert "--fields" in caught.value.hint


def test_a_source_is_thinned_to_its_weight(tmp_path: Path) -> None:
    rows = [{"a": f"a{i}", "b": "b", "source": "rare" if i % 2 else "all"} for i in range(2000)]
    found = list(read_pairs([jsonl(tmp_path / "p.jsonl", rows)], weights={"rare": 0.1}))
    assert sum(pair.source == "all" for pair in found) == 1000
    assert 60 < sum(pair.source == "rare" for pair in found) < 150


def test_texts_of_every_field_but_the_source_label(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"a": "one", "b": "two", "n": 3, "source": "s"}])
    assert list(read_texts([path])) == ["one", "two"]


def test_half_of_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    """Where a text was cut inside an emoji; SentencePiece and Parquet take UTF-8 alone."""
    path = tmp_path / "p.jsonl"
    path.write_text(r'{"a": "\ud83d\ude00 and \ud83d", "b": "two \\ud83d", "more": {"\ude00": []}}')
    assert list(read_pairs([path])) == [Pair("\U0001f600 and \ufffd", "two \\ud83d")]


@pytest.mark.parametrize("name", ["missing.jsonl", "table.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(SourceError, match=name):
        list(read_texts([tmp_path / name]))


def test_texts_are_cut_at_a_word() -> None:
    assert cut_text("harbour and tide", limit=13) == "harbour and"
    assert cut_text("harbour", limit=13) == "harbour"
    assert cut_text(" " * 20 + "harbour and tide", limit=13) == "harbour and"
    assert cut_text(" " * 20 + "harbour", limit=13) == "harbour"


def test_a_table_gives_back_the_tokens(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    texts = ["harbour tide", "falcon", "oven flour saffron kettle"]
    table = TokenTable.build(texts, tokenizer, max_tokens=3)
    wanted = [ids[:3] for ids in tokenizer.encode(texts)]
    assert [table[row].tolist() for row in range(3)] == wanted
    ids, mask = table.padded(np.array([2, 1]))
    assert ids[0].tolist() == wanted[2]
    assert ids[1][mask[1] == 1].tolist() == wanted[1]
    assert (ids[mask == 0] == 0).all()


def test_counts_by_occurrence_and_by_text() -> None:
    table = TokenTable(np.array([4, 4, 5, 4], np.uint16), np.array([0, 3, 4]))
    assert table.counts(8)[[4, 5]].tolist() == [3, 1]
    assert table.document_counts(8)[[4, 5]].tolist() == [2, 1]
    idf = table.idf(8)
    assert idf[5] == pytest.approx(np.log1p((2 - 1 + 0.5) / 1.5))
    assert idf[4] < idf[5] < idf[7]


def test_exact_bags_by_hand() -> None:
    idf = np.array([1.0, 2.0, 3.0], np.float32)
    texts = [np.array(ids, np.uint16) for ids in ([0, 0, 1], [1, 2], [2])]
    found = Lexicon(np.arange(3), idf).cosines(texts)
    first, second = np.array([2 * 2.2 / 3.2, 2.0, 0]), np.array([0, 2.0, 3.0])
    wanted = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert found[0, 1] == pytest.approx(wanted)
    assert found.diagonal() == pytest.approx(np.ones(3))
    assert found[0, 2] == 0
