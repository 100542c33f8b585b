"""Pairs out of texts without a partner."""

from __future__ import annotations

import numpy as np
import pytest

from nexus_vdb.model.cloze import cloze_pairs

SENTENCES = [
    f"Sentence number {number} speaks of {word} at some length."
    for number, word in enumerate(("ferns", "moss", "lichen", "algae", "fungi", "reeds"))
]
TEXT = " ".join(SENTENCES)


def _pairs(text: str = TEXT, *, seed: int = 0, **options: int) -> list[tuple[str, str]]:
    return cloze_pairs(text, np.random.default_rng(seed), **options)


def test_a_sentence_stands_beside_its_neighbours() -> None:
    for seed in range(50):
        ((sentence, passage),) = _pairs(seed=seed)
        at = SENTENCES.index(sentence)
        neighbours = SENTENCES[max(0, at - 1) : at] + SENTENCES[at + 1 : at + 2]
        assert any(one in passage for one in neighbours)


def test_now_and_then_the_passage_keeps_the_sentence() -> None:
    kept = [sentence in passage for seed in range(400) for sentence, passage in _pairs(seed=seed)]
    assert 0.05 < np.mean(kept) < 0.15


def test_sentences_of_a_text_differ() -> None:
    pairs = _pairs(count=10)
    assert sorted(sentence for sentence, _ in pairs) == SENTENCES


def test_a_passage_is_no_longer_than_asked_for() -> None:
    passages = [passage for seed in range(100) for _, passage in _pairs(seed=seed, characters=150)]
    # What is taken out makes it shorter; the sentence after it is taken whatever its length.
    assert max(map(len, passages)) <= 150 + max(map(len, SENTENCES))


@pytest.mark.parametrize(
    "text", ["", "   ", "Only one sentence, though a rather long one.", "Short. Shorter. No."]
)
def test_a_text_that_says_too_little_gives_none(text: str) -> None:
    assert _pairs(text) == []


def test_no_partner_is_empty() -> None:
    assert _pairs(SENTENCES[0] + "\n\n   ") == []
