"""Generators over batches as the stages of a job, each in a thread of its own where that pays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

__all__ = ["ahead", "pushed", "slices"]

T = TypeVar("T")

_PATIENCE = 0.05  # seconds between looks at whether the other side is still there


def ahead(items: Generator[T, None, None], *, depth: int = 2) -> Generator[T, None, None]:
    """The same items, made by a thread that works up to `depth` of them ahead of the reader.

    An error of the generator is raised where it is read, after the items before it. When the
    reader stops early (`close`, or an exception), so does the thread, after the item in hand.
    """

    def work(put: Callable[[T], None]) -> None:
        with closing(items):
            for item in items:
                put(item)

    return pushed(work, depth=depth)


def pushed(
    work: Callable[[Callable[[T], None]], None], *, depth: int = 2
) -> Generator[T, None, None]:
    """What a function puts, which runs in a thread: for such as know what they have by callbacks.

    Args:
        work: Calls its argument with each item; that call waits while `depth` of them wait, and
            raises when the reader has stopped. Errors: see `ahead`.
        depth: Items ahead of the reader.
    """
    feed = _Feed(work, depth)
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


class _Stopped(Exception):
    """The reader wants no more; never leaves this module."""


class _Feed(Generic[T]):
    def __init__(self, work: Callable[[Callable[[T], None]], None], depth: int) -> None:
        self._queue: Queue[T | _End] = Queue(depth)
        self._stopped = threading.Event()
        # Daemon: a second Ctrl-C has to end the process, whatever the thread is doing.
        self._thread = threading.Thread(target=self._work, args=(work,), daemon=True)
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

    def _work(self, work: Callable[[Callable[[T], None]], None]) -> None:
        error: BaseException | None = None
        try:
            work(self._put)
        except _Stopped:
            return
        except BaseException as caught:  # raised again on the reader's side
            error = caught
        with suppress(_Stopped):
            self._put(_End(error))

    def _put(self, item: T | _End) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_PATIENCE)
            except Full:
                continue
            return
        raise _Stopped
