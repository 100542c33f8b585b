from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from nexus_vdb.threads import in_threads, one_blas_thread


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_products_stay_on_one_thread_until_the_last_user_leaves() -> None:
    before = blas_threads()
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with one_blas_thread():
            inside.set()
            go_on.wait()

    thread = threading.Thread(target=other)
    with one_blas_thread():
        assert blas_threads() == {1}
        thread.start()
        inside.wait()
    assert blas_threads() == {1}
    go_on.set()
    thread.join()
    assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_results_keep_their_order_and_an_error_is_raised(threads: int) -> None:
    squares = in_threads(lambda one: one * one, range(100), threads=threads)
    assert squares == [one * one for one in range(100)]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda one: 1 // one, np.arange(-3, 3).tolist(), threads=threads)
