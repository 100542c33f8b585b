"""Which of the texts found near an anchor are good hard negatives.

A text that scores almost as high as the anchor's own partner is more likely an unlabelled positive
than a negative, so the partner's score sets the limit: positive-aware mining of NV-Retriever
(Moreira et al. 2024, arXiv:2407.15831).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Candidate", "Tally", "choose_negatives"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text found near an anchor.

    Attributes:
        document: Id of what it is a part of: a long partner is found by any of its chunks.
        text: The chunk itself.
        score: Its cosine with the anchor.
    """

    document: str
    text: str
    score: float


@dataclass(slots=True)
class Tally:
    """What became of the candidates.

    Attributes:
        anchors: Pairs looked at.
        candidates: Texts found for them, in all.
        partners: Thrown away: of a text that stands beside the same anchor in some pair.
        too_near: Thrown away: over `share` of the partner's score.
        within_margin: Thrown away: less than `margin` below the partner's score.
        surplus: Good, but there were enough better ones.
        kept: Negatives written.
        without: Anchors that got none.
    """

    anchors: int = 0
    candidates: int = 0
    partners: int = 0
    too_near: int = 0
    within_margin: int = 0
    surplus: int = 0
    kept: int = 0
    without: int = 0


def choose_negatives(
    candidates: Sequence[Candidate],
    *,
    partners: set[str],
    positive: float,
    count: int,
    share: float,
    margin: float,
    tally: Tally,
) -> list[str]:
    """The hardest texts that are still believed to be negatives.

    Args:
        candidates: What was found near the anchor, in any order.
        partners: Ids of the documents known to belong to the anchor.
        positive: Score of the anchor with its partner.
        count: Negatives wanted.
        share: A negative scores below this share of the positive.
        margin: A negative scores at least this much below the positive.
        tally: Counts what is kept and what is thrown away.
    """
    good = []
    for one in sorted(candidates, key=lambda one: -one.score):
        if one.document in partners:
            tally.partners += 1
        elif one.score >= share * positive:
            tally.too_near += 1
        elif one.score > positive - margin:
            tally.within_margin += 1
        else:
            good.append(one.text)
    tally.anchors += 1
    tally.candidates += len(candidates)
    tally.kept += min(count, len(good))
    tally.surplus += max(0, len(good) - count)
    tally.without += not good
    return good[:count]
