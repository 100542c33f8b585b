"""From rows to documents: what is a document, a bad row or a duplicate is decided here, once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.idset import IdSet
from nexus_vdb.interfaces import BadRow
from nexus_vdb.jsonvalue import json_value
from nexus_vdb.rows import Block, FieldMap, Row, RowFile, duplicate
from nexus_vdb.types import Document, Floats

__all__ = ["RowReader"]

_BATCH_SIZE = 4_000_000  # characters: a batch of long documents ends early, to bound memory
_REFUSALS = 1000  # as does one with many bad rows
_NO_VECTORS = np.zeros((1, 0), dtype=np.float32)
_HEAD = 100  # rows in which a field has to turn up once, if the file has it at all


class _Unusable(Exception):
    """Why a row is no document; never leaves this module."""


class _NoField(SourceError):
    """A file has a field that is needed in none of its first rows."""


class _Held(NamedTuple):
    """Rows, and what they are as far as one can tell without looking at others: see `_settled`.

    Attributes:
        rows: One, or a block of rows that are all documents.
        documents: One for each row; none of a row that is no document.
        vectors: `[n, d]`.
        reason: Why it is none.
    """

    rows: Row | Block
    documents: Sequence[Document] = ()
    vectors: Floats = _NO_VECTORS
    reason: str = ""


class RowReader:
    """One pass over the rows of a corpus.

    Args:
        fields: Which field means what.
        on_bad_row: Told of rows that are no documents, and of files whose rest is lost.
        with_vectors: Take vectors from `fields.vector`.
    """

    def __init__(self, fields: FieldMap, on_bad_row: BadRow, *, with_vectors: bool) -> None:
        self._fields = fields
        self._on_bad_row = on_bad_row
        self._with_vectors = with_vectors
        self._special = {fields.id, fields.text, fields.vector}
        self._seen = IdSet()
        self._width = 0
        self._any = False  # whether there was a document

    def batches(
        self, files: Iterable[RowFile], batch_size: int
    ) -> Iterator[tuple[list[Document], Floats]]:
        """Documents and their vectors `[n, d]`; `[n, 0]` where they are not asked for.

        A file that cannot be read to its end gives its good rows, then counts as one bad row, and
        the next file is read.

        Raises:
            SourceError: the first document is still to come, and a file lacks a field; or all is
                read, a file was damaged and there was no document at all.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least one document must fit")
        held: list[_Held] = []
        good = bad = size = 0
        for one in self._held(files, batch_size):
            count = len(one.documents)
            if good + count > batch_size:
                yield from self._settled(held)
                held, good, bad, size = [], 0, 0, 0
            held.append(one)
            good, bad = good + count, bad + (not count)
            size += _characters(one)
            if good == batch_size or size >= _BATCH_SIZE or bad == _REFUSALS:
                yield from self._settled(held)
                held, good, bad, size = [], 0, 0, 0
        yield from self._settled(held)

    def _held(self, files: Iterable[RowFile], batch_size: int) -> Iterator[_Held]:
        """Blocks where they can be taken as they are, other rows one by one."""
        for some in self._rows(files):
            if isinstance(some, Block):
                for block in some.parts(batch_size):
                    whole = self._whole(block)
                    yield from self._apart(block) if whole is None else (whole,)
            else:
                yield self._alone(some)

    def _apart(self, block: Block) -> Iterator[_Held]:
        return map(self._alone, block.rows())

    def _alone(self, row: Row) -> _Held:
        try:
            one = self._document(row)
        except _Unusable as reason:
            return _Held(row, reason=str(reason))
        self._any = True
        return one

    def _rows(self, files: Iterable[RowFile]) -> Iterator[Row | Block]:
        """The rows of all files; the lost end of a damaged one is a row that cannot be read."""
        lost: list[tuple[Row, SourceError]] = []
        for file in files:
            name, number = file.name, 0
            try:
                rows = file.rows()
                for some in self._with_fields(rows) if file.uniform else rows:
                    name, number = some.file, some.number
                    number += len(some) - 1 if isinstance(some, Block) else 0
                    yield some
            except _NoField:
                raise
            except SourceError as error:
                lost.append((Row(name, number + 1, -1, None, b"", str(error)), error))
            if self._any:
                yield from (row for row, _ in lost)
                lost = []
        if lost:
            raise lost[0][1]

    def _with_fields(self, rows: Iterator[Row | Block]) -> Iterator[Row | Block]:
        """The same rows; those at the head of a file wait until each needed field has turned up."""
        needed = {self._fields.id: "--id-field", self._fields.text: "--text-field"}
        if self._with_vectors:
            needed[str(self._fields.vector)] = "--vector-field"
        for _, group in groupby(rows, key=attrgetter("file")):
            rest, missing, head, seen = iter(group), needed, list[Row | Block](), 0
            try:
                for some in rest:
                    head.append(some)
                    seen += len(some) if isinstance(some, Block) else 1
                    missing = {name: needed[name] for name in missing if name not in _names(some)}
                    if not missing or seen >= _HEAD:
                        break
            except SourceError:
                yield from head
                raise
            if not self._any:  # else other files had it: this one's rows are bad ones
                _require(head, missing)
            yield from head
            yield from rest

    def _whole(self, block: Block) -> _Held | None:
        """A block of rows that are all documents; None where one of them may be none."""
        columns, fields = block.columns, self._fields
        ids, texts = _ids(columns.get(fields.id)), _words(columns.get(fields.text))
        titles = columns.get(fields.title, ("",) * len(block))
        vectors = np.zeros((len(block), 0), dtype=np.float32)
        if self._with_vectors:
            given = columns.get(str(fields.vector))
            if not isinstance(given, np.ndarray) or given.ndim != 2 or not given.size:
                return None
            with np.errstate(over="ignore"):
                vectors = np.asarray(given, dtype=np.float32)
        if ids is None or texts is None:
            return None
        self._any = True
        metadata = _metadata(columns, self._special, len(block))
        documents = [
            Document(key, text, about, title if isinstance(title, str) else "")
            for key, text, about, title in zip(ids, texts, metadata, titles, strict=True)
        ]
        return _Held(block, documents, vectors)

    def _document(self, row: Row) -> _Held:
        value, fields = row.value, self._fields
        if value is None:
            raise _Unusable(row.problem)
        key, text = value.get(fields.id), value.get(fields.text)
        if type(key) is not str or not key or key.isspace():  # as nearly all rows are not
            key = _id(value, fields.id)
        if type(text) is not str or not text or text.isspace():
            text = _text(value, fields.text)
        vectors = self._vector(value)[None] if self._with_vectors else _NO_VECTORS
        title = value.get(fields.title)
        special = self._special
        metadata = {
            name: one if one is None or type(one) is str else json_value(one)
            for name, one in value.items()
            if name not in special
        }
        document = Document(key, text, metadata, title if isinstance(title, str) else "")
        return _Held(row, (document,), vectors)

    def _vector(self, row: Mapping[str, Any]) -> Floats:
        name = str(self._fields.vector)
        value = row.get(name)
        if type(value) is not np.ndarray or value.dtype != np.float32:
            try:
                with np.errstate(over="ignore"):
                    value = np.asarray(_value(row, name), dtype=np.float32)
            except (TypeError, ValueError, OverflowError):
                raise _Unusable(f"{name!r} is not a list of numbers") from None
        if value.ndim != 1 or not len(value):
            raise _Unusable(f"{name!r} is not a list of numbers")
        return value

    def _settled(self, held: list[_Held]) -> Iterator[tuple[list[Document], Floats]]:
        """What of a batch are documents, now that all of it is there; bad rows in their order."""
        matrix = self._matrix([one.vectors for one in held if one.documents])
        if matrix is None:
            held = [self._with_sound_vector(one) for some in held for one in self._singly(some)]
        good = [one for one in held if not one.reason]
        documents = [document for one in good for document in one.documents]
        new = self._seen.add_all([document.id for document in documents])
        if len(good) < len(held) or not all(new):
            self._refuse_bad(held, new)
        kept = [row for row, is_new in enumerate(new) if is_new]
        if not kept:
            return
        if matrix is None:
            matrix = np.concatenate([good[row].vectors for row in kept])
        elif len(kept) < len(documents):
            matrix = matrix[kept]
        yield [documents[row] for row in kept], matrix

    def _singly(self, one: _Held) -> Iterable[_Held]:
        return self._apart(one.rows) if isinstance(one.rows, Block) else (one,)

    def _refuse_bad(self, held: Iterable[_Held], new: Iterable[bool]) -> None:
        """Refuse what is no document, and those of the others that are not new."""
        is_new = iter(new)
        for rows, documents, _, reason in held:
            if reason and isinstance(rows, Row):
                self._refuse(rows, reason)
                continue
            apart = rows.rows() if isinstance(rows, Block) else (rows,)
            for row, document in zip(apart, documents, strict=True):
                if not next(is_new):
                    self._refuse(row, duplicate(document.id))

    def _matrix(self, vectors: Sequence[Floats]) -> Floats | None:
        """Vectors as rows `[n, d]`, if all are sound and of the one width."""
        if not self._with_vectors:
            return np.zeros((sum(map(len, vectors)), 0), dtype=np.float32)
        matrix = _matrix(vectors)
        if matrix is None or matrix.shape[1] != (self._width or matrix.shape[1]):
            return None
        self._width = matrix.shape[1]
        return matrix

    def _with_sound_vector(self, one: _Held) -> _Held:
        return one if one.reason else one._replace(reason=self._problem(one.vectors[0]))

    def _problem(self, vector: Floats) -> str:
        """Why a vector cannot be used, "" if it can."""
        name = self._fields.vector
        if not (np.isfinite(vector).all() and vector.any()):
            return f"{name!r} has a value that is not finite, or zeros only"
        self._width = self._width or len(vector)
        if len(vector) != self._width:
            return f"{name!r} has {len(vector)} dimensions, others have {self._width}"
        return ""

    def _refuse(self, row: Row, reason: str) -> None:
        raw = row.raw
        if row.value is not None and not raw:
            text = json.dumps(json_value(row.value), ensure_ascii=False)
            raw = text.encode(errors="backslashreplace")
        self._on_bad_row(file=row.file, row=row.number, offset=row.offset, reason=reason, raw=raw)


def _characters(one: _Held) -> int:
    if isinstance(one.rows, Row) and one.reason:
        return len(one.rows.raw)
    return sum([len(document.text) for document in one.documents])


def _matrix(vectors: Sequence[Floats]) -> Floats | None:
    """Rows `[n, d]` together, if all have the same width, finite values, and one that is not zero.

    None where there are none.
    """
    if len({some.shape[1] for some in vectors}) != 1:
        return None
    matrix = np.concatenate(vectors)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", matrix, matrix)
    return matrix if (np.isfinite(squares) & (squares > 0)).all() else None


def _words(column: Sequence[Any] | Floats | None) -> list[str] | None:
    """A column of strings of which none is blank; None for any other."""
    if column is None:
        return None
    if all([type(one) is str and one and not one.isspace() for one in column]):
        return list(column)
    return None


def _ids(column: Sequence[Any] | Floats | None) -> list[str] | None:
    """As `_words`; integers are ids as well."""
    if column is not None and all([type(one) is int for one in column]):
        return [str(one) for one in column]
    return _words(column)


def _metadata(
    columns: Mapping[str, Sequence[Any] | Floats], special: Container[str | None], count: int
) -> Iterable[dict[str, Any]]:
    """Of each row, all fields that mean nothing else."""
    names = [name for name in columns if name not in special]
    if not names:
        return [{} for _ in range(count)]
    values = [
        [one if one is None or type(one) is str else json_value(one) for one in columns[name]]
        for name in names
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _names(some: Row | Block) -> Iterable[str]:
    return some.columns if isinstance(some, Block) else some.value or ()


def _require(head: Sequence[Row | Block], missing: Mapping[str, str]) -> None:
    """Raise if no row has a field that is needed, unless none of them could be read."""
    names = dict.fromkeys(name for some in head for name in _names(some))
    read = any(isinstance(some, Block) or some.value is not None for some in head)
    if not missing or not read:
        return
    wanted, option = next(iter(missing.items()))
    raise _NoField(
        f"{head[0].file} has no field {wanted!r}; it has: {', '.join(names) or 'none'}",
        hint=f"name the right one by {option}, or leave the file out",
    )


def _value(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        raise _Unusable(f"{name!r} is {'null' if name in row else 'missing'}")
    return value


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
