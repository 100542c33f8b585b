from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from nexus_vdb.garbage import rare_collections


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_collections_are_rare_until_the_end_even_of_an_error() -> None:
    gc.set_threshold(700, 10, 10)
    with pytest.raises(ValueError), rare_collections():
        assert gc.get_threshold()[0] > 700
        raise ValueError
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("chosen", [(0, 10, 10), (10**9, 1000, 1000)])
def test_what_somebody_else_chose_stays(chosen: tuple[int, int, int]) -> None:
    gc.set_threshold(*chosen)
    with rare_collections():
        assert gc.get_threshold() == chosen
    assert gc.get_threshold() == chosen
