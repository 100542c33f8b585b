"""Work shared out over threads, each of which computes by itself.

A matrix product that BLAS spreads over threads waits for the slowest of them; beside other work
on the machine many small ones took twenty times as long. Here every thread has products of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

__all__ = ["in_threads", "one_blas_thread"]

T = TypeVar("T")
R = TypeVar("R")


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: some milliseconds


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Matrix products stay on the thread that asks for them, which for this is the main thread.

    Elsewhere nothing is changed: the number is one for the whole process, and OpenBLAS does not
    take it reliably from several threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


def in_threads(function: Callable[[T], R], items: Sequence[T], *, threads: int) -> list[R]:
    """What a function makes of each item, in order; on the caller's thread if one is enough."""
    if threads < 2 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))
