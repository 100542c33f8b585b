"""Rows as they come out of files: what sources of rows make, and `row_reader` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nexus_vdb.types import Floats

__all__ = ["TOO_LONG", "Block", "FieldMap", "Row", "RowFile", "duplicate"]

TOO_LONG = "line longer than"
"""How the reason begins for which a line is refused that would not fit in memory."""


@dataclass(frozen=True, slots=True)
class FieldMap:
    """Which fields of a row mean what; all others become metadata.

    Attributes:
        id: A string that is not empty, or an integer.
        text: A string that is not blank.
        title: Need not be there; used where it is a string, and kept in the metadata as well.
        vector: Ready-made vectors, for `read_with_vectors`; left out of the metadata.
    """

    id: str = "id"
    text: str = "text"
    title: str = "title"
    vector: str | None = None


class Row(NamedTuple):
    """One row as it comes out of a file.

    Attributes:
        file: Path or URL.
        number: From 1.
        offset: In bytes of the uncompressed file; -1 where the format has none.
        value: Python values by field name; None if the row is unreadable.
        raw: As it stands in the file; columnar formats leave it empty.
        problem: Why `value` is None.
    """

    file: str
    number: int
    offset: int
    value: Mapping[str, Any] | None
    raw: bytes = b""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one file that come as columns.

    Attributes:
        file: Path or URL.
        number: Of the first row, from 1.
        columns: As many values by field name for each; numbers may be an array `[n, d]`.
    """

    file: str
    number: int
    columns: Mapping[str, Sequence[Any] | Floats]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def rows(self) -> Iterator[Row]:
        """The rows one by one."""
        for number, values in enumerate(zip(*self.columns.values(), strict=True), self.number):
            yield Row(self.file, number, -1, dict(zip(self.columns, values, strict=True)))

    def parts(self, size: int) -> Iterator[Block]:
        """Blocks of at most so many rows."""
        if len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            columns = {name: some[start : start + size] for name, some in self.columns.items()}
            yield Block(self.file, self.number + start, columns)


class RowFile(NamedTuple):
    """A file whose damage ends the read of this file only.

    Attributes:
        name: Path or URL.
        rows: Opens it. Blocks are quicker to read, and all of one file.
        uniform: A field that is needed, but in none of its first rows, is a mistake of the caller.
    """

    name: str
    rows: Callable[[], Iterator[Row | Block]]
    uniform: bool = True


def duplicate(key: str) -> str:
    """The reason for which a second row of an id is refused."""
    return f"duplicate id {key!r}"
