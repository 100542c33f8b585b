"""Questions out of what texts speak of."""

from __future__ import annotations

import numpy as np
import pytest

from nexus_vdb.model.questions import question_pairs

TEXT = (
    "She wanted to bake a lemon cake, but the old oven was broken. "
    "There are many ways to mend an oven, and a neighbour had shown her his tools."
)


def _pairs(text: str = TEXT, *, seed: int = 0, count: int = 1) -> list[tuple[str, str]]:
    return question_pairs(text, np.random.default_rng(seed), count=count)


def test_actions_come_first_and_both_sides_name_the_same() -> None:
    for seed in range(50):
        found = _pairs(seed=seed, count=2)
        actions = sorted(
            next(action for action in ("bake a lemon cake", "mend an oven") if action in a)
            for a, _ in found
        )
        assert actions == ["bake a lemon cake", "mend an oven"]
        assert all(("lemon" in a) == ("lemon" in b) for a, b in found)


def test_things_when_there_are_no_more_actions() -> None:
    asked = {text for seed in range(50) for pair in _pairs(seed=seed, count=5)[2:] for text in pair}
    for thing in ("old oven", "tools"):
        assert any(thing in text for text in asked)
    assert not any("bake" in text for text in asked)


def test_there_are_many_shapes() -> None:
    assert len({text for seed in range(200) for pair in _pairs(seed=seed) for text in pair}) > 40


@pytest.mark.parametrize("text", ["", "Nothing.", "1 2 3", "Größe"])
def test_a_text_that_names_nothing_gives_nothing(text: str) -> None:
    assert _pairs(text, count=3) == []


def test_none_when_none_are_asked_for() -> None:
    assert _pairs(count=0) == []
