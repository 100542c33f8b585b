"""Training pairs out of texts that have no partner: a sentence, and what stands around it.

The inverse cloze task (Lee et al. 2019, arXiv:1906.00300). A sentence is much like a question or a
claim, and what stands around it like the passage that answers it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nexus_vdb.chunking import Span, sentences

__all__ = ["cloze_pairs"]

_SHORTEST, _LONGEST = 30, 300  # characters of a sentence that says something by itself
_BEFORE = 2  # sentences before it at most: what follows explains it oftener
_LEFT_IN = 0.1
"""Share of the pairs whose passage keeps the sentence, so that shared words are learned as well."""


def cloze_pairs(
    text: str, random: np.random.Generator, *, count: int = 1, characters: int = 1000
) -> list[tuple[str, str]]:
    """Sentences of a text, each with what stands around it.

    Args:
        text: Any; one of a single sentence gives nothing.
        random: Chooses.
        count: Sentences at most, all different.
        characters: Of a passage, about.
    """
    spans = [span for span in sentences(text, (0, len(text))) if span[0] < span[1]]
    told = [at for at, (start, end) in enumerate(spans) if _SHORTEST <= end - start <= _LONGEST]
    if len(spans) < 2 or not told:
        return []
    chosen = random.permutation(told)[:count]
    return [
        (text[slice(*spans[at])], _around(text, spans, int(at), random, characters))
        for at in chosen
    ]


def _around(
    text: str, spans: Sequence[Span], at: int, random: np.random.Generator, characters: int
) -> str:
    first = max(0, at - int(random.integers(_BEFORE + 1)))
    if at + 1 == len(spans):  # nothing follows
        first = min(first, at - 1)
    begin, left_in = spans[first][0], random.random() < _LEFT_IN
    passage = [
        text[slice(*span)]
        for place, span in enumerate(spans[first:], first)
        if span[1] - begin <= characters or place <= at + 1
        if left_in or place != at
    ]
    return " ".join(passage)
