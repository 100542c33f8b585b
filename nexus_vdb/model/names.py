"""Training pairs out of glossaries and ontologies: what a thing is called, and what it is.

Rare words are most of what a small model does not know of a field. A list of its things, each with
its names and a definition, has more of them in a line than its prose has in a page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["name_pairs"]

_SEVERAL = 0.4  # of the partners are several names in a row
_MOST = 5


def name_pairs(
    names: Sequence[str], text: str, random: np.random.Generator, *, count: int = 2
) -> list[tuple[str, str]]:
    """Pairs of two names of a thing, and of a name and what is said of it.

    Args:
        names: Of one thing; equal ones count once.
        text: What it is; may be empty.
        random: Draws the names.
        count: Pairs of each kind, where there are names enough.

    Returns:
        Different pairs; the partner of a name is the text, another name, or up to five in a row.
    """
    different = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    pairs = [(name, text) for name in _drawn(different, count, random) if text.strip()]
    for _ in range(count if len(different) > 1 else 0):
        first, *others = _drawn(different, len(different), random)
        several = random.integers(1, _MOST + 1) if random.random() < _SEVERAL else 1
        pairs.append((first, "; ".join(others[:several])))
    return list(dict.fromkeys(pairs))


def _drawn(names: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    return [names[place] for place in random.permutation(len(names))[:count]]
