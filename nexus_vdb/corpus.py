"""A corpus of files: what every file source shares, and `open_corpus`, which chains them.

A source of another format subclasses `RowSource` and says how rows come out of a file.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from nexus_vdb.errors import ConfigError
from nexus_vdb.filesystems import find_files
from nexus_vdb.idset import IdSet
from nexus_vdb.interfaces import BadRow
from nexus_vdb.jsonvalue import json_value
from nexus_vdb.registry import source_class
from nexus_vdb.row_reader import RowReader
from nexus_vdb.rows import Block, FieldMap, Row, RowFile
from nexus_vdb.types import Document, Floats

__all__ = [
    "Block",
    "Corpus",
    "FieldMap",
    "IdSet",
    "Row",
    "RowFile",
    "RowSource",
    "json_value",
    "open_corpus",
]


class RowSource(ABC):
    """Meets `interfaces.Source` for anything that has rows.

    Attributes:
        fields: Which field means what.
    """

    fields: FieldMap

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row, in file order.

        Raises:
            SourceError: a file is missing, or damaged so that its other rows are lost.
        """

    def files(self) -> Iterator[RowFile]:
        """The files apart, for a source that can read the others where one is damaged."""
        yield RowFile("the corpus", self.rows)

    @abstractmethod
    def size(self) -> int | None:
        """Rows in the corpus if that is known without reading it, else None."""

    def estimate(self) -> int | None:
        """About as many rows as there are, where that is quickly told: to show progress."""
        return self.size()

    def read(self, *, batch_size: int, on_bad_row: BadRow) -> Iterator[list[Document]]:
        """Yield documents; see `interfaces.Source`.

        What is lost of a damaged file counts as one bad row; the other files are read.

        Raises:
            SourceError: no file can be read, or the first one has no id or text field at all.
        """
        reader = RowReader(self.fields, on_bad_row, with_vectors=False)
        for documents, _ in reader.batches(self.files(), batch_size):
            yield documents

    def read_with_vectors(
        self, *, batch_size: int, on_bad_row: BadRow
    ) -> Iterator[tuple[list[Document], Floats]]:
        """Yield documents and their ready-made vectors, float32 `[n, d]`, as the file has them.

        The first vector decides on d. A vector of another width, with a value that is not finite,
        or of nothing but zeros makes its row a bad one.

        Raises:
            ConfigError: `fields.vector` is not set.
            SourceError: as `read`, or the first file has no vector field.
        """
        if self.fields.vector is None:
            raise ConfigError(
                "no field is named as the one that holds vectors", hint="give --vector-field NAME"
            )
        reader = RowReader(self.fields, on_bad_row, with_vectors=True)
        yield from reader.batches(self.files(), batch_size)


class Corpus(RowSource):
    """Several sources, one after the other; an id may stand in one of them only."""

    def __init__(self, sources: Sequence[RowSource], fields: FieldMap) -> None:
        self.fields = fields
        self._sources = sources

    def rows(self) -> Iterator[Row]:
        """The rows of all sources."""
        for source in self._sources:
            yield from source.rows()

    def files(self) -> Iterator[RowFile]:
        """The files of all sources."""
        for source in self._sources:
            yield from source.files()

    def size(self) -> int | None:
        """The sum, if all sources know theirs."""
        return _sum(source.size() for source in self._sources)

    def estimate(self) -> int | None:
        """The sum, if all sources can tell."""
        return _sum(source.estimate() for source in self._sources)


def _sum(sizes: Iterable[int | None]) -> int | None:
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def open_corpus(
    specs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    fields: FieldMap | None = None,
) -> Corpus:
    """One source for all files that the specs name, in sorted order, each file once.

    Args:
        specs: Files, folders, globs or URLs; see `filesystems.find_files`.
        fields: Which field means what.

    Raises:
        SourceError: a spec names nothing.
        ConfigError: a file's suffix has no source.
        MissingExtra: a URL needs fsspec, which is not installed.
    """
    fields = fields or FieldMap()
    named = [specs] if isinstance(specs, str | os.PathLike) else specs
    kinds = [(source_class(file.path), file) for file in find_files(named)]
    sources = []
    for (kind, _), group in groupby(kinds, key=lambda pair: (pair[0], pair[1].filesystem)):
        files = [file for _, file in group]
        sources.append(kind([file.path for file in files], fields, files[0].filesystem))
    return Corpus(sources, fields)
