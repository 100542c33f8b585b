"""`*.arrow`: files in Arrow's IPC format, as `pyarrow.feather` and polars write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow.fs import LocalFileSystem

from nexus_vdb.corpus import FieldMap, Row, RowFile, RowSource
from nexus_vdb.errors import SourceError

__all__ = ["ArrowSource"]


class ArrowSource(RowSource):
    """Rows of Arrow files, one record batch in memory at a time.

    Args:
        paths: Files, read in this order.
        fields: Which field means what.
        filesystem: A `pyarrow.fs.FileSystem`; the local one by default.
    """

    def __init__(
        self, paths: Sequence[str], fields: FieldMap | None = None, filesystem: Any = None
    ) -> None:
        self.fields = fields or FieldMap()
        self._paths = paths
        self._filesystem = filesystem or LocalFileSystem()

    def size(self) -> int | None:
        """None: the batches would have to be read."""
        return None

    def files(self) -> Iterator[RowFile]:
        """The files apart, so that a damaged one does not hide the others."""
        for path in self._paths:
            yield RowFile(path, partial(self._file, path))

    def rows(self) -> Iterator[Row]:
        """Every row of every file."""
        for path in self._paths:
            yield from self._file(path)

    def _file(self, path: str) -> Iterator[Row]:
        number = 0
        try:
            with self._filesystem.open_input_file(path) as file:
                if not file.size():
                    return
                reader = pa.ipc.open_file(file)
                for batch in range(reader.num_record_batches):
                    for value in reader.get_batch(batch).to_pylist():
                        number += 1
                        yield Row(path, number, -1, value)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{path} cannot be read: {error}, after row {number}") from error
