"""Vectors for pairs of neighbouring pieces: which pairs have one, and where it is found."""

from __future__ import annotations

import numpy as np
import torch

from nexus_vdb.model.bigrams import Bigrams
from nexus_vdb.model.data import TokenTable


def table(*texts: list[int]) -> TokenTable:
    offsets = np.cumsum([0, *map(len, texts)])
    return TokenTable(np.array([id_ for text in texts for id_ in text], np.uint16), offsets)


def found(bigrams: Bigrams, *ids: int) -> list[bool]:
    with torch.no_grad():
        return [bool(one) for one in bigrams(torch.tensor([ids])).any(-1)[0]]


def test_pairs_within_texts_have_vectors() -> None:
    bigrams = Bigrams(1000, 4)
    assert not bigrams.started
    bigrams.start([table([7, 8, 9], [], [9, 5]), table([6, 6])])
    assert bigrams.started
    assert int((bigrams.keys >= 0).sum()) == 4
    torch.nn.init.ones_(bigrams.table.weight)
    assert found(bigrams, 7, 8, 9) == [False, True, True]
    assert found(bigrams, 9, 9, 5) == [False, False, True]  # 9, 9 stand in two texts
    assert found(bigrams, 8, 7) == [False, False]
    assert found(bigrams, 5, 6, 6, 0, 0) == [False, False, True, False, False]


def test_a_slot_belongs_to_its_most_frequent_pair() -> None:
    random = np.random.default_rng(0)
    often = [[int(a), int(b)] for a, b in random.integers(5, 60_000, (50, 2))]
    seldom = [[int(a), int(b)] for a, b in random.integers(5, 60_000, (5000, 2))]
    bigrams = Bigrams(4000, 4)
    bigrams.start([table(*seldom, *often, *often)])
    torch.nn.init.ones_(bigrams.table.weight)
    assert sum(found(bigrams, *pair)[1] for pair in often) >= 49
    # Half have a slot of their own, and nothing is found in the slot of another.
    assert 2000 < sum(found(bigrams, *pair)[1] for pair in seldom) < 3500
    others = random.integers(5, 60_000, (2000, 2))
    assert not any(found(bigrams, int(a), int(b))[1] for a, b in others)


def test_each_pair_has_its_own_vector() -> None:
    bigrams = Bigrams(1000, 4)
    bigrams.start([table([7, 8, 9])])
    torch.nn.init.normal_(bigrams.table.weight)
    with torch.no_grad():
        vectors = bigrams(torch.tensor([[7, 8, 9], [1, 7, 8]]))
    assert torch.equal(vectors[0, 1], vectors[1, 2])
    assert not torch.equal(vectors[0, 1], vectors[0, 2])
