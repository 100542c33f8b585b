from __future__ import annotations

import pytest

from nexus_vdb.fusion import DEPTH, fuse
from nexus_vdb.types import Hit


def ranking(**scores: float) -> list[Hit]:
    found = [Hit(id_, id_, score, "", {}) for id_, score in scores.items()]
    return sorted(found, key=lambda hit: (-hit.score, hit.id))


def scores(hits: list[Hit]) -> dict[str, float]:
    return {hit.id: round(hit.score, 6) for hit in hits}


def test_scores_are_the_mean_of_both_shares() -> None:
    fused = fuse(ranking(a=0.8, b=0.4, c=0.2), ranking(b=10.0, d=5.0))
    assert scores(fused) == {"b": 0.75, "a": 0.5, "d": 0.375, "c": 0.125}
    assert [hit.id for hit in fused] == ["b", "a", "d", "c"]


def test_one_side_may_have_nothing() -> None:
    assert [hit.id for hit in fuse(ranking(a=0.8, b=0.4), [])] == ["a", "b"]
    assert scores(fuse([], ranking(a=8.0, b=4.0))) == {"a": 0.5, "b": 0.25}
    assert fuse([], []) == []


def test_cosines_below_zero_keep_their_order() -> None:
    assert [hit.id for hit in fuse(ranking(a=-0.1, b=-0.4), ranking())] == ["a", "b"]
    assert fuse(ranking(a=-0.1, b=-0.4), ranking(b=1.0))[0].id == "b"


def test_equal_scores_come_in_order_of_id() -> None:
    assert [hit.id for hit in fuse(ranking(c=1, b=1, a=1), [])] == ["a", "b", "c"]


@pytest.mark.parametrize("words", [3, DEPTH, 2 * DEPTH])
def test_what_is_deeper_stays_behind_in_its_order(words: int) -> None:
    meaning = [Hit(f"m{row:03}", "", 1 - row / 1000, "", {}) for row in range(250)]
    lexical = [Hit(f"m{249 - row:03}", "", 20 - row / 100, "", {}) for row in range(words)]
    whole = fuse(meaning, lexical)
    assert len({hit.id for hit in whole}) == len(whole) == 250
    assert [hit.score for hit in whole] == sorted((hit.score for hit in whole), reverse=True)
    # A longer list of the one side begins as the shorter one does.
    head = fuse(meaning[:DEPTH], lexical)
    assert whole[: len(head)] == head
    rest = [hit.id for hit in whole[len(head) :]]
    assert rest == sorted(rest)
