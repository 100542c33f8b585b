"""`rows.arrow` of a segment: the columns that are read by people, mapped, checked before use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nexus_vdb.connectors._faiss_check import PAGE, Pages, Sums, corrupt, mapped_octets, touched
from nexus_vdb.connectors._faiss_halves import Mask
from nexus_vdb.connectors._faiss_write import COLUMNS
from nexus_vdb.ranking import Rows

__all__ = ["Table"]

_FEW = 64
"""Rows up to which single look-ups are faster than an Arrow `take` in every batch."""

_HEADER = 2 * PAGE
"""More than the header of a batch takes, or that of the file and of the first batch together."""

_FOOTER = 10
"""Bytes after the footer: its length, int32, and the magic word."""


class Table:
    """The Arrow batches of a segment; a column of a batch is checked before it is first used.

    Args:
        path: Of the file.
        rows: How many it has to have.
        sums: By file name; empty if there are none, in which case bounds alone are checked.

    Raises:
        StoreCorrupt: the file is missing or damaged.
    """

    def __init__(self, path: Path, rows: int, sums: Mapping[str, tuple[int, Sums]]) -> None:
        size, sums_here = sums.get(path.name, (None, None))
        octets = mapped_octets(path, size)
        self._path, self._base = path, octets.ctypes.data
        self._pages = Pages(path, octets, sums_here)
        self._validated = self._pages.summed
        self._rescued = False
        try:
            self._batches = list(_batches(octets, self._pages))
        except (pa.ArrowException, OSError) as error:
            raise corrupt(path, "is damaged") from error
        self.starts = np.cumsum([0] + [len(batch) for batch in self._batches])
        """First row of each batch, and the number of rows."""
        if self.starts[-1] != rows or any(one.schema != COLUMNS for one in self._batches):
            raise corrupt(path, "does not fit the manifest")
        self._checked: dict[tuple[str, int], Any] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def array(self, name: str, number: int) -> Any:
        """A column of a batch."""
        found = self._checked.get((name, number))
        if found is None:
            found = self._batches[number].column(name)
            for start, stop in self._extents(found):
                self._pages.need(start, stop)
            if not self._validated:
                self._validate(found)
            self._checked[name, number] = found
        return found

    def arrays(self, name: str) -> Iterator[Any]:
        """A column, batch by batch."""
        return (self.array(name, number) for number in range(len(self)))

    def batch(self, number: int, keep: Rows | None = None) -> Any:
        """A batch, or some of its rows."""
        columns = [self._column(name, number, some=keep is not None) for name in COLUMNS.names]
        batch = pa.RecordBatch.from_arrays(columns, schema=COLUMNS)
        return batch if keep is None else batch.take(pa.array(keep))

    def column(self, name: str, rows: Rows) -> list[Any]:
        """Values of a column, in the order of the rows."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        local = rows - self.starts[numbers]
        if len(rows) <= _FEW:
            places = zip(numbers.tolist(), local.tolist(), strict=True)
            arrays = {one: self._column(name, one, some=True) for one in set(numbers.tolist())}
            return [arrays[number][row].as_py() for number, row in places]
        values = np.empty(len(rows), dtype=object)
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            picked = self._column(name, number, some=True).take(pa.array(local[here]))
            values[here] = picked.to_numpy(zero_copy_only=False)
        return values.tolist()

    def _column(self, name: str, number: int, *, some: bool) -> Any:
        if some and self._rescued:  # what is damaged is not asked for
            return self._batches[number].column(name)
        return self.array(name, number)

    def let_go(self) -> None:
        """Hold nothing of the file in memory."""
        self._pages.let_go()

    def _extents(self, array: Any) -> list[tuple[int, int]]:
        starts = [(one.address - self._base, one.size) for one in array.buffers() if one]
        return [(start, start + size) for start, size in starts if size]

    def _validate(self, array: Any) -> None:
        try:
            array.validate(full=True)
        except pa.ArrowException as error:
            raise corrupt(self._path, f"is damaged: {error}") from error
        if array.null_count:
            raise corrupt(self._path, "is damaged: a value is missing")

    def rescue(self, progress: Callable[[int], None] | None = None) -> Mask:
        """Which rows are damaged, bool `[n]`; from now on others are read beside them."""
        bad = self._pages.bad(progress)
        masks = [self._damaged(batch, bad) for batch in self._batches]
        self._pages.trust()
        self._validated, self._rescued = False, self._pages.summed
        return np.concatenate(masks)

    def _damaged(self, batch: Any, bad: npt.NDArray[np.int64]) -> Mask:
        mask, rows = np.zeros(len(batch), dtype=bool), np.arange(len(batch))
        for array in batch.columns if len(bad) else ():
            _, fixed, *texts = array.buffers()
            size = 8 if pa.types.is_large_string(array.type) else 4
            starts = fixed.address - self._base + size * rows
            mask |= touched(bad, starts, starts + size * (1 + len(texts)))
            if texts and texts[0] is not None:
                ends = np.frombuffer(fixed, f"<i{size}", len(batch) + 1).astype(np.int64)
                ends += texts[0].address - self._base
                mask |= touched(bad, ends[:-1], ends[1:])
        return mask


def _batches(octets: npt.NDArray[np.uint8], pages: Pages) -> Iterator[Any]:
    size = len(octets)
    pages.need(max(0, size - PAGE), size)
    footer = int.from_bytes(bytes(octets[-_FOOTER:-6]), "little")
    pages.need(max(0, size - _FOOTER - footer), size)
    reader, end = pa.ipc.open_file(pa.py_buffer(octets)), 0
    for number in range(reader.num_record_batches):
        pages.need(end, min(end + _HEADER, size))
        batch = reader.get_batch(number)
        batch.validate()
        last = (one for one in batch.columns[-1].buffers() if one is not None and one.size)
        end = max(one.address + one.size for one in last) - octets.ctypes.data
        yield batch
