"""Generators over batches as the stages of a job, each in a thread of its own where that pays."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

__all__ = ["ahead", "slices"]

T = TypeVar("T")

_PATIENCE = 0.05  # seconds between looks at whether the other side is still there


def ahead(items: Generator[T, None, None], *, depth: int = 2) -> Generator[T, None, None]:
    """The same items, made by a thread that works up to `depth` of them ahead of the reader.

    An error of the generator is raised where it is read, after the items before it. When the
    reader stops early (`close`, or an exception), so does the thread, after the item in hand.
    """
    feed = _Feed(items, depth)
    try:
        yield from feed
    finally:
        feed.stop()


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class _End:
    """Closes a feed; with the error that ended it, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Feed(Generic[T]):
    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._queue: Queue[T | _End] = Queue(depth)
        self._stopped = threading.Event()
        # Daemon: a second Ctrl-C has to end the process, whatever the thread is doing.
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while not isinstance(item := self._queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def stop(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(_PATIENCE)

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return

    def _work(self, items: Generator[T, None, None]) -> None:
        error: BaseException | None = None
        try:
            with closing(items):
                for item in items:
                    if not self._put(item):
                        break
        except BaseException as caught:  # raised again on the reader's side
            error = caught
        self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_PATIENCE)
            except Full:
                continue
            return True
        return False
