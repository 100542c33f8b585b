"""JSON Lines: one object a line, UTF-8, as it is or compressed by gzip or zstd."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from pyarrow.fs import LocalFileSystem

from nexus_vdb.corpus import FieldMap, Row, RowFile, RowSource
from nexus_vdb.errors import SourceError
from nexus_vdb.filesystems import display_name
from nexus_vdb.jsonvalue import json_object
from nexus_vdb.rows import TOO_LONG

__all__ = ["JsonlSource"]

_BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 16  # small, for what is in it is lost if the file ends too early
_COMPRESSED = {".gz", ".zst", ".bz2", ".lz4", ".br"}
_DAMAGE = (OSError, EOFError, zlib.error)
_LINE_LIMIT = 128 << 20  # a longer line is refused, for it would have to fit in memory
_KEPT = 4096  # bytes of a refused longer line that are handed on


class JsonlSource(RowSource):
    """Files of one JSON object a line; blank lines are passed over, but counted as rows.

    Args:
        paths: Files, read in this order.
        fields: Which field means what.
        filesystem: A `pyarrow.fs.FileSystem`; the local one by default.
    """

    def __init__(
        self, paths: Sequence[str], fields: FieldMap | None = None, filesystem: Any = None
    ) -> None:
        self.fields = fields or FieldMap()
        self._paths = [str(path) for path in paths]
        self._filesystem = filesystem or LocalFileSystem()

    def size(self) -> int | None:
        """None: the lines would have to be counted."""
        return None

    def estimate(self) -> int | None:
        """Rows, by the length of the first ones; None for compressed and remote files."""
        if self._filesystem.type_name != "local" or any(
            PurePath(path).suffix.lower() in _COMPRESSED for path in self._paths
        ):
            return None
        try:
            return sum(self._estimate(path) for path in self._paths)
        except OSError:
            return None

    def _estimate(self, path: str) -> int:
        with self._filesystem.open_input_file(path) as file:
            size, head = file.size(), file.read(_BUFFER)
        return round(size * max(head.count(b"\n"), 1) / len(head)) if head else 0

    def rows(self) -> Iterator[Row]:
        """One row for each line that is not blank."""
        for path in self._paths:
            yield from self._file(path)

    def files(self) -> Iterator[RowFile]:
        """The files apart."""
        for path in self._paths:
            yield RowFile(display_name(self._filesystem, path), partial(self._file, path))

    def _file(self, path: str) -> Iterator[Row]:
        name = display_name(self._filesystem, path)
        number = offset = 0
        try:
            gzipped = path.lower().endswith(".gz")
            with (
                self._filesystem.open_input_stream(
                    path, compression=None if gzipped else "detect"
                ) as stream,
                _line_reader(stream, gzipped=gzipped) as lines,
            ):
                while line := lines.readline(_LINE_LIMIT):
                    number += 1
                    length = len(line)
                    if length == _LINE_LIMIT and not line.endswith(b"\n"):
                        length += _skip_line(lines)
                        reason = f"{TOO_LONG} {_LINE_LIMIT} bytes"
                        yield Row(name, number, offset, None, line[:_KEPT], reason)
                    elif row := _row(name, number, offset, line):
                        yield row
                    offset += length
        except _DAMAGE as error:
            reason = str(error).partition("\n")[0]
            raise SourceError(
                f"{name} cannot be read after row {number}: {reason}"
                if number
                else f"{name} cannot be read: {reason}"
            ) from error


def _line_reader(stream: Any, *, gzipped: bool) -> io.BufferedIOBase:
    # Python's gzip gives every byte before a truncation, where Arrow's drops a buffer of them.
    return gzip.GzipFile(fileobj=stream) if gzipped else io.BufferedReader(stream, _BUFFER)


def _row(name: str, number: int, offset: int, line: bytes) -> Row | None:
    """The row of a line; None for a blank one."""
    content = line.removeprefix(_BOM) if number == 1 else line
    content = content.strip()
    if not content:
        return None
    value, problem = json_object(content)
    return Row(name, number, offset, value, content, problem)


def _skip_line(lines: io.BufferedIOBase) -> int:
    """Pass over the rest of a line; how many bytes that was."""
    skipped = 0
    while part := lines.readline(_BUFFER):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped
