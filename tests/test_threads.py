from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from nexus_vdb.threads import in_threads, one_blas_thread


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_products_stay_on_the_main_thread_for_a_while() -> None:
    before = blas_threads()
    with one_blas_thread():
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_other_threads_change_nothing() -> None:
    before, found = blas_threads(), []

    def other() -> None:
        with one_blas_thread():
            found.append(blas_threads())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert [*found, blas_threads()] == [before, before]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_keep_their_order_and_an_error_is_raised(threads: int) -> None:
    squares = in_threads(lambda one: one * one, range(100), threads=threads)
    assert squares == [one * one for one in range(100)]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda one: 1 // one, np.arange(-3, 3).tolist(), threads=threads)
