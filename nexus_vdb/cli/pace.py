"""How long the rest of a job will take."""

from __future__ import annotations

import time
from collections import deque

__all__ = ["Pace"]

_APART, _KEPT = 1.0, 60  # seconds between two looks at what is done; looks that count


class Pace:
    """The rate of the last minute or so, to be told of progress as it is made.

    A job that goes on from where another ended begins with much done: that was not its work.
    """

    def __init__(self) -> None:
        self._looks = deque([(time.monotonic(), 0)], maxlen=_KEPT)

    def left(self, done: int, total: int) -> str | None:
        """The time that the rest will take, as hours:minutes:seconds; None while it is unknown."""
        now = time.monotonic()
        if now - self._looks[-1][0] >= _APART:
            self._looks.append((now, done))
        # The first look knows nothing of what an earlier run had done: it soon counts no more.
        started, before = self._looks[1 if len(self._looks) > 2 else 0]
        if done <= before:
            return None
        left = round((now - started) * max(total - done, 0) / (done - before))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
