"""What is asked of a search beyond its query, and how the hits of a store are made to fit it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nexus_vdb.errors import ConfigError
from nexus_vdb.types import Hit

__all__ = ["Request", "answer"]

Fetch = Callable[[Sequence[int], int], list[list[Hit]]]
"""The best hits, so many, of some of the queries; fewer only where there are no more."""

_PAGES = 1000
"""Hits that pages are cut from: all pages up to here come from one and the same list."""

_CHUNKS, _GROWTH = 4, 4  # hits that are fetched for each document, and how that grows


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a search.

    Attributes:
        k: Hits, or documents where they are grouped.
        offset: How many to leave out before these; None for a search that has no pages.
        group_by: "document" to count documents instead of chunks.
        group_size: Best chunks of each document.
        score_threshold: Leave out hits with a lower score.
        without: Documents to leave out.
        spare: Hits that those documents may take.

    Raises:
        ConfigError: a value cannot be used.
    """

    k: int = 10
    offset: int | None = None
    group_by: str | None = None
    group_size: int = 1
    score_threshold: float | None = None
    without: frozenset[str] = frozenset()
    spare: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("k", self.k, 1),
            ("offset", self.offset or 0, 0),
            ("group_size", self.group_size, 1),
        ):
            if value < least:
                raise ConfigError(f"Invalid {name}={value}; valid: {least} or more")
        if self.group_by not in (None, "document"):
            raise ConfigError(f"Invalid group_by={self.group_by}; valid: document")
        if self.group_size > 1 and self.group_by is None:
            raise ConfigError(f"Invalid group_size={self.group_size} without group_by='document'")
        threshold = self.score_threshold
        if threshold is not None and not -1 <= threshold <= 1:
            raise ConfigError(f"Invalid score_threshold={threshold}; valid: -1 to 1")

    @property
    def depth(self) -> int:
        """How many hits to ask for at first."""
        depth = self._end * (_CHUNKS if self.group_by else 1)
        if self.offset is not None:
            rounded = _PAGES
            while rounded < depth:
                rounded *= _GROWTH
            depth = rounded
        return depth + self.spare

    @property
    def _end(self) -> int:
        return self.k + (self.offset or 0)

    def page(self, hits: Sequence[Hit]) -> list[Hit]:
        """What is asked for of these hits; chunks of one document stand together."""
        kept = [hit for hit in hits if self._wanted(hit)]
        start = self.offset or 0
        if self.group_by is None:
            return kept[start : self._end]
        groups: dict[str, list[Hit]] = {}
        for hit in kept:
            groups.setdefault(hit.document_id, []).append(hit)
        chosen = list(groups.values())[start : self._end]
        return [hit for group in chosen for hit in group[: self.group_size]]

    def lacks(self, hits: Sequence[Hit]) -> bool:
        """Whether further hits could belong to the page."""
        if hits and not self._reaches(hits[-1]):
            return False
        kept = [hit.document_id for hit in hits if self._wanted(hit)]
        return len(set(kept) if self.group_by else kept) < self._end

    def _wanted(self, hit: Hit) -> bool:
        return self._reaches(hit) and hit.document_id not in self.without

    def _reaches(self, hit: Hit) -> bool:
        return self.score_threshold is None or hit.score >= self.score_threshold


def answer(request: Request, queries: int, fetch: Fetch) -> list[list[Hit]]:
    """The page of each query; hits are fetched until it is full, or there are no more.

    Args:
        request: What is asked for.
        queries: How many there are.
        fetch: Searches for some of them, by number.
    """
    pages: list[list[Hit]] = [[] for _ in range(queries)]
    rows, depth = list(range(queries)), request.depth
    while rows:
        unfinished = []
        for row, hits in zip(rows, fetch(rows, depth), strict=True):
            pages[row] = request.page(hits)
            if len(hits) >= depth and request.lacks(hits):
                unfinished.append(row)
        rows, depth = unfinished, depth * _GROWTH
    return pages
