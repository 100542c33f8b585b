"""Pairs out of what things are called."""

from __future__ import annotations

import numpy as np

from nexus_vdb.model.names import name_pairs

NAMES = ["heart attack", "myocardial infarction", "coronary thrombosis", "MI"]
TEXT = "Death of heart muscle for want of blood."


def _pairs(names: list[str], text: str = "", *, seed: int = 0, **options: int) -> list[list[str]]:
    made = name_pairs(names, text, np.random.default_rng(seed), **options)
    return [list(pair) for pair in made]


def test_a_name_belongs_to_what_is_said_and_to_other_names() -> None:
    for seed in range(50):
        pairs = _pairs(NAMES, TEXT, seed=seed, count=2)
        said = [a for a, b in pairs if b == TEXT]
        assert len(said) == 2
        assert set(said) < set(NAMES)
        for a, b in pairs:
            if b != TEXT:
                others = b.split("; ")
                assert a in NAMES
                assert set(others) <= set(NAMES) - {a}
                assert len(others) == len(set(others))


def test_now_and_then_several_names_stand_in_a_row() -> None:
    partners = [b for seed in range(300) for _, b in _pairs(NAMES, seed=seed)]
    several = np.mean(["; " in partner for partner in partners])
    assert 0.15 < several < 0.45


def test_one_name_alone_gives_its_definition_or_nothing() -> None:
    assert _pairs(["MI"], TEXT) == [["MI", TEXT]]
    assert _pairs(["MI", " MI ", ""], "  ") == []
    assert _pairs([], TEXT) == []
    assert _pairs(["one", "two"], count=1) in ([["one", "two"]], [["two", "one"]])
