from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from nexus_vdb.stages import ahead, slices


def count(
    limit: int, made: list[int], error: BaseException | None = None
) -> Generator[int, None, None]:
    try:
        for number in range(limit):
            made.append(number)
            yield number
        if error is not None:
            raise error
    finally:
        made.append(-1)


def test_items_come_in_order() -> None:
    assert list(ahead(count(50, []), depth=3)) == list(range(50))
    assert list(ahead(count(0, []))) == []


def test_an_error_comes_after_the_items_before_it() -> None:
    items = ahead(count(3, [], KeyError("lost")))
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(KeyError, match="lost"):
        next(items)


def test_closing_early_ends_thread_and_generator() -> None:
    made: list[int] = []
    before = threading.active_count()
    items = ahead(ahead(count(10_000, made)))
    assert next(items) == 0
    assert threading.active_count() == before + 2
    items.close()
    assert threading.active_count() == before
    assert made[-1] == -1
    assert len(made) < 20


def test_the_thread_does_not_run_away() -> None:
    made: list[int] = []
    items = ahead(count(10_000, made), depth=2)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(made) <= 5 + 2 + 1
    items.close()


def test_slices() -> None:
    assert list(slices([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(slices([], 2)) == []
