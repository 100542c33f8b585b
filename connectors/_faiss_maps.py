"""Pages of mapped files in a process's memory, where they count like memory of its own.

Whoever passes over a large file lets go of what is behind, so that the process stays small however
large the store is. The system keeps the pages while it has room: to read them again costs a tenth
of a microsecond each.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HELD", "let_go"]

HELD = 128 << 20
"""Bytes of a file that a pass over it may hold."""

_ADVICE = getattr(mmap, "MADV_DONTNEED", None)  # not everywhere


def let_go(array: npt.NDArray[Any]) -> None:
    """Take the whole pages of an array out of memory, if it lies in a mapped file."""
    mapped: Any = array
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if not isinstance(mapped, mmap.mmap) or _ADVICE is None:
        return
    start = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = start + array.nbytes - first
    if length > 0:
        mapped.madvise(_ADVICE, first, length)
