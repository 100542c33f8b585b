"""Hard negatives: which are chosen, and a whole run over the project's own index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nexus_vdb.encoder import load_encoder
from nexus_vdb.errors import SourceError
from nexus_vdb.model.data import read_pairs
from nexus_vdb.model.mining import Candidate, Tally, choose_negatives
from nexus_vdb.pipelines.mine import MineSettings, run_mining, thrown_away
from nexus_vdb.settings import make_settings

CANDIDATES = [
    Candidate("far", "far", 0.2),
    Candidate("own", "its second chunk", 0.7),
    Candidate("near", "near", 0.97),
    Candidate("hard", "hard", 0.9),
    Candidate("good", "good", 0.6),
    Candidate("twin", "twin", 1.0),
]


def _choose(**limits: Any) -> tuple[list[str], Tally]:
    tally = Tally()
    given: dict[str, Any] = {
        "partners": {"own"},
        "positive": 1.0,
        "count": 4,
        "share": 0.95,
        "margin": 0.0,
    }
    return choose_negatives(CANDIDATES, **(given | limits), tally=tally), tally


def test_the_hardest_below_the_share_of_the_partner_come_first() -> None:
    chosen, tally = _choose()
    assert chosen == ["hard", "good", "far"]
    assert tally == Tally(anchors=1, candidates=6, partners=1, too_near=2, kept=3)


def test_a_margin_throws_more_away() -> None:
    chosen, tally = _choose(margin=0.3)
    assert chosen == ["good", "far"]
    assert tally.within_margin == 1


def test_what_is_more_than_asked_for_is_counted() -> None:
    chosen, tally = _choose(count=1)
    assert chosen == ["hard"]
    assert (tally.kept, tally.surplus) == (1, 2)


@pytest.mark.parametrize("positive", [0.1, -0.3])
def test_a_partner_farther_than_all_leaves_no_negative(positive: float) -> None:
    chosen, tally = _choose(positive=positive)
    assert chosen == []
    assert tally.without == 1


LONG = " ".join(f"Harbour pilots guide ship {number} past the reef." for number in range(60))
ROWS: list[dict[str, Any]] = [
    {"a": "a pilot in a harbour", "b": LONG},
    {"a": "how to bake bread", "b": "Knead the dough, let it rise, and bake it in a hot oven."},
    {"a": "how to bake bread", "b": "Bread is baked of flour, water, salt and yeast."},
    {"a": "baking a birthday cake", "b": "Beat butter and sugar, and bake the birthday cake."},
    {"a": "sugar", "b": "Beat butter and sugar, fold in flour, and bake the cake."},
    {"a": "growing tulips", "b": "Plant tulip bulbs in autumn, in soil that drains well."},
    {"a": "pruning roses", "b": "Cut roses back in early spring, above a bud."},
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row | {"source": "made"}) for row in ROWS))
    return path


def _mine(pairs: Path, out: Path, **values: Any) -> tuple[Tally, list[dict[str, Any]]]:
    settings = make_settings(MineSettings, {"pairs": [str(pairs)], "out": out} | values)
    tally = run_mining(settings)
    return tally, pq.read_table(out).to_pylist()


def test_negatives_are_near_but_below_the_partner(pairs: Path, tmp_path: Path) -> None:
    tally, rows = _mine(pairs, tmp_path / "mined.parquet", share=0.9)
    assert [(row["anchor"], row["positive"]) for row in rows] == [
        (row["a"], row["b"]) for row in ROWS
    ]
    encoder = load_encoder()
    for row in rows:
        query, *texts = encoder.encode([row["anchor"], row["positive"], *row["negatives"]]).vectors
        scores = np.array(texts) @ query
        assert (scores[1:] < 0.9 * scores[0] + 1e-3).all()
        assert (np.diff(scores[1:]) <= 1e-3).all()  # the hardest first
    found = tally.partners + tally.too_near + tally.within_margin + tally.surplus + tally.kept
    assert found == tally.candidates
    assert tally.kept == sum(len(row["negatives"]) for row in rows)


def test_no_partner_of_an_anchor_is_its_negative(pairs: Path, tmp_path: Path) -> None:
    """Nor a chunk of one that is longer than a chunk, nor what another pair gives it."""
    _, rows = _mine(pairs, tmp_path / "mined.parquet", share=1.0)
    by_anchor = {row["anchor"]: row["negatives"] for row in rows}
    assert not any("Harbour" in text for text in by_anchor["a pilot in a harbour"])
    assert not {row["b"] for row in ROWS[1:3]} & set(by_anchor["how to bake bread"])


def test_a_likely_false_negative_is_thrown_away(pairs: Path, tmp_path: Path) -> None:
    """Nearly the same sentence stands beside another anchor."""
    twin = ROWS[4]["b"]
    strict = _mine(pairs, tmp_path / "strict.parquet", share=0.6)[1][3]["negatives"]
    loose = _mine(pairs, tmp_path / "loose.parquet", share=1.0)[1][3]["negatives"]
    assert twin not in strict
    assert twin in loose


def test_the_index_is_kept_for_other_limits(pairs: Path, tmp_path: Path) -> None:
    store = f"faiss://{tmp_path / 'index'}"
    _, first = _mine(pairs, tmp_path / "one.parquet", store=store)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("segment*/*")}
    _, second = _mine(pairs, tmp_path / "two.parquet", store=store, negatives=1)
    assert written
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert [row["negatives"] for row in second] == [row["negatives"][:1] for row in first]


def test_a_teacher_judges_in_the_models_place(
    pairs_file: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Its vectors know the four topics of these pairs, whose texts it takes for false negatives."""
    tally, rows = _mine(
        pairs_file,
        tmp_path / "mined.parquet",
        max_pairs=80,
        share=0.5,
        depth=80,
        teacher=str(teacher_folder),
    )
    assert tally.kept > 100
    topics = {
        row["b"]: row["topic"] for row in map(json.loads, pairs_file.read_text().splitlines())
    }
    assert not any(topics[text] == row["topic"] for row in rows for text in row["negatives"])


def test_what_is_mined_is_trained_on(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    tally, rows = _mine(pairs, out)
    read = list(read_pairs([out]))
    assert [(pair.a, pair.b, list(pair.negatives), pair.source) for pair in read] == [
        (row["anchor"], row["positive"], row["negatives"], "made") for row in rows
    ]
    assert next(iter(thrown_away(tally))).startswith("7 anchors, ")


def test_no_pairs_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    empty = tmp_path / "pairs.jsonl"
    empty.write_text("")
    with pytest.raises(SourceError, match="no pairs to mine"):
        _mine(empty, tmp_path / "mined.parquet")
    assert list(tmp_path.iterdir()) == [empty]
