"""Rows to documents: what every file source shares, and `open_corpus`, which chains them.

A source of another format subclasses `RowSource` and says how rows come out of a file; which row
is a document, a bad row or a duplicate is decided here, once.
"""

from __future__ import annotations

import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.filesystems import find_files
from nexus_vdb.interfaces import BadRow
from nexus_vdb.jsonvalue import json_value
from nexus_vdb.registry import source_class
from nexus_vdb.types import Document, Floats

__all__ = ["Corpus", "FieldMap", "IdSet", "Row", "RowSource", "json_value", "open_corpus"]

_BATCH_CHARACTERS = 4_000_000  # a batch of long documents ends early, so that memory stays bounded
_HEAD = 100  # rows in which a field has to turn up once, if the file has it at all


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

    @abstractmethod
    def size(self) -> int | None:
        """Rows in the corpus if that is known without reading it, else None."""

    def read(self, *, batch_size: int, on_bad_row: BadRow) -> Iterator[list[Document]]:
        """Yield documents; see `interfaces.Source`.

        Raises:
            SourceError: a file is missing, damaged, or has no id or text field at all. What was
                read before is yielded first.
        """
        reader = _Reader(self.fields, on_bad_row, with_vectors=False)
        for documents, _ in reader.batches(self.rows(), batch_size):
            yield documents

    def read_with_vectors(
        self, *, batch_size: int, on_bad_row: BadRow
    ) -> Iterator[tuple[list[Document], Floats]]:
        """Yield documents and their ready-made vectors, float32 `[n, d]`, as the file has them.

        The first vector decides on d. A vector of another width, with a value that is not finite,
        or of nothing but zeros makes its row a bad one.

        Raises:
            ConfigError: `fields.vector` is not set.
            SourceError: as `read`, or no row has the vector field.
        """
        if self.fields.vector is None:
            raise ConfigError(
                "no field is named as the one that holds vectors", hint="give --vector-field NAME"
            )
        reader = _Reader(self.fields, on_bad_row, with_vectors=True)
        for documents, vectors in reader.batches(self.rows(), batch_size):
            yield documents, np.stack(vectors)


class Corpus(RowSource):
    """Several sources, one after the other; an id may stand in one of them only."""

    def __init__(self, sources: Sequence[RowSource], fields: FieldMap) -> None:
        self.fields = fields
        self._sources = sources

    def rows(self) -> Iterator[Row]:
        """The rows of all sources."""
        for source in self._sources:
            yield from source.rows()

    def size(self) -> int | None:
        """The sum, if all sources know theirs."""
        sizes = [source.size() for source in self._sources]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


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


class _Unusable(Exception):
    """Why a row is no document; never leaves this module."""


class _Reader:
    """One pass over the rows of a corpus."""

    def __init__(self, fields: FieldMap, on_bad_row: BadRow, *, with_vectors: bool) -> None:
        self._fields = fields
        self._on_bad_row = on_bad_row
        self._with_vectors = with_vectors
        self._special = {fields.id, fields.text, fields.vector}
        self._seen = IdSet()
        self._width = 0

    def batches(
        self, rows: Iterable[Row], batch_size: int
    ) -> Iterator[tuple[list[Document], list[Floats]]]:
        """Documents and (if asked for) their vectors; a damaged file raises after its good rows."""
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least one document must fit")
        documents: list[Document] = []
        vectors: list[Floats] = []
        characters = 0
        try:
            for row in self._checked(rows):
                try:
                    document, vector = self._document(row)
                except _Unusable as reason:
                    self._refuse(row, str(reason))
                    continue
                documents.append(document)
                vectors.append(vector)
                characters += len(document.text)
                if len(documents) == batch_size or characters >= _BATCH_CHARACTERS:
                    yield documents, vectors
                    documents, vectors, characters = [], [], 0
        except SourceError:
            if documents:
                yield documents, vectors
            raise
        if documents:
            yield documents, vectors

    def _checked(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows; those at the head of a file wait until each needed field has turned up."""
        needed = {self._fields.id: "--id-field", self._fields.text: "--text-field"}
        if self._with_vectors:
            needed[str(self._fields.vector)] = "--vector-field"
        for _, group in groupby(rows, key=attrgetter("file")):
            rest, missing, head = iter(group), needed, []
            try:
                for row in rest:
                    head.append(row)
                    missing = {
                        name: needed[name] for name in missing if name not in (row.value or ())
                    }
                    if not missing or len(head) == _HEAD:
                        break
            except SourceError:
                yield from head
                raise
            _require(head, missing)
            yield from head
            yield from rest

    def _document(self, row: Row) -> tuple[Document, Floats]:
        if row.value is None:
            raise _Unusable(row.problem)
        fields = self._fields
        key = _id(row.value, fields.id)
        text = _text(row.value, fields.text)
        vector = self._vector(row.value) if self._with_vectors else _NO_VECTOR
        title = row.value.get(fields.title)
        metadata = {
            name: json_value(value)
            for name, value in row.value.items()
            if name not in self._special
        }
        if not self._seen.add(key):
            raise _Unusable(f"duplicate id {key!r}")
        return Document(key, text, metadata, title if isinstance(title, str) else ""), vector

    def _vector(self, row: Mapping[str, Any]) -> Floats:
        name = str(self._fields.vector)
        try:
            with np.errstate(over="ignore"):
                vector = np.asarray(_value(row, name), dtype=np.float32)
        except (TypeError, ValueError):
            raise _Unusable(f"{name!r} is not a list of numbers") from None
        if vector.ndim != 1 or not len(vector):
            raise _Unusable(f"{name!r} is not a list of numbers")
        if not np.isfinite(vector).all() or not vector.any():
            raise _Unusable(f"{name!r} has a value that is not finite, or zeros only")
        self._width = self._width or len(vector)
        if len(vector) != self._width:
            raise _Unusable(f"{name!r} has {len(vector)} dimensions, others have {self._width}")
        return vector

    def _refuse(self, row: Row, reason: str) -> None:
        raw = row.raw or json.dumps(json_value(row.value), ensure_ascii=False).encode(
            errors="backslashreplace"
        )
        self._on_bad_row(file=row.file, row=row.number, offset=row.offset, reason=reason, raw=raw)


_NO_VECTOR = np.zeros(0, dtype=np.float32)


def _require(head: Sequence[Row], missing: Mapping[str, str]) -> None:
    """Raise if no row has a field that is needed, unless none of them could be read."""
    names = dict.fromkeys(name for row in head for name in row.value or ())
    if not missing or not any(row.value is not None for row in head):
        return
    wanted, option = next(iter(missing.items()))
    raise SourceError(
        f"{head[0].file} has no field {wanted!r}; it has: {', '.join(names) or 'none'}",
        hint=f"name the right one by {option}",
    )


def _value(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise _Unusable(f"{name!r} is {'null' if name in row else 'missing'}")
    return row[name]


def _id(row: Mapping[str, Any], name: str) -> str:
    value = _value(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID):
        raise _Unusable(f"{name!r} is neither a string nor an integer")
    key = str(value)
    if not key.strip():
        raise _Unusable(f"{name!r} is empty")
    return key


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str):
        raise _Unusable(f"{name!r} is not a string")
    if not value or value.isspace():
        raise _Unusable(f"{name!r} is empty")
    return value


class IdSet:
    """The ids seen so far, as 16-byte digests in one table: about 35 bytes an id, not 100."""

    def __init__(self) -> None:
        self._slots = 1 << 10
        self._table = bytearray(16 * self._slots)
        self._count = 0

    def add(self, key: str) -> bool:
        """Add an id; False if it was there."""
        if 4 * self._count >= 3 * self._slots:
            self._grow()
        new = self._put(blake2b(key.encode(), digest_size=16).digest())
        self._count += new
        return new

    def __contains__(self, key: str) -> bool:
        digest = blake2b(key.encode(), digest_size=16).digest()
        return self._table.startswith(digest, self._find(digest))

    def __len__(self) -> int:
        return self._count

    def _put(self, digest: bytes) -> bool:
        start = self._find(digest)
        if self._table.startswith(digest, start):
            return False
        self._table[start : start + 16] = digest
        return True

    def _find(self, digest: bytes) -> int:
        """Where it is, or would be."""
        start = 16 * (int.from_bytes(digest[:8], "little") % self._slots)
        while not self._table.startswith(digest, start):
            if self._table.startswith(_FREE, start):
                return start
            start = (start + 16) % len(self._table)
        return start

    def _grow(self) -> None:
        old = self._table
        self._slots *= 2
        self._table = bytearray(16 * self._slots)
        for start in range(0, len(old), 16):
            digest = bytes(old[start : start + 16])
            if digest != _FREE:
                self._put(digest)


_FREE = bytes(16)
