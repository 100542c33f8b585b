"""Checksums of the FAISS store: no page of a file is used before it was compared with its own.

A segment is written together with the CRC-32 of each 4 KiB page of its files:

    sums-1a2b3c4d.bin     a line of JSON: the bytes of each file, by name
                          then, file by file, the sums of its pages (uint32)

Files that are written at once bear the sum of their content in their names, as this one does.
What was written before there were sums (formats 1 and 2) is checked for sizes and bounds alone.
"""

from __future__ import annotations

import io
import json
import os
import re
import threading
import zlib
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from nexus_vdb.connectors._faiss_maps import HELD, let_go
from nexus_vdb.errors import StoreCorrupt
from nexus_vdb.folders import naming, write_durably
from nexus_vdb.ranking import Rows

__all__ = [
    "PAGE",
    "Mapped",
    "Pages",
    "SummedFile",
    "Sums",
    "bad_pages",
    "check_named",
    "corrupt",
    "mapped_octets",
    "page_sums",
    "read_named",
    "read_sums",
    "sum_name",
    "touched",
    "write_sums",
]

PAGE = 4096
"""Bytes: one row of vectors lies on one page or two, and a sum takes a microsecond."""

_HEADER = 65_536
"""Bytes that the line of JSON is far from filling."""

Sums: TypeAlias = npt.NDArray[np.uint32]
_T = TypeVar("_T", bound=np.generic)

_NAMED = re.compile(r"^(?:sums|[a-z]+-\d{8,})-([0-9a-f]{8})\.[a-z0-9]+$")


def corrupt(path: Path, what: str) -> StoreCorrupt:
    """The error for a file that cannot be used."""
    store = path.parents[2] if path.parent.parent.name == "segments" else path.parent
    return StoreCorrupt(
        f"{path} {what}",
        hint=f'restore it; or save the rest with: nexus-vdb copy "faiss://{store}?rescue" NEW_URL, '
        "and ingest into that",
    )


# Writing


class SummedFile(io.BufferedWriter):
    """A new file, whose pages are summed on their way into it."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.path = path
        self.size = 0
        self._sums = array("I")
        self._open = 0

    def write(self, data: Any, /) -> int:
        """Append bytes, or whatever lies in memory without gaps."""
        view = memoryview(data)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        with naming(self.path):
            super().write(view)
        rest = view[: -self.size % PAGE]
        self._add(rest)
        whole = len(view) - (len(view) - len(rest)) % PAGE
        pages = range(len(rest), whole, PAGE)
        self._sums.extend([zlib.crc32(view[page : page + PAGE]) for page in pages])
        self.size += whole - len(rest)
        self._add(view[whole:])
        return len(view)

    def _add(self, part: memoryview) -> None:
        """Sum what does not go beyond the page that is begun."""
        if len(part):
            self._open, self.size = zlib.crc32(part, self._open), self.size + len(part)
            if self.size % PAGE == 0:
                self._sums.append(self._open)
                self._open = 0

    def settle(self) -> None:
        """On disk when it returns."""
        with naming(self.path):
            self.flush()
            os.fsync(self.fileno())

    def close(self) -> None:
        """What is still held goes to the system first."""
        with naming(self.path):
            super().close()

    @property
    def sums(self) -> Sums:
        """Of its pages, the last and shorter one included."""
        rest = [self._open] if self.size % PAGE else []
        return np.array(self._sums + array("I", rest), dtype="<u4")


def page_sums(data: Any) -> Sums:
    """The sum of each page of some bytes."""
    view = memoryview(data)
    return np.array(
        [zlib.crc32(view[start : start + PAGE]) for start in range(0, len(view), PAGE)], "<u4"
    )


def write_sums(folder: Path, sums: Mapping[str, tuple[int, Sums]]) -> str:
    """Write the bytes and the sums of a segment's files; returns the name of the file."""
    sizes = json.dumps({name: size for name, (size, _) in sums.items()})
    content = b"".join([sizes.encode(), b"\n", *(one.tobytes() for _, one in sums.values())])
    name = sum_name("sums", content, ".bin")
    write_durably(folder / name, content)
    return name


def sum_name(stem: str, content: bytes, suffix: str) -> str:
    """A file name that bears the sum of what is to be written to it."""
    return f"{stem}-{zlib.crc32(content):08x}{suffix}"


# Reading


def read_named(path: Path) -> bytes:
    """The content of a small file.

    Raises:
        StoreCorrupt: it is missing, or is not what its name says.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error
    check_named(path, content)
    return content


def check_named(path: Path, content: Any) -> None:
    """Compare a content with the sum in the name of its file, if there is one.

    Raises:
        StoreCorrupt: it is another.
    """
    found = _NAMED.match(path.name)
    if found and zlib.crc32(content) != int(found[1], 16):
        raise corrupt(path, "is damaged")


def read_sums(path: Path) -> dict[str, tuple[int, Sums]]:
    """For each file of a segment its bytes and the sums of its pages.

    Raises:
        StoreCorrupt: the file of the sums is missing or damaged.
    """
    octets = mapped_octets(path)
    check_named(path, octets)
    header = octets[:_HEADER].tobytes().partition(b"\n")[0]
    found, start = {}, len(header) + 1
    for name, size in json.loads(header).items():
        pages = -(-size // PAGE)
        found[name] = size, np.frombuffer(octets.data, "<u4", pages, start)
        start += 4 * pages
    return found


class Pages:
    """The pages of one file in memory, each compared with its sum before its first use.

    Args:
        path: Named in errors.
        data: uint8 `[size]`.
        sums: Of its pages; None if there are none to compare with.
    """

    def __init__(self, path: Path, data: npt.NDArray[np.uint8], sums: Sums | None) -> None:
        self.path = path
        self.summed = sums is not None
        """Whether there are sums at all."""
        self._data = data
        self._sums = np.zeros(0, "<u4") if sums is None else sums
        self._trusted = np.zeros(len(self._sums), dtype=bool)
        self._left = len(self._sums)
        self._lock = threading.Lock()

    def trust(self) -> None:
        """Compare no more: whoever calls this has looked at all pages."""
        self._left = 0

    def need(self, start: int, stop: int) -> None:
        """Make sure of the bytes from `start` to `stop`.

        Raises:
            StoreCorrupt: a page is not as it was written.
        """
        if self._left:
            self._compare(np.arange(start // PAGE, -(-stop // PAGE)))

    def need_rows(self, rows: Rows, width: int) -> None:
        """Make sure of some rows, each `width` bytes long."""
        if not self._left or not len(rows):
            return
        first, most = rows // max(1, PAGE // width), 1  # of pages that a row lies on
        last = first
        if PAGE % width:
            first, last = rows * width // PAGE, (rows * width + width - 1) // PAGE
            most = (width - 2) // PAGE + 2
        for step in range(most):
            pages = np.minimum(first + step, last)
            # Nearly all have been compared before: only the others are worth sorting.
            unseen = pages[~self._trusted[pages]]
            if len(unseen):
                self._compare(np.unique(unseen))

    def need_all(self) -> None:
        """Make sure of the whole file."""
        step = HELD // PAGE
        for first in range(0, len(self._trusted) if self._left else 0, step):
            self._compare(np.arange(first, min(first + step, len(self._trusted))))
            let_go(self._data[first * PAGE : (first + step) * PAGE])

    def let_go(self) -> None:
        """Hold nothing of the file in memory."""
        let_go(self._data)

    def _compare(self, pages: npt.NDArray[np.int64]) -> None:
        pages = pages[~self._trusted[pages]]
        for page, expected in zip(pages.tolist(), self._sums[pages].tolist(), strict=True):
            start, stop = page * PAGE, page * PAGE + PAGE
            if zlib.crc32(self._data[start:stop].data) != expected:
                raise corrupt(self.path, f"is damaged between bytes {start} and {stop}")
        with self._lock:
            self._left -= int(np.count_nonzero(~self._trusted[pages]))
            self._trusted[pages] = True

    def bad(self, progress: Callable[[int], None] | None = None) -> npt.NDArray[np.int64]:
        """Every page that is not as it was written."""
        return bad_pages(self._data, self._sums, progress)


def bad_pages(
    data: npt.NDArray[np.uint8], sums: Sums, progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.int64]:
    """Numbers of the pages that differ from their sums, rising.

    Args:
        data: uint8 `[size]`.
        sums: Of the pages.
        progress: Told how many bytes were read since it was told before.
    """
    found, step = [], 4096
    for first in range(0, len(sums), step):
        part = data[first * PAGE : (first + step) * PAGE]
        found.append(np.flatnonzero(page_sums(part) != sums[first : first + step]) + first)
        if progress is not None:
            progress(len(part))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def touched(pages: npt.NDArray[np.int64], starts: Rows, stops: Rows) -> npt.NDArray[np.bool_]:
    """Which ranges of bytes lie on one of the pages at least, bool `[n]`."""
    after = np.searchsorted(pages, (stops - 1) // PAGE, side="right")
    return np.asarray(np.searchsorted(pages, starts // PAGE) < after)


class Mapped(Generic[_T]):
    """The rows of one mapped file; each page is compared with its sum before its first use.

    Args:
        path: Of the file.
        kind: Of a value.
        shape: Of the whole.
        sums: By file name; empty if there are none.

    Raises:
        StoreCorrupt: the file is missing, or not as large as it should be.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        shape: tuple[int, ...],
        sums: Mapping[str, tuple[int, Sums]],
    ) -> None:
        expected = int(np.dtype(kind).itemsize * np.prod(shape))
        octets = mapped_octets(path, expected)
        self.pages = Pages(path, octets, sums[path.name][1] if path.name in sums else None)
        self._array: npt.NDArray[_T] = octets.view(kind).reshape(shape)
        self._row = self._array.strides[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return self._array.shape

    def at(self, rows: Rows | slice, width: int | None = None) -> npt.NDArray[_T]:
        """Some rows, and of each the first `width` values."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self._array))
            self.pages.need(start * self._row, stop * self._row)
        else:
            self.pages.need_rows(rows, self._row)
            if width is None:
                return self._array.take(rows, axis=0)  # short rows in a tenth of the time
        return self._array[rows] if width is None else self._array[rows, :width]

    def let_go(self) -> None:
        """Hold nothing of the file in memory."""
        self.pages.let_go()

    def rescue(self, progress: Callable[[int], None] | None = None) -> npt.NDArray[np.bool_]:
        """Which rows are damaged, bool `[n]`; from now on others are read beside them."""
        starts = np.arange(len(self._array)) * self._row
        mask = touched(self.pages.bad(progress), starts, starts + self._row)
        self.pages.trust()
        return mask

    def whole(self) -> npt.NDArray[_T]:
        """All rows."""
        self.pages.need_all()
        return self._array


def mapped_octets(path: Path, expected: int | None = None) -> npt.NDArray[np.uint8]:
    """A file as uint8 `[size]`, mapped.

    Raises:
        StoreCorrupt: it is missing or of another size than expected.
    """
    try:
        size = path.stat().st_size
        if expected is not None and size != expected:
            raise corrupt(path, f"has {size} bytes instead of {expected}")
        return np.asarray(np.memmap(path, np.uint8, "r")) if size else np.zeros(0, np.uint8)
    except FileNotFoundError as error:
        raise corrupt(path, "is missing") from error
